"""A checkpoint on held-out episodes: numbers, plots, a report.

Any spec's: errors of states, rewards and terminations, uncertainty, verdicts. Where the features
are those of `highway_spec`, beside baselines of physics; where the episodes are those of our
simulator, in other futures of the same states and among other drivers, too.

Validation windows fix the baselines' probabilities, as they fixed the model's; calibration windows
fix everyone's thresholds. All that is reported comes from test windows, from roads that nobody was
fitted to, and from drives simulated for the purpose; see `judgements` and `driving`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from models.checkpoint import Checkpoint, checkpoint_version, load_checkpoint
from training.dataset.sources import Dataset, Simulated, open_dataset
from training.dataset.windows import SPLIT_SHARES, Windows
from training.evaluation import driving, judgements
from training.evaluation.driving_plots import draw_driving
from training.evaluation.judgements import STRIDE, Curves, Trial
from training.evaluation.methods import Lineup
from training.evaluation.metrics import Risk
from training.evaluation.plots import draw_all
from training.evaluation.report import rounded, write_metrics, write_report
from training.evaluation.tables import model_card_table

__all__ = ["evaluate", "model_card_table", "write_metrics"]

DEFAULT_HORIZON = 16
_CALIBRATION_STRIDE = 4
"""Quantiles gain nothing from windows that overlap even more."""
_QUICK_BOOTSTRAP = 50
_QUICK_WINDOWS = 20_000
_EPISODES_AT_ONCE = 10


def evaluate(
    checkpoint_folder: Path,
    store_folder: Path,
    report: Path,
    *,
    bootstrap: int = 200,
    branch_states: int = 240,
    provoked_transitions: int = 80_000,
    quick: bool = False,
) -> dict[str, Any]:
    """Evaluate a checkpoint and write the report.

    Args:
        checkpoint_folder: What to evaluate; not written to, see `write_metrics`.
        store_folder: Finished data set of either format; the checkpoint's own split of it is used.
        report: Folder for `report.json`, `report.md` and the plots; created if missing.
        bootstrap: Resamples for the 95 % intervals; 0 leaves intervals out.
        branch_states: States from which other futures are simulated; 0 leaves those out.
        provoked_transitions: To simulate among sudden drivers; 0 leaves those out.
        quick: Minutes in place of hours: at most `_QUICK_WINDOWS` windows a part, of episodes at
            random, few resamples, and nothing is simulated.

    Returns:
        What `report.json` holds.

    Raises:
        ValueError: The checkpoint has other features than the dataset, or the dataset too few
            episodes, or not both such that end and such that do not.
    """
    checkpoint, data = load_checkpoint(checkpoint_folder), open_dataset(store_folder)
    if difference := checkpoint.spec.difference_to(data.spec):
        raise ValueError(
            f"{checkpoint_folder} has other features than {store_folder}: {difference}"
        )
    if quick:
        bootstrap, branch_states, provoked_transitions = min(bootstrap, _QUICK_BOOTSTRAP), 0, 0
    seed = int(checkpoint.training.get("split_seed", 0))
    episodes = data.split(seed)
    _check_split(store_folder, data, episodes)
    horizon = checkpoint.calibration.horizon or DEFAULT_HORIZON
    cut = _Cutter(data, horizon, _QUICK_WINDOWS if quick else None)
    metrics: dict[str, Any] = {
        "model_version": checkpoint_version(checkpoint_folder),
        "is_quick": quick,
        "dataset": _described(data, seed, horizon, episodes),
    }
    with _one_thread(), tqdm(total=9, desc="evaluating", unit="part", disable=None) as bar:
        lineup = _fit(checkpoint, cut, episodes)
        bar.update()
        test = Trial.of(data, lineup, cut(episodes["test"], STRIDE), bootstrap)
        _check_outcomes(test.windows, "test", data.spec.dt_s)
        bar.update()
        found, risks, curves = _judge(test, bar)
        metrics |= found
        metrics["unseen"] = metrics["branches"] = None
        if isinstance(data, Simulated):
            if len(episodes["unseen"]):
                unseen = Trial.of(data, lineup, cut(episodes["unseen"], STRIDE), bootstrap)
                metrics["unseen"] = driving.elsewhere(unseen, metrics["termination"])
            driving.provoked(test, provoked_transitions, metrics["termination"])
            bar.update()
            metrics["branches"] = driving.branches(test, branch_states, metrics["termination"])
            bar.update()
        metrics = rounded(metrics)
        report.mkdir(parents=True, exist_ok=True)
        write_report(report, metrics)
        draw_all(report, metrics, test, risks, curves)
        if test.knows_physics:
            draw_driving(report, metrics, test)
        bar.update(bar.total - bar.n)
    return metrics


def _described(
    data: Dataset, seed: int, horizon: int, episodes: dict[str, NDArray[np.int64]]
) -> dict[str, Any]:
    return {
        "fingerprint": data.fingerprint,
        "spec": data.spec.name,
        "dt_s": data.spec.dt_s,
        "split_seed": seed,
        "horizon": horizon,
        "stride": STRIDE,
        "episodes": {name: len(part) for name, part in episodes.items()},
        "causes": list(data.labels.causes[1:]),
        "calm": data.labels.calm,
    }


def _judge(test: Trial, bar: tqdm) -> tuple[dict[str, Any], dict[str, Risk], Curves]:
    """Return all results on test windows; risks and mean errors by step, by method."""
    metrics: dict[str, Any] = {}
    metrics["methods"], risks, curves = judgements.methods(test)
    bar.update()
    metrics["termination"] = judgements.termination(test, risks)
    metrics["reliability"] = judgements.reliabilities(test, risks)
    bar.update()
    metrics |= judgements.states(test)
    metrics |= judgements.trust(test)
    metrics["corruptions"] = driving.corruptions(test) if test.knows_physics else None
    bar.update()
    if test.knows_physics:
        metrics["divergence"] |= driving.divergences(test)
    bar.update()
    return metrics, risks, curves


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


class _Cutter:
    """Cuts windows of episodes: of all, or of as many at random as a quick evaluation takes.

    Args:
        data: Where the episodes are.
        horizon: Steps of a window.
        most: Windows of whole episodes that are enough; None: all.
    """

    def __init__(self, data: Dataset, horizon: int, most: int | None) -> None:
        self.data = data
        self._horizon = horizon
        self._most = most

    def __call__(self, episodes: NDArray[np.int64], stride: int) -> Windows:
        """Return windows of the episodes, in their order."""
        if self._most is None:
            return self.data.windows(episodes, self._horizon, stride)
        order = np.random.default_rng(0).permutation(episodes)
        parts: list[Windows] = []
        for start in range(0, len(order), _EPISODES_AT_ONCE):
            some = np.sort(order[start : start + _EPISODES_AT_ONCE])
            parts.append(self.data.windows(some, self._horizon, stride))
            if sum(map(len, parts)) >= self._most:
                break
        joined = Windows(
            **{f.name: np.concatenate([getattr(x, f.name) for x in parts]) for f in fields(Windows)}
        )
        return joined.take(np.lexsort((joined.start_step, joined.episode)))


def _fit(checkpoint: Checkpoint, cut: _Cutter, episodes: dict[str, NDArray[np.int64]]) -> Lineup:
    """Fit the rivals' probabilities and everyone's thresholds."""
    known = {}
    for name, stride in (("validation", STRIDE), ("calibration", _CALIBRATION_STRIDE)):
        windows = cut(episodes[name], stride)
        known[name] = windows.take(windows.is_known)
        _check_outcomes(known[name], name, checkpoint.spec.dt_s)
    return Lineup.fit(checkpoint, known["validation"], known["calibration"])


def _check_split(folder: Path, data: Dataset, episodes: dict[str, NDArray[np.int64]]) -> None:
    for name in ("validation", "calibration", "test"):
        if not len(episodes[name]):
            needed = math.ceil(1 / min(SPLIT_SHARES.values()))
            raise ValueError(
                f"{folder} holds {len(data)} episodes, of which the split leaves none for {name}: "
                f"record {needed} or more, of both that end and that do not"
            )


def _check_outcomes(windows: Windows, part: str, dt_s: float) -> None:
    ends, count = windows.ends, len(np.unique(windows.episode))
    if not ends.any() or ends.all():
        needed = "episodes that end" if not ends.any() else "episodes that go on for longer"
        raise ValueError(
            f"the {part} split has {len(windows)} windows of known outcome within "
            f"{windows.horizon * dt_s:g} s, of {count} episodes, {int(ends.sum())} of which "
            f"terminate: {needed} are needed, too"
        )
