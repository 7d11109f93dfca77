"""The parts of an evaluation; each takes a trial and returns plain numbers for the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.backends.cpus import usable_cpus
from training.dataset.collect import ENVIRONMENT_SHARES, collect
from training.dataset.store import EpisodeStore, load_store
from training.dataset.windows import UNSEEN_ENVIRONMENT, Windows, make_windows
from training.evaluation.alarms import false_alarms, guarantee_scores, warning_scores
from training.evaluation.baselines import BASELINES, FULL_PHYSICS
from training.evaluation.branches import choice_scores, make_branches
from training.evaluation.methods import MODEL, Lineup, model_risk
from training.evaluation.metrics import FALSE_ALARM_RATES, Risk, compare, reliability
from training.evaluation.state_errors import (
    Sums,
    compare_final_errors,
    deviation_sd,
    disagreement_scores,
    divergence,
    error_curves,
    errors_by_step,
    errors_to_announce,
    feature_scale,
    final_error_sums,
    reward_scores,
    survivors,
)
from training.evaluation.stress import adversarial_actions, random_actions
from training.evaluation.verdicts import corruption_scores, one_an_episode, verdict_scores
from training.fitting.calibrate import Prediction, predict_windows
from training.simulation.behaviours import SEQUENCE_KINDS

Floats = NDArray[np.floating[Any]]
Curves = dict[str, dict[str, Floats]]

STRIDE = 2
SHAKEN_WINDOWS = 20_000
ATTACKED_WINDOWS = 512
CORRUPTED_WINDOWS = 1024
PROVOKED_SEED = 9_000_000
"""Of the drives among sudden drivers; no data set is expected to be collected with it."""

_TRAINED_SHARES = {k: x for k, x in ENVIRONMENT_SHARES.items() if k != UNSEEN_ENVIRONMENT}


@dataclass(frozen=True)
class Trial:
    """Windows of held-out episodes, and who is tried on them.

    Attributes:
        store: All episodes.
        lineup: The model and its rivals.
        all_windows: All windows of the episodes.
        all_predictions: The model's, of them.
        bootstrap: Resamples for intervals.
    """

    store: EpisodeStore
    lineup: Lineup
    all_windows: Windows
    all_predictions: Prediction
    bootstrap: int

    @classmethod
    def of(cls, store: EpisodeStore, lineup: Lineup, windows: Windows, bootstrap: int) -> Trial:
        """Return the trial of windows, predicted by the lineup's model."""
        prediction = predict_windows(lineup.checkpoint.ensemble, windows)
        return cls(store, lineup, windows, prediction, bootstrap)

    @property
    def has_both_outcomes(self) -> bool:
        """Whether some windows terminate and some do not."""
        ends = self.windows.ends
        return bool(ends.any() and not ends.all())

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
        return feature_scale(self.all_windows.states[:, 0])


def methods(trial: Trial) -> tuple[dict[str, Any], dict[str, Risk], Curves]:
    """Run every method on a trial's windows.

    Returns:
        By method: thresholds, warnings, false alarms, errors of states; risks; mean errors by
        step of those that predict states.
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
        if states is not None:
            predicted = states[alive]
            table[name]["states"] = errors_by_step(predicted, true, trial.scale)
            curves[name] = error_curves(predicted, true)
            sums[name] = final_error_sums(predicted[:, -1], true[:, -1], episode, len(names))
    for name, errors in compare_final_errors(sums, draws, MODEL).items():
        table[name]["final_errors"] = errors
    return table, risks, curves


def _alarms(trial: Trial, name: str, risk: Risk) -> dict[str, Any]:
    windows, store, draws = trial.windows, trial.store, trial.bootstrap
    is_careful = windows.behaviour == store.behaviour_names.index("careful")
    goes_on = is_careful & (store.terminated[windows.episode] == 0)
    thresholds = trial.lineup.thresholds[name]
    cause = store.cause[windows.episode]
    alarms = {rate: risk.score >= thresholds[rate] for rate in FALSE_ALARM_RATES}
    return {
        "thresholds": thresholds,
        "warnings": {
            rate: warning_scores(alarm, windows, cause, draws) for rate, alarm in alarms.items()
        },
        "careful_alarms": {
            rate: false_alarms(alarm, windows, goes_on, STRIDE, draws)
            for rate, alarm in alarms.items()
        },
    }


def termination(trial: Trial, risks: dict[str, Risk]) -> dict[str, Any]:
    """Compare risks on all windows, by environment, and without crashes that others provoke."""
    windows, store = trial.windows, trial.store
    parts = {"all": np.ones(len(windows), bool)}
    for code in np.unique(windows.environment):
        parts[store.environment_names[code]] = windows.environment == code
    parts["unprovoked"] = (store.provoked[windows.episode] == 0) | ~windows.ends
    return {
        name: _compare(trial, {n: risk.take(rows) for n, risk in risks.items()}, windows.take(rows))
        for name, rows in parts.items()
        if windows.ends[rows].any()
    }


def _compare(trial: Trial, risks: dict[str, Risk], windows: Windows) -> dict[str, Any]:
    return compare(risks, windows, trial.lineup.thresholds, trial.bootstrap, reference=MODEL)


def elsewhere(unseen: Trial) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Judge all methods on roads that no one was fitted to.

    Args:
        unseen: Windows there.

    Returns:
        The results, and the comparison of risks; None if all windows have the same outcome.
    """
    if not unseen.has_both_outcomes:
        return None, None
    table, risks, _ = methods(unseen)
    results = {"environment": UNSEEN_ENVIRONMENT, "methods": table, **trust(unseen)}
    return results, _compare(unseen, risks, unseen.windows)


