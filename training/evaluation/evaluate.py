"""A checkpoint on held-out episodes: numbers, plots, a report.

Any spec's: errors of states, rewards and terminations, uncertainty, verdicts. Where physics can
read the features, beside baselines of physics; where the episodes are simulated, by source, in
other futures of the same states and among other drivers, too.

Where too few episodes end to fix thresholds and to score terminations by, as in recordings without
a crash, what needs none of it is reported, of all episodes that were not trained on.

Validation windows fix the baselines' probabilities, as they fixed the model's; calibration windows
fix everyone's thresholds. All that is reported comes from test windows, from roads that nobody was
fitted to, and from drives simulated for the purpose; see `judgements` and `driving`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.checkpoint import load_checkpoint
from training.dataset.overlap import HeldOut, held_out
from training.dataset.sources import Dataset, Simulated, open_dataset
from training.evaluation import driving, judgements
from training.evaluation.driving_plots import draw_driving
from training.evaluation.judgements import STRIDE, Curves, Trial
from training.evaluation.metrics import Risk
from training.evaluation.parts import FOLDER, Parts, code_version, remove_parts
from training.evaluation.plots import draw_all, draw_states
from training.evaluation.preparing import Cutter, prepared
from training.evaluation.report import rounded, write_metrics, write_report
from training.evaluation.tables import model_card_table
from training.evaluation.tracks import by_source, part_names, seen_by, tracks_of
from training.running.locks import locked
from training.running.progress import Progress

__all__ = ["evaluate", "model_card_table", "write_metrics"]

DEFAULT_HORIZON = 16
BRANCH_STATES, PROVOKED_TRANSITIONS = 240, 80_000
_QUICK_BOOTSTRAP = 50
_QUICK_WINDOWS = 20_000

_EPISODE_S = {
    "prepare": 0.02,
    "methods": 0.02,
    "termination": 0.01,
    "neighbours": 0.003,
    "trust": 0.005,
    "corruptions": 0.005,
    "divergence": 0.01,
    "unseen": 0.01,
}
"""Seconds an episode of the data set; as `_TRANSITION_S` and `_BRANCH_S`, measured on two cores."""
_TRANSITION_S, _BRANCH_S, _TRACKS_S = 0.001, 0.5, 0.02


def evaluate(
    checkpoint_folder: Path,
    store_folder: Path,
    report: Path,
    *,
    bootstrap: int = 200,
    branch_states: int = BRANCH_STATES,
    provoked_transitions: int = PROVOKED_TRANSITIONS,
    tracks: tuple[str, ...] = (),
    quick: bool = False,
    progress: Progress | None = None,
    keep_parts: bool = False,
) -> dict[str, Any]:
    """Evaluate a checkpoint and write the report.

    Finished parts are kept beside the report until all are, so that an interrupted call is repeated
    to go on. Predictions of test windows are made again.

    Args:
        checkpoint_folder: What to evaluate; not written to, see `write_metrics`.
        store_folder: Finished data set of either format; the checkpoint's own split of it is used.
        report: Folder for `report.json`, `report.md` and the plots; created if missing.
        bootstrap: Resamples for the 95 % intervals; 0 leaves intervals out.
        branch_states: States from which other futures are simulated; 0 leaves those out.
        provoked_transitions: To simulate among sudden drivers; 0 leaves those out.
        tracks: By which trackers simulated episodes are seen, see `Tracking.model`; each source is
            judged as each of them sees it, all else as the first one does. Empty: those of
            `tracks_of`.
        quick: Minutes in place of hours: at most `_QUICK_WINDOWS` windows a part, of episodes at
            random, few resamples, and nothing is simulated.
        progress: Of a command that does more than this; one of its own by default.
        keep_parts: Whether to leave the parts for a command that does more, in case that it is
            interrupted; `remove_parts` removes them.

    Returns:
        What `report.json` holds.

    Raises:
        FolderLockedError: Another command writes the report.
        ValueError: The checkpoint has other features than the dataset, or no window of it goes on
            for the whole horizon; or trackers are asked for that there are none of.
    """
    checkpoint = load_checkpoint(checkpoint_folder)
    data = open_dataset(store_folder, *tracks[:1])
    if isinstance(data, Simulated):
        tracks = tracks_of(data, tracks)
        data = seen_by(data, tracks[0]) if tracks else data
    if difference := checkpoint.spec.difference_to(data.spec):
        raise ValueError(
            f"{checkpoint_folder} has other features than {store_folder}: {difference}"
        )
    if quick:
        bootstrap, branch_states, provoked_transitions = min(bootstrap, _QUICK_BOOTSTRAP), 0, 0
    held = held_out(checkpoint.training, data)
    for warning in held.warnings:
        print(f"WARNING: {warning}", file=sys.stderr)
    horizon = checkpoint.calibration.horizon or DEFAULT_HORIZON
    seed = int(checkpoint.training.get("split_seed", 0))
    cut = Cutter(data, horizon, _QUICK_WINDOWS if quick else None)
    metrics: dict[str, Any] = {
        "model_version": checkpoint.version,
        "is_quick": quick,
        "dataset": _described(data, seed, horizon, held),
    }
    options = {
        "bootstrap": bootstrap,
        "branch_states": branch_states,
        "provoked_transitions": provoked_transitions,
        "tracks": list(tracks),
    }
    costs = _costs(sum(len(part) for part in held.episodes.values()), options, data)
    shown = progress or Progress("evaluating", 0.0)
    shown.extend(sum(costs.values()))
    with locked(report, "evaluating"), _one_thread(), nullcontext() if progress else shown:
        parts = Parts(report / FOLDER, {**metrics, "options": options, "code": code_version()})
        evaluation = _Evaluation(parts, shown, costs, options)
        with evaluation.step("prepare"):
            test, lacking = prepared(store_folder, checkpoint, cut, held, bootstrap)
        if lacking:
            metrics = _report_without_ends(report, metrics, lacking, test, evaluation)
        else:
            metrics = _report(report, metrics, test, evaluation, cut, held.episodes)
    if not keep_parts:
        remove_parts(report)
    return metrics


def _report(
    report: Path,
    metrics: dict[str, Any],
    test: Trial,
    evaluation: _Evaluation,
    cut: Cutter,
    episodes: Mapping[str, NDArray[np.int64]],
) -> dict[str, Any]:
    found, risks, curves = _judge(test, evaluation)
    metrics |= found
    metrics |= dict.fromkeys(("unseen", "branches", "lacking", "sources"))
    tracks = evaluation.options["tracks"]
    if tracks and test.knows_physics:
        metrics["sources"] = by_source(test, tuple(tracks), cut, episodes, evaluation.kept_arrays)
    if isinstance(test.data, Simulated):
        _judge_elsewhere(test, metrics, evaluation, cut, episodes["unseen"])
    metrics = rounded(metrics)
    write_report(report, metrics)
    draw_all(report, metrics, test, risks, curves)
    if test.knows_physics:
        draw_driving(report, metrics, test)
    return metrics


def _report_without_ends(
    report: Path, metrics: dict[str, Any], lacking: str, test: Trial, evaluation: _Evaluation
) -> dict[str, Any]:
    """Report what needs no thresholds of its own; what does is None."""
    print(f"WARNING: terminations are not scored: {lacking}", file=sys.stderr)
    windows = test.windows
    metrics |= dict.fromkeys(
        (
            *("methods", "termination", "reliability", "corruptions", "unseen", "branches"),
            "sources",
        )
    )
    metrics |= {
        "lacking": lacking,
        "windows": len(windows),
        "judged_episodes": len(np.unique(windows.episode)),
        **_judge_states(test, evaluation),
    }
    metrics = rounded(metrics)
    write_report(report, metrics)
    draw_states(report, metrics, test, _curves_without_ends(test, metrics))
    return metrics


def _judge_states(test: Trial, evaluation: _Evaluation) -> dict[str, Any]:
    """Return all results that no threshold of the evaluation's own is needed for."""
    kept = evaluation.kept
    return {
        **judgements.states(test),
        "neighbours": kept("neighbours", lambda: judgements.neighbours(test)),
        **kept("trust", lambda: judgements.trust(test)),
    }


