"""Held-out windows as one kind of trackers sees them, and what all methods make of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.checkpoint import Checkpoint
from training.dataset.sources import Indices, Simulated
from training.dataset.windows import Windows
from training.evaluation.baselines import FULL_PHYSICS, STRAIGHT_PHYSICS, baselines_of
from training.evaluation.doubt import HOME_QUANTILE
from training.evaluation.judgements import STRIDE
from training.evaluation.methods import MODEL, Rival, Thresholds, fit_rivals, model_risk
from training.evaluation.metrics import FALSE_ALARM_RATES, Risk, alarm_threshold
from training.evaluation.preparing import CALIBRATION_STRIDE, Cutter
from training.evaluation.state_errors import (
    feature_scale,
    nearest_error,
    overall_error,
    position_errors,
    survivors,
)
from training.evaluation.verdicts import judge
from training.fitting.calibrate import Prediction, predict_windows

Floats = NDArray[np.floating[Any]]
Booleans = NDArray[np.bool_]

PHYSICS = (STRAIGHT_PHYSICS, FULL_PHYSICS)
JUDGED = (MODEL, *PHYSICS)
QUANTITIES = ("all_sd", "neighbour_m")
"""Errors of states: of all features in standard deviations, of the neighbours' places in m."""

EVERYTHING = -1
"""In place of a source: all of them."""


@dataclass(frozen=True)
class Calibrated:
    """What N calibration windows, seen by one kind of trackers, fix.

    Attributes:
        scores: [methods, N] of `JUDGED`, higher is riskier.
        ends: [N] whether they terminate.
        source: [N] index of the simulator.
        errors: [2, N] of the model's `QUANTITIES` after the last step; NaN where there are none.
        scale: [S] standard deviation of each feature.
    """

    scores: Floats
    ends: Booleans
    source: NDArray[np.int64]
    errors: Floats
    scale: Floats

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return its parts by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def thresholds(self, source: int) -> dict[str, Thresholds]:
        """Return everybody's alarm thresholds, see `thresholds_of`, on windows of a source."""
        return thresholds_of([self], source)

    def limits(self) -> dict[str, float | None]:
        """Return `HOME_QUANTILE` of each of `QUANTITIES`; None without errors."""
        known = [row[np.isfinite(row)] for row in self.errors]
        return {
            name: float(np.quantile(row, HOME_QUANTILE)) if len(row) else None
            for name, row in zip(QUANTITIES, known, strict=True)
        }


def thresholds_of(found: list[Calibrated], source: int) -> dict[str, Thresholds]:
    """Return the alarm threshold of each of `JUDGED` at each of `FALSE_ALARM_RATES`.

    Args:
        found: Windows that fix them, all together.
        source: Of which simulator only; `EVERYTHING`, and a source without harmless windows: of
            all.
    """
    scores = np.concatenate([each.scores for each in found], axis=1)
    ends, sources = (
        np.concatenate([getattr(each, name) for each in found]) for name in ("ends", "source")
    )
    rows = sources == source
    if not (rows & ~ends).any():
        rows = np.ones(len(ends), bool)
    return {
        method: {
            name: alarm_threshold(score[rows], ends[rows], rate)
            for name, rate in FALSE_ALARM_RATES.items()
        }
        for method, score in zip(JUDGED, scores, strict=True)
    }


@dataclass(frozen=True)
class Seen:
    """N windows of known outcome, and what all methods make of them.

    Attributes:
        data: Where they are from.
        windows: The windows.
        prediction: The model's.
        expected: [N] errors that it expects of itself, m; None if it expects none.
        risks: By method.
        verdicts: [N] the service's.
        places: By method: how far the neighbours are from where they were predicted after the last
            step [N, slots], in m.
        there: [N, slots] where a neighbour is.
        errors: By `QUANTITIES`: the model's errors after each step [N, H], and which exist [N, H].
        alive: [N] whether a window was driven to its end, where errors mean something.
    """

    data: Simulated
    windows: Windows
    prediction: Prediction
    expected: Floats | None
    risks: dict[str, Risk]
    verdicts: NDArray[np.str_]
    places: dict[str, Floats]
    there: Booleans
    errors: dict[str, tuple[Floats, Booleans]]
    alive: Booleans


