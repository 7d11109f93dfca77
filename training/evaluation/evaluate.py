"""A checkpoint against baselines on held-out episodes: numbers, plots, a report.

Validation windows fix the baselines' probabilities, as they fixed the model's; calibration windows
fix everyone's thresholds. All that is reported comes from test windows, from roads that nobody was
fitted to, and from drives simulated for the purpose; see `judgements`.
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

from models.checkpoint import Checkpoint, checkpoint_version, load_checkpoint
from models.highway import highway_spec
from training.dataset.overlap import held_out
from training.dataset.sources import Simulated
from training.dataset.store import EpisodeStore, load_store
from training.dataset.windows import Windows, make_windows
from training.evaluation import judgements
from training.evaluation.judgements import STRIDE, Curves, Trial
from training.evaluation.methods import Lineup
from training.evaluation.metrics import Risk
from training.evaluation.parts import FOLDER, Parts, code_version, remove_parts
from training.evaluation.plots import draw_all
from training.evaluation.report import rounded, write_metrics, write_report
from training.evaluation.tables import model_card_table
from training.running.locks import locked
from training.running.progress import Progress

__all__ = ["evaluate", "model_card_table", "write_metrics"]

DEFAULT_HORIZON = 16
BRANCH_STATES, PROVOKED_TRANSITIONS = 240, 80_000
_CALIBRATION_STRIDE = 4
"""Quantiles gain nothing from windows that overlap even more."""

_EPISODE_S = {
    "prepare": 0.02,
    "methods": 0.02,
    "termination": 0.01,
    "trust": 0.005,
    "corruptions": 0.005,
    "divergence": 0.01,
    "unseen": 0.01,
}
"""Seconds an episode of the data set; as `_TRANSITION_S` and `_BRANCH_S`, measured on two cores."""
_TRANSITION_S, _BRANCH_S = 0.001, 0.5


def evaluate(
    checkpoint_folder: Path,
    store_folder: Path,
    report: Path,
    *,
    bootstrap: int = 200,
    branch_states: int = BRANCH_STATES,
    provoked_transitions: int = PROVOKED_TRANSITIONS,
    progress: Progress | None = None,
    keep_parts: bool = False,
) -> dict[str, Any]:
    """Evaluate a checkpoint and write the report.

    Finished parts are kept beside the report until all are, so that an interrupted call is repeated
    to go on. Predictions of test windows are made again.

    Args:
        checkpoint_folder: What to evaluate; not written to, see `write_metrics`.
        store_folder: Finished dataset; the checkpoint's own split of it is used.
        report: Folder for `report.json`, `report.md` and the plots; created if missing.
        bootstrap: Resamples for the 95 % intervals; 0 leaves intervals out.
        branch_states: States from which other futures are simulated; 0 leaves those out.
        provoked_transitions: To simulate among sudden drivers; 0 leaves those out.
        progress: Of a command that does more than this; one of its own by default.
        keep_parts: Whether to leave the parts for a command that does more, in case that it is
            interrupted; `remove_parts` removes them.

    Returns:
        What `report.json` holds.

    Raises:
        FolderLockedError: Another command writes the report.
        ValueError: The checkpoint has other features than the dataset, or the dataset too few
            episodes.
    """
    checkpoint, store = load_checkpoint(checkpoint_folder), load_store(store_folder)
    _check_spec(checkpoint)
    held = held_out(checkpoint.training, Simulated(store))
    for warning in held.warnings:
        print(f"WARNING: {warning}", file=sys.stderr)
    horizon = checkpoint.calibration.horizon or DEFAULT_HORIZON
    dataset = {
        "fingerprint": store.fingerprint,
        "split_seed": int(checkpoint.training.get("split_seed", 0)),
        "held_out": held.note,
        "horizon": horizon,
        "stride": STRIDE,
        "episodes": {name: len(part) for name, part in held.episodes.items()},
    }
    metrics: dict[str, Any] = {
        "model_version": checkpoint_version(checkpoint_folder),
        "dataset": dataset,
    }
    options = {
        "bootstrap": bootstrap,
        "branch_states": branch_states,
        "provoked_transitions": provoked_transitions,
    }
    costs = _costs(sum(len(part) for part in held.episodes.values()), options)
    shown = progress or Progress("evaluating", 0.0)
    shown.extend(sum(costs.values()))
    with locked(report, "evaluating"), _one_thread(), nullcontext() if progress else shown:
        parts = Parts(report / FOLDER, {**metrics, "options": options, "code": code_version()})
        evaluation = _Evaluation(parts, shown, costs)
        with evaluation.step("prepare"):
            lineup = _fit(checkpoint, store, held.episodes, horizon)
            test = _trial(store, lineup, held.episodes["test"], horizon, bootstrap)
            _check_outcomes(test.windows, "test")
        found, risks, curves = _judge(test, evaluation)
        metrics |= found
        _judge_elsewhere(test, metrics, evaluation, held.episodes["unseen"], options)
        metrics |= rounded(metrics)
        write_report(report, metrics)
        draw_all(report, metrics, test, risks, curves)
        if not keep_parts:
            remove_parts(report)
    return metrics


def _costs(episodes: int, options: Mapping[str, int]) -> dict[str, float]:
    """Return how long each part takes, roughly, in seconds of one machine; for the time left."""
    return {
        **{name: seconds * episodes for name, seconds in _EPISODE_S.items()},
        "provoked": _TRANSITION_S * options["provoked_transitions"],
        "branches": _BRANCH_S * options["branch_states"],
    }


@dataclass(frozen=True)
class _Evaluation:
    """What is done of an evaluation; each part of `costs` once."""

    parts: Parts
    progress: Progress
    costs: Mapping[str, float]

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[Callable[[float], None]]:
        """Do a part in the block."""
        self.progress.note(name)
        if self.parts.has(name):
            self.progress.skip(self.costs[name])
            yield lambda share: None
            return
        try:
            with self.progress.stretch(self.costs[name]) as on_share:
                yield on_share
        except KeyboardInterrupt as exc:
            kept = [part for part in self.costs if self.parts.has(part)]
            exc.add_note(f"{len(kept)} of {len(self.costs) - 1} parts of the evaluation done")
            raise

    def kept(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return a part's result; see `Parts.kept`."""
        with self.step(name):
            return self.parts.kept(name, compute)


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
    metrics |= kept("trust", lambda: judgements.trust(test))
    metrics["corruptions"] = kept("corruptions", lambda: judgements.corruptions(test))
    metrics["divergence"] = kept("divergence", lambda: judgements.divergences(test))
    return metrics, risks, curves