def _curves_without_ends(test: Trial, metrics: dict[str, Any]) -> Curves:
    found = metrics["neighbours"]
    return judgements.still_curves(test) if found is None else judgements.neighbour_curves(found)


def _described(data: Dataset, seed: int, horizon: int, held: HeldOut) -> dict[str, Any]:
    return {
        "fingerprint": data.fingerprint,
        "spec": data.spec.name,
        "dt_s": data.spec.dt_s,
        "split_seed": seed,
        "held_out": held.note,
        "horizon": horizon,
        "stride": STRIDE,
        "episodes": {name: len(part) for name, part in held.episodes.items()},
        "causes": list(data.labels.causes[1:]),
        "calm": data.labels.calm,
    }


def _costs(episodes: int, options: Mapping[str, Any], data: Dataset) -> dict[str, float]:
    """Return how long each part takes, roughly, in seconds of one machine; for the time left."""
    costs = {name: seconds * episodes for name, seconds in _EPISODE_S.items()}
    if not isinstance(data, Simulated):
        names = ("prepare", "methods", "termination", "neighbours", "trust")
        return {name: costs[name] for name in names}
    return {
        **costs,
        **dict.fromkeys(part_names(tuple(options["tracks"])), _TRACKS_S * episodes),
        "provoked": _TRANSITION_S * options["provoked_transitions"],
        "branches": _BRANCH_S * options["branch_states"],
    }