def provoked(
    trial: Trial, transitions: int, folder: Path, on_share: Callable[[float], object]
) -> dict[str, Any] | None:
    """Judge all methods on crashes with cars that did something sudden.

    On the roads of the data set are drivers of whom every one has a sudden manoeuvre in store.
    Their harmless windows stay beside the crashes; windows that end for other reasons are left out.

    Args:
        trial: Whose lineup is judged.
        transitions: To simulate, at least; 0 for none.
        folder: Working folder; another call with the same arguments goes on from what is there.
        on_share: Called with the share of them that is done, now and then.

    Returns:
        The comparison of risks; None if there is no such crash.
    """
    if transitions == 0:
        return None
    collect(
        folder,
        transitions=transitions,
        seed=PROVOKED_SEED,
        environments=_TRAINED_SHARES,
        surprising_share=1.0,
        progress=False,
        on_transitions=lambda done: on_share(min(1.0, done / transitions)),
    )
    store = load_store(folder)
    episodes = np.arange(len(store.provoked))
    windows = make_windows(store, episodes, trial.windows.horizon, STRIDE)
    is_provoked = store.provoked[windows.episode] > 0
    windows = windows.take(windows.is_known & (is_provoked | ~windows.ends))
    if not windows.ends.any():
        return None
    return _compare(trial, trial.lineup.risks(windows), windows)


def branches(
    trial: Trial, states: int, folder: Path, on_share: Callable[[float], object]
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Judge all methods on several futures of the same states.

    Args:
        trial: Whose lineup is judged.
        states: Number of states; 0 for none.
        folder: Working folder; another call with the same arguments goes on from what is there.
        on_share: Called with the share of them that is done, now and then.

    Returns:
        The choices between futures, and the comparison of risks; None without states.
    """
    if states == 0:
        return None, None
    windows = make_branches(
        folder,
        states,
        trial.windows.horizon,
        _TRAINED_SHARES,
        workers=usable_cpus(),
        on_share=on_share,
    )
    risks = trial.lineup.risks(windows)
    return choice_scores(risks, windows, trial.bootstrap), _compare(trial, risks, windows)


def divergences(trial: Trial) -> dict[str, Any]:
    """Count rollouts that leave the truth, or physics where nobody knows the truth.

    Recorded actions of all windows, against the truth where it was recorded; then random and
    adversarial actions on some, against `FULL_PHYSICS`.
    """
    recorded = deviation_sd(
        trial.all_predictions.states,
        trial.all_windows.states,
        trial.scale,
        trial.all_windows.valid,
    )
    checkpoint = trial.lineup.checkpoint
    some = one_an_episode(trial.windows, ATTACKED_WINDOWS)
    attacked = adversarial_actions(checkpoint.ensemble, checkpoint.spec, some, trial.scale)
    step = -(-len(trial.all_windows) // SHAKEN_WINDOWS)
    shaken, kinds = random_actions(trial.all_windows.take(slice(None, None, step)))
    deviation = _from_physics(trial, shaken)
    return {
        "recorded": divergence(recorded),
        **{kind: divergence(deviation[kinds == i]) for i, kind in enumerate(SEQUENCE_KINDS)},
        "adversarial": divergence(_from_physics(trial, attacked)),
    }


def _from_physics(trial: Trial, windows: Windows) -> Floats:
    """Return how far the model gets from physics on windows [N], in standard deviations."""
    predicted = predict_windows(trial.lineup.checkpoint.ensemble, windows).states
    physics = BASELINES[FULL_PHYSICS](windows).states
    assert physics is not None, "physics predicts states"
    return deviation_sd(predicted, physics, trial.scale, np.ones_like(windows.valid))


def trust(trial: Trial) -> dict[str, Any]:
    """Return how far the model can be taken at its word."""
    windows, prediction, draws = trial.windows, trial.prediction, trial.bootstrap
    checkpoint = trial.lineup.checkpoint
    alive = survivors(windows)
    errors = errors_to_announce(prediction.states[alive], windows.states[alive], trial.scale)
    return {
        "uncertainty": disagreement_scores(
            prediction.disagreement[alive],
            prediction.uncertainty[alive],
            errors,
            windows.episode[alive],
            draws,
        ),
        "guarantee": guarantee_scores(
            model_risk(prediction).probability,
            windows,
            checkpoint.calibration.notes,
            checkpoint.calibration.crash_threshold,
        ),
        "verdicts": verdict_scores(checkpoint, prediction, trial.store, windows, STRIDE, draws),
        "reward": reward_scores(prediction.rewards[alive], windows.rewards[alive]),
    }


def corruptions(trial: Trial) -> dict[str, Any]:
    """Return whether the model notices wrong states."""
    some = one_an_episode(trial.windows, CORRUPTED_WINDOWS)
    return corruption_scores(trial.lineup.checkpoint, some, trial.bootstrap)


def reliabilities(trial: Trial, risks: dict[str, Risk]) -> dict[str, Any]:
    """Return the reliability curve of every method."""
    return {name: reliability(x.probability, trial.windows.ends) for name, x in risks.items()}
