"""The parts of an evaluation; each takes a trial and returns plain numbers for the report.

These need nothing but windows of a spec; `driving` holds those that need the simulator or physics.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.spec import Spec
from training.dataset.sources import Dataset
from training.dataset.windows import Windows
from training.evaluation.alarms import false_alarms, guarantee_scores, warning_scores
from training.evaluation.feature_errors import feature_errors
from training.evaluation.methods import MODEL, Lineup, model_risk
from training.evaluation.metrics import FALSE_ALARM_RATES, Risk, compare, reliability
from training.evaluation.physics import has_neighbours, neighbour_errors
from training.evaluation.state_errors import (
    Sums,
    compare_final_errors,
    deviation_sd,
    disagreement_scores,
    divergence,
    error_curves,
    errors_by_step,
    expected_scores,
    feature_scale,
    final_error_sums,
    nearest_error,
    overall_error,
    reward_scores,
    survivors,
)
from training.evaluation.verdicts import verdict_scores
from training.fitting.calibrate import Prediction, predict_windows

Floats = NDArray[np.floating[Any]]
Curves = dict[str, dict[str, Floats]]

STRIDE = 2
PERSISTENCE = "nothing changes"


@dataclass(frozen=True)
class Trial:
    """Windows of held-out episodes, and who is tried on them.

    Attributes:
        data: All episodes.
        lineup: The model and its rivals.
        all_windows: All windows of the episodes.
        all_predictions: The model's, of them.
        bootstrap: Resamples for intervals.
    """

    data: Dataset
    lineup: Lineup
    all_windows: Windows
    all_predictions: Prediction
    bootstrap: int

    @classmethod
    def of(cls, data: Dataset, lineup: Lineup, windows: Windows, bootstrap: int) -> Trial:
        """Return the trial of windows, predicted by the lineup's model."""
        prediction = predict_windows(lineup.checkpoint.ensemble, windows)
        return cls(data, lineup, windows, prediction, bootstrap)

    @property
    def has_both_outcomes(self) -> bool:
        """Whether some windows terminate and some do not."""
        ends = self.windows.ends
        return bool(ends.any() and not ends.all())

    @property
    def knows_physics(self) -> bool:
        """Whether the features are those of which physics can be computed."""
        return bool(self.lineup.rivals)

    @property
    def spec(self) -> Spec:
        """Of the states."""
        return self.lineup.checkpoint.spec

    @property
    def dt_s(self) -> float:
        """Length of a step."""
        return self.lineup.checkpoint.spec.dt_s

    @cached_property
    def windows(self) -> Windows:
        """Those of known outcome, N of them."""
        return self.all_windows.take(self.all_windows.is_known)

    @cached_property
    def prediction(self) -> Prediction:
        """The model's, of the windows of known outcome."""
        rows = self.all_windows.is_known
        parts = {f.name: getattr(self.all_predictions, f.name)[rows] for f in fields(Prediction)}
        return Prediction(**parts)

    @cached_property
    def scale(self) -> Floats:
        """[S] standard deviation of each feature at the start of windows."""
        return feature_scale(self.all_windows.states[:, 0], self.lineup.checkpoint.spec)


def methods(trial: Trial) -> tuple[dict[str, Any], dict[str, Risk], Curves]:
    """Run every method on a trial's windows.

    Returns:
        By method: thresholds, warnings, false alarms, errors of states where their physics is
        known; risks; mean errors by step of those that predict states.
    """
    windows, draws = trial.windows, trial.bootstrap
    alive = survivors(windows)
    true = windows.states[alive]
    names, episode = np.unique(windows.episode[alive], return_inverse=True)
    table: dict[str, Any] = {}
    risks: dict[str, Risk] = {}
    curves: Curves = {}
    sums: dict[str, Sums] = {}
    for name, states, risk in trial.lineup.forecasts(windows, trial.prediction):
        risks[name] = risk
        table[name] = {**_alarms(trial, name, risk), "states": None, "final_errors": None}
        if states is None:
            continue
        predicted = states[alive]
        if trial.knows_physics:
            table[name]["states"] = errors_by_step(predicted, true, trial.scale, trial.spec)
            curves[name] = error_curves(predicted, true, trial.spec)
            sums[name] = final_error_sums(
                predicted[:, -1], true[:, -1], episode, len(names), trial.spec
            )
        else:
            curves = still_curves(trial)
    if sums:
        for name, errors in compare_final_errors(sums, draws, MODEL).items():
            table[name]["final_errors"] = errors
    return table, risks, curves


def _alarms(trial: Trial, name: str, risk: Risk) -> dict[str, Any]:
    windows, labels, draws, dt_s = trial.windows, trial.data.labels, trial.bootstrap, trial.dt_s
    goes_on = labels.is_calm[windows.episode] & (labels.cause[windows.episode] == 0)
    thresholds = trial.lineup.thresholds[name]
    alarms = {rate: risk.score >= thresholds[rate] for rate in FALSE_ALARM_RATES}
    return {
        "thresholds": thresholds,
        "warnings": {
            rate: warning_scores(alarm, windows, labels, draws, dt_s)
            for rate, alarm in alarms.items()
        },
        "careful_alarms": {
            rate: false_alarms(alarm, windows, goes_on, STRIDE, draws, dt_s)
            for rate, alarm in alarms.items()
        },
    }