class Sight:
    """One kind of trackers, through which all methods look.

    Args:
        data: Seen by these trackers.
        checkpoint: The model; its probabilities are calibrated already.
        cut: Cuts windows of the data.
        validation: Episodes that fix the probabilities of physics.
    """

    def __init__(
        self, data: Simulated, checkpoint: Checkpoint, cut: Cutter, validation: Indices
    ) -> None:
        self._data, self._checkpoint, self._cut = data, checkpoint, cut
        self._validation = validation
        self._rivals: Mapping[str, Rival] | None = None

    def rivals(self) -> Mapping[str, Rival]:
        """Return physics with probabilities."""
        if self._rivals is None:
            windows = self._known(self._validation, STRIDE)
            baselines = baselines_of(self._checkpoint.spec)
            self._rivals = fit_rivals(windows, {name: baselines[name] for name in PHYSICS})
        return self._rivals

    def _known(self, episodes: Indices, stride: int) -> Windows:
        windows = self._cut(episodes, stride)
        return windows.take(windows.is_known)

    def calibrated(self, episodes: Indices, scale: Floats | None = None) -> Calibrated:
        """Return what calibration episodes fix.

        Args:
            episodes: Nothing was fitted to them but the model's limits.
            scale: [S] units of errors; None: the deviations of these windows.
        """
        windows = self._known(episodes, CALIBRATION_STRIDE)
        prediction = predict_windows(self._checkpoint.ensemble, windows)
        if scale is None:
            scale = feature_scale(windows.states[:, 0], self._checkpoint.spec)
        errors = self._errors(windows, prediction, scale)
        exists, alive = np.stack([x[1][:, -1] for x in errors.values()]), survivors(windows)
        last = np.stack([x[0][:, -1] for x in errors.values()])
        scores = [model_risk(prediction).score]
        scores += [self.rivals()[name].forecast(windows)[1].score for name in PHYSICS]
        return Calibrated(
            scores=np.stack(scores).astype(np.float64),
            ends=windows.ends,
            source=self._data.store.source[windows.episode].astype(np.int64),
            errors=np.where(exists & alive, last, np.nan),
            scale=scale,
        )

    def seen(self, episodes: Indices, scale: Floats, known: Prediction | None = None) -> Seen:
        """Return what all methods make of episodes.

        Args:
            episodes: Held-out ones.
            scale: [S] units of errors.
            known: What the model predicts of them, if that is known.
        """
        windows = self._known(episodes, STRIDE)
        spec = self._checkpoint.spec
        prediction = known or predict_windows(self._checkpoint.ensemble, windows)
        risks, states = {MODEL: model_risk(prediction)}, {MODEL: prediction.states[:, -1]}
        for name, rival in self.rivals().items():
            predicted, risks[name] = rival.forecast(windows)
            assert predicted is not None, "physics predicts states"
            states[name] = predicted[:, -1].copy()  # a view would keep the others
        last = windows.states[:, -1]
        places = {name: position_errors(x, last, spec)[0] for name, x in states.items()}
        verdicts = judge(self._checkpoint, prediction, windows)
        expected = self._checkpoint.expected_error
        return Seen(
            data=self._data,
            windows=windows,
            prediction=prediction,
            expected=None if expected is None else expected(windows.states[:, 0]),
            risks=risks,
            verdicts=np.array([verdict.verdict for verdict in verdicts]),
            places=places,
            there=position_errors(last, last, spec)[1],
            errors=self._errors(windows, prediction, scale),
            alive=survivors(windows),
        )

    def _errors(
        self, windows: Windows, prediction: Prediction, scale: Floats
    ) -> dict[str, tuple[Floats, Booleans]]:
        """Return the errors of `QUANTITIES` after each step."""
        overall = overall_error(prediction.states, windows.states, scale)
        near = nearest_error(prediction.states, windows.states, self._checkpoint.spec)
        return {"all_sd": (overall, np.ones(overall.shape, bool)), "neighbour_m": near}
