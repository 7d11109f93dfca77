"""A checkpoint against baselines on held-out episodes: numbers, plots, a report.

Validation windows fix the baselines' probabilities, as they fixed the model's; calibration windows
fix everyone's thresholds. All that is reported comes from test windows, from roads that nobody was
fitted to, and from drives simulated for the purpose; see `judgements`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from models.checkpoint import Checkpoint, checkpoint_version, load_checkpoint
from models.highway import highway_spec
from training.dataset.store import EpisodeStore, load_store
from training.dataset.windows import Windows, make_windows, split_episodes
from training.evaluation import judgements
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


def evaluate(
    checkpoint_folder: Path,
    store_folder: Path,
    report: Path,
    *,
    bootstrap: int = 200,
    branch_states: int = 240,
    provoked_transitions: int = 80_000,
) -> dict[str, Any]:
    """Evaluate a checkpoint and write the report.

    Args:
        checkpoint_folder: What to evaluate; not written to, see `write_metrics`.
        store_folder: Finished dataset; the checkpoint's own split of it is used.
        report: Folder for `report.json`, `report.md` and the plots; created if missing.
        bootstrap: Resamples for the 95 % intervals; 0 leaves intervals out.
        branch_states: States from which other futures are simulated; 0 leaves those out.
        provoked_transitions: To simulate among sudden drivers; 0 leaves those out.

    Returns:
        What `report.json` holds.

    Raises:
        ValueError: The checkpoint has other features than the dataset, or the dataset too few
            episodes.
    """
    checkpoint, store = load_checkpoint(checkpoint_folder), load_store(store_folder)
    _check_spec(checkpoint)
    seed = int(checkpoint.training.get("split_seed", 0))
    episodes = split_episodes(store, seed)
    horizon = checkpoint.calibration.horizon or DEFAULT_HORIZON
    dataset = {
        "fingerprint": store.fingerprint,
        "split_seed": seed,
        "horizon": horizon,
        "stride": STRIDE,
        "episodes": {name: len(part) for name, part in episodes.items()},
    }
    version = checkpoint_version(checkpoint_folder)
    metrics: dict[str, Any] = {"model_version": version, "dataset": dataset}
    with _one_thread(), tqdm(total=9, desc="evaluating", unit="part", disable=None) as bar:
        lineup = _fit(checkpoint, store, episodes, horizon)
        bar.update()
        test = _trial(store, lineup, episodes["test"], horizon, bootstrap)
        _check_outcomes(test.windows, "test")
        bar.update()
        found, risks, curves = _judge(test, bar)
        metrics |= found
        metrics["unseen"] = None
        if len(episodes["unseen"]):
            unseen = _trial(store, lineup, episodes["unseen"], horizon, bootstrap)
            metrics["unseen"] = judgements.elsewhere(unseen, metrics["termination"])
        judgements.provoked(test, provoked_transitions, metrics["termination"])
        bar.update()
        metrics["branches"] = judgements.branches(test, branch_states, metrics["termination"])
        bar.update()
        metrics = rounded(metrics)
        report.mkdir(parents=True, exist_ok=True)
        write_report(report, metrics)
        draw_all(report, metrics, test, risks, curves)
        bar.update()
    return metrics


def _judge(test: Trial, bar: tqdm) -> tuple[dict[str, Any], dict[str, Risk], Curves]:
    """Return all results on test windows; risks and mean errors by step, by method."""
    metrics: dict[str, Any] = {}
    metrics["methods"], risks, curves = judgements.methods(test)
    bar.update()
    metrics["termination"] = judgements.termination(test, risks)
    metrics["reliability"] = judgements.reliabilities(test, risks)
    bar.update()
    metrics |= judgements.trust(test)
    metrics["corruptions"] = judgements.corruptions(test)
    bar.update()
    metrics["divergence"] = judgements.divergences(test)
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
