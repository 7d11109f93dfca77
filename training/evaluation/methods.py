"""The model and its rivals on equal terms: everyone gives a risk, a probability and alarms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

from models.checkpoint import Checkpoint
from models.survival import crash_probability
from training.dataset.windows import Windows
from training.evaluation.baselines import BASELINES, Baseline, baselines_of
from training.evaluation.metrics import FALSE_ALARM_RATES, Risk, alarm_threshold
from training.fitting.calibrate import Prediction, predict_windows

MODEL = "model"

Thresholds = dict[str, float]
Forecast = tuple[str, NDArray[np.float32] | None, Risk]
"""A method's name, its states [N, H+1, S] if it predicts any, and its risk."""


def model_risk(prediction: Prediction) -> Risk:
    """Return the model's crash probabilities; one that is not finite counts as certain."""
    risk = np.nan_to_num(crash_probability(prediction.dones), nan=1.0)
    return Risk(risk, risk)


@dataclass(frozen=True)
class Rival:
    """A baseline with probabilities.

    Attributes:
        predict: One of what `baselines_of` returns.
        scale: Score to probability: an isotonic fit on validation windows. It suits these scores
            better than a logistic fit, with half the calibration error.
    """

    predict: Baseline
    scale: IsotonicRegression

    def forecast(self, windows: Windows) -> tuple[NDArray[np.float32] | None, Risk]:
        """Return predicted states [N, H+1, S], if it predicts any, and the risk."""
        prediction = self.predict(windows)
        probability = self.scale.predict(prediction.score).astype(np.float64)
        return prediction.states, Risk(prediction.score, probability)


@dataclass(frozen=True)
class Lineup:
    """All methods, ready to predict any windows.

    Attributes:
        checkpoint: The model.
        rivals: By name.
        thresholds: By method, the alarm threshold at each of `FALSE_ALARM_RATES`.
    """

    checkpoint: Checkpoint
    rivals: dict[str, Rival]
    thresholds: dict[str, Thresholds]

    @classmethod
    def fit(cls, checkpoint: Checkpoint, validation: Windows, calibration: Windows) -> Lineup:
        """Return the model and all baselines that know its features.

        Args:
            checkpoint: The model; its probabilities are calibrated already.
            validation: Windows of known outcome that fix the rivals' probabilities.
            calibration: Windows of known outcome that fix everyone's thresholds.
        """
        lineup = cls(checkpoint, fit_rivals(validation, baselines_of(checkpoint.spec)), {})
        thresholds = {
            name: thresholds_of(risk, calibration)
            for name, risk in lineup.risks(calibration).items()
        }
        return cls(checkpoint, lineup.rivals, thresholds)

    def forecasts(
        self, windows: Windows, prediction: Prediction | None = None
    ) -> Iterator[Forecast]:
        """Yield what each method predicts for N windows, the model first.

        Args:
            windows: N windows.
            prediction: The model's of these windows, if there is one already.
        """
        prediction = prediction or predict_windows(self.checkpoint.ensemble, windows)
        yield MODEL, prediction.states, model_risk(prediction)
        for name, rival in self.rivals.items():
            yield name, *rival.forecast(windows)

    def risks(self, windows: Windows, prediction: Prediction | None = None) -> dict[str, Risk]:
        """Return `forecasts` without states, by method."""
        return {name: risk for name, _, risk in self.forecasts(windows, prediction)}


def fit_rivals(
    validation: Windows, baselines: Mapping[str, Baseline] = BASELINES
) -> dict[str, Rival]:
    """Return baselines, their probabilities fitted to windows of known outcome."""
    rivals = {}
    for name, predict in baselines.items():
        scale = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
        rivals[name] = Rival(predict, scale.fit(predict(validation).score, validation.ends))
    return rivals


def thresholds_of(risk: Risk, windows: Windows) -> Thresholds:
    """Return the alarm threshold at each of `FALSE_ALARM_RATES`, from windows of known outcome."""
    return {
        name: alarm_threshold(risk.score, windows.ends, rate)
        for name, rate in FALSE_ALARM_RATES.items()
    }
