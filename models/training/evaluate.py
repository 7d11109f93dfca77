"""A checkpoint against baselines on held-out episodes: numbers, plots, a report.

Thresholds come from validation windows, everything reported from test windows. Only windows
whose outcome within the horizon is known are scored.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.checkpoint import Checkpoint, checkpoint_version, load_checkpoint
from models.outcomes import crash_probability, crash_probability_by_step
from models.safety import UNKNOWN, UNSAFE, assess
from models.spec import highway_spec
from models.training import plots
from models.training.baselines import BASELINES
from models.training.calibrate import Prediction, predict_windows
from models.training.dataset import Windows, make_windows, split_episodes
from models.training.metrics import (
    alarm_threshold,
    bootstrap_intervals,
    lead_times,
    neighbour_error,
    reliability,
    reward_scores,
    rollout_scores,
    summarise_leads,
    termination_scores,
    uncertainty_scores,
)
from models.training.report import model_card_table, report_text, write_json, write_metrics
from models.training.store import EpisodeStore, load_store

__all__ = ["evaluate", "model_card_table", "write_metrics"]

MODEL = "model"
STRIDE = 2
DEFAULT_HORIZON = 16

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class MethodResult:
    """How one method did on the test windows.

    Attributes:
        metrics: For the report.
        score: [N] risk of each test window.
        curves: Mean error by step, by quantity; empty if it predicts no states.
    """

    metrics: dict[str, Any]
    score: Floats
    curves: dict[str, Floats]


def evaluate(
    checkpoint_folder: Path, store_folder: Path, report: Path, *, bootstrap: int = 200
) -> dict[str, Any]:
    """Evaluate a checkpoint and write the report.

    Args:
        checkpoint_folder: What to evaluate; not written to, see `write_metrics`.
        store_folder: Finished dataset; the checkpoint's own split of it is used.
        report: Folder for `report.json`, `report.md` and the plots; created if missing.
        bootstrap: Resamples for the 95 % intervals; 0 leaves intervals out.

    Returns:
        What `report.json` holds.

    Raises:
        ValueError: The checkpoint has other features than the dataset, or the dataset too few
            episodes.
    """
    checkpoint, store = load_checkpoint(checkpoint_folder), load_store(store_folder)
    _check_spec(checkpoint)
    horizon = checkpoint.calibration.horizon or DEFAULT_HORIZON
    seed = int(checkpoint.training.get("split_seed", 0))
    parts = split_episodes(store, seed)
    validation = _known_windows(store, parts["validation"], horizon)
    test = _known_windows(store, parts["test"], horizon)
    _check_outcomes(validation, "validation")
    _check_outcomes(test, "test")

    prediction = predict_windows(checkpoint.ensemble, test)
    results = _compare(checkpoint, prediction, validation, test, bootstrap)
    metrics: dict[str, Any] = {
        "model_version": checkpoint_version(checkpoint_folder),
        "dataset": _describe(store, parts["test"], test, seed),
        "methods": {name: result.metrics for name, result in results.items()},
        "model": _model_scores(prediction, test),
        "environments": _by_environment(results, store, test),
        "verdicts": _verdicts(checkpoint, prediction, store, test),
    }
    report.mkdir(parents=True, exist_ok=True)
    write_json(report / "report.json", metrics)
    (report / "report.md").write_text(report_text(metrics))
    _draw(report, results, metrics, prediction, test)
    return metrics


def _check_spec(checkpoint: Checkpoint) -> None:
    expected = highway_spec()
    if checkpoint.spec != expected:
        raise ValueError(
            f"the checkpoint's spec {checkpoint.spec.name!r} is not the dataset's {expected.name!r}"
        )


def _check_outcomes(windows: Windows, part: str) -> None:
    if not windows.ends.any() or windows.ends.all():
        raise ValueError(
            f"the {part} split has {len(windows)} windows of known outcome, "
            f"{int(windows.ends.sum())} of which terminate; collect more episodes"
        )


def _known_windows(store: EpisodeStore, episodes: NDArray[np.int64], horizon: int) -> Windows:
    windows = make_windows(store, episodes, horizon, STRIDE)
    return windows.take(np.flatnonzero(windows.is_known))


def _survivors(windows: Windows) -> NDArray[np.bool_]:
    """Return which windows were driven to their end, where state errors mean something."""
    return windows.valid[:, -1] & ~windows.ends


def _risk(prediction: Prediction) -> Floats:
    """Return the crash probability [N]; a prediction that is not finite counts as certain."""
    return np.nan_to_num(crash_probability(prediction.dones), nan=1.0)


def _compare(
    checkpoint: Checkpoint,
    prediction: Prediction,
    validation: Windows,
    test: Windows,
    bootstrap: int,
) -> dict[str, MethodResult]:
    """Run the model and every baseline."""
    on_validation = _risk(predict_windows(checkpoint.ensemble, validation))
    threshold = alarm_threshold(on_validation, validation.ends)
    score = _risk(prediction)
    results = {MODEL: _judge(prediction.states, score, threshold, test, bootstrap)}
    for name, predict in BASELINES.items():
        threshold = alarm_threshold(predict(validation).score, validation.ends)
        guess = predict(test)
        results[name] = _judge(guess.states, guess.score, threshold, test, bootstrap)
    return results


def _judge(
    states: NDArray[np.float32] | None,
    score: Floats,
    threshold: float,
    test: Windows,
    bootstrap: int,
) -> MethodResult:
    """Score predicted states [N, H+1, S], if any, and risk [N] on the test windows."""
    metrics = {
        "termination": termination_scores(score, test, threshold),
        "intervals": bootstrap_intervals(score, test, threshold, bootstrap),
        "rollout": None,
    }
    curves: dict[str, Floats] = {}
    if states is not None:
        rows = _survivors(test)
        predicted, true = states[rows], test.states[rows]
        metrics["rollout"] = rollout_scores(predicted, true)
        position, _, there = neighbour_error(predicted, true)
        error = np.abs(predicted - true)
        curves = {
            "neighbour position error, m": np.sum(position * there, (0, 2)) / there.sum((0, 2)),
            "speed error, m/s": error[..., 0].mean(0),
            "edge distance error, m": error[..., 3:5].mean((0, 2)),
        }
    return MethodResult(metrics, score, curves)


def _describe(
    store: EpisodeStore, episodes: NDArray[np.int64], test: Windows, seed: int
) -> dict[str, Any]:
    return {
        "fingerprint": store.fingerprint,
        "split_seed": seed,
        "horizon": test.horizon,
        "stride": STRIDE,
        "test_episodes": len(episodes),
        "test_episodes_that_end": int(store.terminated[episodes].sum()),
        "test_windows": len(test),
        "test_windows_that_end": int(test.ends.sum()),
    }


def _end_errors(prediction: Prediction, test: Windows) -> tuple[Floats, Floats]:
    """Return uncertainty and mean neighbour error at the end of windows that have neighbours."""
    position, _, there = neighbour_error(prediction.states[:, -1], test.states[:, -1])
    rows = _survivors(test) & there.any(1)
    error = np.sum(position * there, 1)[rows] / there.sum(1)[rows]
    return prediction.uncertainty[rows], error


def _model_scores(prediction: Prediction, test: Windows) -> dict[str, Any]:
    """Return what only the model has: probabilities, rewards, uncertainty."""
    rows = _survivors(test)
    return {
        "calibration": reliability(_risk(prediction), test.ends),
        "reward": reward_scores(prediction.rewards[rows], test.rewards[rows]),
        "uncertainty": uncertainty_scores(*_end_errors(prediction, test)),
    }


def _by_environment(
    results: dict[str, MethodResult], store: EpisodeStore, test: Windows
) -> dict[str, Any]:
    table = {}
    for code in np.unique(test.environment):
        rows = np.flatnonzero(test.environment == code)
        part = test.take(rows)
        table[store.environment_names[code]] = {
            name: termination_scores(
                result.score[rows], part, result.metrics["termination"]["threshold"]
            )
            for name, result in results.items()
        }
    return table


def _verdicts(
    checkpoint: Checkpoint, prediction: Prediction, store: EpisodeStore, test: Windows
) -> dict[str, Any]:
    """Return how often the service's own rules, at the checkpoint's limits, say what."""
    assessed = assess(
        prediction.states, prediction.dones, prediction.uncertainty, checkpoint.limits
    )
    verdicts = np.array([verdict.verdict for verdict in assessed])
    unsafe, unknown = verdicts == UNSAFE, verdicts == UNKNOWN
    cause = store.cause[test.episode]

    def rates(rows: NDArray[np.bool_]) -> dict[str, Any]:
        harmless, part = rows & ~test.ends, test.take(np.flatnonzero(rows))
        return {
            "windows": int(rows.sum()),
            "unsafe_of_harmless": float(unsafe[harmless].mean()) if harmless.any() else None,
            "unknown": float(unknown[rows].mean()),
            "warned": summarise_leads(lead_times(unsafe[rows], part)),
        }

    return {
        "crash_threshold": checkpoint.calibration.crash_threshold,
        "behaviours": {
            store.behaviour_names[code]: rates(test.behaviour == code)
            for code in np.unique(test.behaviour)
        },
        "causes": {
            name: rates(cause == code)
            for code, name in ((1, "crash"), (2, "off_road"))
            if (cause == code).any()
        },
    }


def _draw(
    folder: Path,
    results: dict[str, MethodResult],
    metrics: dict[str, Any],
    prediction: Prediction,
    test: Windows,
) -> None:
    """Write all plots."""
    calibration = metrics["model"]["calibration"]
    plots.plot_reliability(
        calibration["predicted"], calibration["observed"], folder / "reliability.png"
    )
    scores = {name: result.score for name, result in results.items()}
    plots.plot_roc(scores, test.ends, folder / "roc.png")
    leads: dict[str, Floats] = {
        name: lead_times(result.score >= result.metrics["termination"]["threshold"], test)
        for name, result in results.items()
    }
    plots.plot_lead_times(leads, folder / "lead_time.png")
    curves = {name: result.curves for name, result in results.items() if result.curves}
    plots.plot_errors_by_step(curves, folder / "errors_by_step.png")
    by_step = crash_probability_by_step(prediction.dones)
    examples = plots.pick_examples(test, prediction.states, by_step)
    plots.plot_trajectories(examples, folder / "trajectories.png")
    plots.plot_uncertainty(*_end_errors(prediction, test), folder / "uncertainty.png")