def termination(trial: Trial, risks: dict[str, Risk]) -> dict[str, Any]:
    """Compare risks on all windows, by environment, and without crashes that others provoke."""
    windows, labels = trial.windows, trial.data.labels
    parts = {"all": np.ones(len(windows), bool)}
    if len(labels.environments) > 1:
        for code in np.unique(windows.environment):
            parts[labels.environments[code]] = windows.environment == code
        parts["unprovoked"] = ~labels.provoked[windows.episode] | ~windows.ends
    return {
        name: compare_risks(
            trial, {n: risk.take(rows) for n, risk in risks.items()}, windows.take(rows)
        )
        for name, rows in parts.items()
        if windows.ends[rows].any()
    }


def compare_risks(trial: Trial, risks: dict[str, Risk], windows: Windows) -> dict[str, Any]:
    """Compare risks on windows, at the trial's thresholds."""
    return compare(risks, windows, trial.lineup.thresholds, trial.bootstrap, reference=MODEL)


def states(trial: Trial) -> dict[str, Any]:
    """Return the errors of every feature, and how many rollouts leave the truth."""
    windows, alive = trial.windows, survivors(trial.windows)
    recorded = deviation_sd(
        trial.all_predictions.states,
        trial.all_windows.states,
        trial.scale,
        trial.all_windows.valid,
    )
    return {
        "features": feature_errors(
            trial.prediction.states[alive],
            windows.take(alive),
            trial.lineup.checkpoint.spec,
            trial.bootstrap,
        ),
        "divergence": {"recorded": divergence(recorded)},
    }


def trust(trial: Trial) -> dict[str, Any]:
    """Return how far the model can be taken at its word."""
    windows, prediction, draws = trial.windows, trial.prediction, trial.bootstrap
    checkpoint = trial.lineup.checkpoint
    alive, trees = survivors(windows), checkpoint.expected_error
    predicted, true = prediction.states[alive], windows.states[alive]
    errors = {}
    if has_neighbours(trial.spec):
        errors["neighbour_m"] = nearest_error(predicted, true, trial.spec)
    overall = overall_error(predicted, true, trial.scale)
    errors["all_sd"] = overall, np.ones(overall.shape, bool)
    return {
        "uncertainty": disagreement_scores(
            prediction.disagreement[alive],
            prediction.uncertainty[alive],
            errors,
            windows.episode[alive],
            draws,
        ),
        "expected_error": expected_scores(
            None if trees is None else trees(windows.states[alive, 0]),
            errors,
            windows.episode[alive],
            draws,
        ),
        "guarantee": guarantee_scores(
            model_risk(prediction).probability,
            windows,
            checkpoint.calibration.notes,
            checkpoint.calibration.crash_threshold,
            trial.dt_s,
        ),
        "verdicts": verdict_scores(
            checkpoint, prediction, trial.data.labels, windows, STRIDE, draws
        ),
        "reward": reward_scores(prediction.rewards[alive], windows.rewards[alive]),
    }


def neighbours(trial: Trial) -> dict[str, Any] | None:
    """Return the errors of neighbours beside those of physics, see `neighbour_errors`.

    None of a spec without neighbours, and where baselines of physics are compared in whole.
    """
    spec, alive = trial.lineup.checkpoint.spec, survivors(trial.windows)
    if trial.knows_physics or not has_neighbours(spec):
        return None
    predicted = trial.prediction.states[alive]
    return neighbour_errors(spec, trial.windows.take(alive), predicted, trial.bootstrap)


def neighbour_curves(found: dict[str, Any]) -> Curves:
    """Return the mean errors by step of what `neighbours` returned."""
    return {
        name: {"neighbour position error, m": np.array(errors["by_step"])}
        for name, errors in found.items()
    }


def still_curves(trial: Trial) -> Curves:
    """Return the mean error of all features by step, beside that of a prediction of no change."""
    alive = survivors(trial.windows)
    true = trial.windows.states[alive]
    still = np.broadcast_to(true[:, :1], true.shape)
    return {
        who: {
            "error of all features, standard deviations": np.r_[
                0.0, overall_error(what, true, trial.scale).mean(0)
            ]
        }
        for who, what in ((MODEL, trial.prediction.states[alive]), (PERSISTENCE, still))
    }


def reliabilities(trial: Trial, risks: dict[str, Risk]) -> dict[str, Any]:
    """Return the reliability curve of every method."""
    windows, draws = trial.windows, trial.bootstrap
    return {
        name: reliability(x.probability, windows.ends, windows.episode, draws)
        for name, x in risks.items()
    }