def _judge_elsewhere(
    test: Trial,
    metrics: dict[str, Any],
    evaluation: _Evaluation,
    unseen: NDArray[np.int64],
    options: Mapping[str, int],
) -> None:
    """Add the results on unseen roads, on provoked crashes, and on several futures."""
    kept, parts, termination = evaluation.kept, evaluation.parts, metrics["termination"]

    def elsewhere() -> Any:
        if not len(unseen):
            return None, None
        horizon = test.windows.horizon
        return judgements.elsewhere(
            _trial(test.store, test.lineup, unseen, horizon, test.bootstrap)
        )

    metrics["unseen"], compared = kept("unseen", elsewhere)
    found = {"unseen": compared}
    for name, judge, count in (
        ("provoked", judgements.provoked, options["provoked_transitions"]),
        ("branches", judgements.branches, options["branch_states"]),
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


def _check_spec(checkpoint: Checkpoint) -> None:
    expected = highway_spec()
    if checkpoint.spec != expected:
        raise ValueError(
            f"the checkpoint's spec {checkpoint.spec.name!r} is not the dataset's {expected.name!r}"
        )


def _fit(
    checkpoint: Checkpoint,
    store: EpisodeStore,
    episodes: dict[str, NDArray[np.int64]],
    horizon: int,
) -> Lineup:
    """Fit the rivals' probabilities and everyone's thresholds."""
    known = {}
    for name, stride in (("validation", STRIDE), ("calibration", _CALIBRATION_STRIDE)):
        windows = make_windows(store, episodes[name], horizon, stride)
        known[name] = windows.take(windows.is_known)
        _check_outcomes(known[name], name)
    return Lineup.fit(checkpoint, known["validation"], known["calibration"])


def _trial(
    store: EpisodeStore,
    lineup: Lineup,
    episodes: NDArray[np.int64],
    horizon: int,
    bootstrap: int,
) -> Trial:
    """Try everyone on some episodes."""
    return Trial.of(store, lineup, make_windows(store, episodes, horizon, STRIDE), bootstrap)


def _check_outcomes(windows: Windows, part: str) -> None:
    if not windows.ends.any() or windows.ends.all():
        raise ValueError(
            f"the {part} split has {len(windows)} windows of known outcome, "
            f"{int(windows.ends.sum())} of which terminate; collect more episodes"
        )