@dataclass(frozen=True)
class _Evaluation:
    """What is done of an evaluation; each part of `costs` once."""

    parts: Parts
    progress: Progress
    costs: Mapping[str, float]
    options: Mapping[str, Any]

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[Callable[[float], None]]:
        """Do a part in the block."""
        self.progress.note(name)
        if self.parts.has(name):
            self.progress.skip(self.costs.get(name, 0.0))
            yield lambda share: None
            return
        try:
            with self.progress.stretch(self.costs.get(name, 0.0)) as on_share:
                yield on_share
        except KeyboardInterrupt as exc:
            kept = [part for part in self.costs if self.parts.has(part)]
            exc.add_note(f"{len(kept)} of {len(self.costs) - 1} parts of the evaluation done")
            raise

    def kept(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return a part's result; see `Parts.kept`."""
        with self.step(name):
            return self.parts.kept(name, compute)

    def kept_arrays(
        self, name: str, compute: Callable[[], tuple[Any, dict[str, NDArray[Any]]]]
    ) -> tuple[Any, dict[str, NDArray[Any]]]:
        """Return a part's result and arrays; see `Parts.kept_with_arrays`."""
        with self.step(name):
            return self.parts.kept_with_arrays(name, compute)


def _judge(test: Trial, evaluation: _Evaluation) -> tuple[dict[str, Any], dict[str, Risk], Curves]:
    """Return all results on test windows; risks and mean errors by step, by method."""

    def methods() -> tuple[Any, dict[str, NDArray[Any]]]:
        table, risks, curves = judgements.methods(test)
        arrays = {
            f"{name}\n{part}": x for name, risk in risks.items() for part, x in vars(risk).items()
        }
        arrays |= {
            f"\n{name}\n{of}": x for name, curve in curves.items() for of, x in curve.items()
        }
        return [table, list(risks), {name: list(curve) for name, curve in curves.items()}], arrays

    with evaluation.step("methods"):
        (table, names, curve_names), arrays = evaluation.parts.kept_with_arrays("methods", methods)
    risks = {n: Risk(**{f.name: arrays[f"{n}\n{f.name}"] for f in fields(Risk)}) for n in names}
    curves = {n: {of: arrays[f"\n{n}\n{of}"] for of in each} for n, each in curve_names.items()}
    metrics: dict[str, Any] = {"methods": table}
    kept = evaluation.kept
    metrics["termination"] = kept("termination", lambda: judgements.termination(test, risks))
    metrics["reliability"] = judgements.reliabilities(test, risks)
    metrics |= _judge_states(test, evaluation)
    metrics["corruptions"] = None
    if test.knows_physics:
        metrics["corruptions"] = kept("corruptions", lambda: driving.corruptions(test))
        metrics["divergence"] |= kept("divergence", lambda: driving.divergences(test))
    return metrics, risks, curves


def _judge_elsewhere(
    test: Trial,
    metrics: dict[str, Any],
    evaluation: _Evaluation,
    cut: Cutter,
    unseen: NDArray[np.int64],
) -> None:
    """Add the results on unseen roads, on provoked crashes, and on several futures."""
    kept, parts, termination = evaluation.kept, evaluation.parts, metrics["termination"]
    options = evaluation.options

    def elsewhere() -> Any:
        if not len(unseen):
            return None, None
        return driving.elsewhere(
            Trial.of(cut.data, test.lineup, cut(unseen, STRIDE), test.bootstrap)
        )

    metrics["unseen"], compared = kept("unseen", elsewhere)
    found = {"unseen": compared}
    for name, judge, count in (
        ("provoked", driving.provoked, options["provoked_transitions"]),
        ("branches", driving.branches, options["branch_states"]),
    ):
        with evaluation.step(name) as on_share:
            found[name] = parts.kept(
                name, partial(judge, test, count, parts.folder(f"{name}-drives"), on_share)
            )
    metrics["branches"], found["branches"] = found["branches"]
    termination |= {name: x for name, x in found.items() if x is not None}


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch use one thread only.

    Rollouts are many small products: on busy cores, threads that wait for each other at every one
    of them take several times as long as one thread.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
