"""Scores of risks against what happened. Plain numbers in, plain JSON-ready dicts out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.dataset.windows import Windows
from training.evaluation.bootstrap import draw_counts, episode_share, percentile_interval

Floats = NDArray[np.floating[Any]]
Booleans = NDArray[np.bool_]

FALSE_ALARM_RATES = {"1": 0.01, "01": 0.001}
"""Rates at which alarms are compared, in the names of scores: 1 % and 0.1 %."""

SCORES = (
    "auroc",
    "average_precision",
    "recall_1",
    "recall_01",
    "false_alarms_1",
    "false_alarms_01",
    "brier",
    "ece",
    "ece_width",
)
"""What `Scorecard` gives, in order."""

ECE_BINS = 15
_PLOT_EDGES = (0, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99, 1)


@dataclass(frozen=True)
class Risk:
    """How likely a method finds it that N windows terminate.

    Attributes:
        score: [N], higher is riskier; what is ranked.
        probability: [N], the same as a calibrated probability.
    """

    score: Floats
    probability: Floats

    def take(self, rows: NDArray[np.integer[Any]] | Booleans) -> Risk:
        """Return that of some of the windows."""
        return Risk(self.score[rows], self.probability[rows])


def alarm_threshold(score: Floats, ends: Booleans, rate: float) -> float:
    """Return the lowest observed score that at most about `rate` of harmless windows reach."""
    return float(np.quantile(score[~ends], 1 - rate, method="higher"))


class Scorecard:
    """One method's scores on windows, quick to compute again for resampled episodes.

    Args:
        risk: The method's, of N windows.
        ends: [N], whether they terminate.
        episode: [N], 0 to the number of episodes - 1.
        thresholds: Alarm threshold at each of `FALSE_ALARM_RATES`.
    """

    def __init__(
        self,
        risk: Risk,
        ends: Booleans,
        episode: NDArray[np.integer[Any]],
        thresholds: Mapping[str, float],
    ) -> None:
        order = np.argsort(-risk.score, kind="stable")
        self.ends = ends[order]
        self.episode = episode[order]
        # Equal scores are one point of the curves: its last window stands for it.
        self.last = np.flatnonzero(np.diff(risk.score[order], append=-np.inf) != 0)
        alarms = [risk.score >= thresholds[name] for name in FALSE_ALARM_RATES]
        probability = risk.probability
        sums = [
            ends,
            ~ends,
            *(alarm & ends for alarm in alarms),
            *(alarm & ~ends for alarm in alarms),
            (probability - ends) ** 2,
        ]
        count = int(episode.max()) + 1 if len(episode) else 0
        self.sums = np.stack([np.bincount(episode, x, count) for x in sums], axis=1)
        # By bin: by how much the probabilities exceed what happens.
        self.surplus = [
            np.bincount(episode * ECE_BINS + bins, probability - ends, count * ECE_BINS).reshape(
                count, ECE_BINS
            )
            for bins in (_equal_mass(probability), _equal_width(probability))
        ]

    def scores(self, counts: Floats | None = None) -> NDArray[np.float64]:
        """Return `SCORES`, each episode counted as often as `counts` [episodes] asks.

        NaN where a score does not exist: without ends there is no recall.
        """
        counts = np.ones(len(self.sums)) if counts is None else counts
        sums = counts @ self.sums
        with np.errstate(invalid="ignore", divide="ignore"):
            total = sums[0] + sums[1]
            ece = [np.abs(counts @ surplus).sum() / total for surplus in self.surplus]
            return np.array(
                [
                    *self._ranking(counts),
                    *(sums[2:4] / sums[0]),
                    *(sums[4:6] / sums[1]),
                    sums[6] / total,
                    *ece,
                ]
            )

    def _ranking(self, counts: Floats) -> tuple[float, float]:
        """Return AUROC (trapezoids) and average precision (steps)."""
        weight = counts[self.episode]
        hits = np.cumsum(np.where(self.ends, weight, 0.0))[self.last]
        false = np.cumsum(np.where(self.ends, 0.0, weight))[self.last]
        if hits.size == 0 or hits[-1] == 0 or false[-1] == 0:
            return np.nan, np.nan
        gained = np.diff(hits, prepend=0.0)
        area = np.sum(np.diff(false, prepend=0.0) * (hits - gained / 2))
        precision = hits / np.maximum(hits + false, 1e-12)
        return area / (hits[-1] * false[-1]), float(np.sum(gained * precision) / hits[-1])


def _equal_mass(probability: Floats) -> NDArray[np.int64]:
    """Return the bin [N] of each probability, all bins holding as many."""
    rank = np.argsort(np.argsort(probability, kind="stable"), kind="stable")
    return np.asarray(rank * ECE_BINS // max(len(rank), 1))


def _equal_width(probability: Floats) -> NDArray[np.int64]:
    """Return the bin [N] of each probability, all bins as wide."""
    return np.minimum((np.asarray(probability) * ECE_BINS).astype(np.int64), ECE_BINS - 1)


def compare(
    risks: Mapping[str, Risk],
    windows: Windows,
    thresholds: Mapping[str, Mapping[str, float]],
    draws: int,
    *,
    reference: str,
) -> dict[str, Any]:
    """Score methods on the same windows, with intervals and differences by bootstrap.

    Episodes are drawn, the same ones for all methods. Thresholds and bins stay as they are. The
    interval of an ECE lies high: resampling adds noise, which an ECE counts as error.

    Args:
        risks: By method.
        windows: N windows of known outcome.
        thresholds: By method, then as `FALSE_ALARM_RATES`.
        draws: Number of resamples; 0 leaves intervals out.
        reference: The method from whose scores the others' are taken off.

    Returns:
        Counts of windows and episodes; by method its `scores`, their `intervals`, and the
        `lead` of the reference: the difference, and its interval.
    """
    names, index = np.unique(windows.episode, return_inverse=True)
    ends = windows.ends
    cards = {name: Scorecard(r, ends, index, thresholds[name]) for name, r in risks.items()}
    best = {name: card.scores() for name, card in cards.items()}
    counts = draw_counts(len(names), draws)
    drawn = {
        name: np.array([card.scores(row) for row in counts]).reshape(draws, len(SCORES))
        for name, card in cards.items()
    }
    methods = {}
    for name in cards:
        lead, lead_drawn = best[reference] - best[name], drawn[reference] - drawn[name]
        methods[name] = {
            "scores": _named(best[name]),
            "intervals": _intervals(drawn[name]),
            "lead": {"scores": _named(lead), "intervals": _intervals(lead_drawn)},
        }
    return {
        "windows": len(windows),
        "windows_that_end": int(ends.sum()),
        "episodes": len(names),
        "episodes_that_end": len(np.unique(windows.episode[ends])),
        "methods": methods,
    }


def _named(values: Floats) -> dict[str, float | None]:
    return {
        name: float(value) if np.isfinite(value) else None
        for name, value in zip(SCORES, values, strict=True)
    }


def _intervals(drawn: Floats) -> dict[str, list[float | None]]:
    if not len(drawn):
        return {}
    return {name: list(percentile_interval(drawn[:, i])) for i, name in enumerate(SCORES)}


def reliability(
    probability: Floats, ends: Booleans, episode: NDArray[np.integer[Any]], draws: int
) -> dict[str, list[Any]]:
    """Return mean predicted and observed share by bin, finer towards 0 and 1, and the counts.

    Args:
        probability: [N].
        ends: [N], whether the windows terminate.
        episode: [N].
        draws: Resamples of episodes for the intervals of the observed shares, see `episode_share`.
    """
    bins = np.digitize(probability, _PLOT_EDGES[1:-1])
    curve: dict[str, list[Any]] = {
        name: [] for name in ("predicted", "observed", "interval", "windows", "episodes")
    }
    for i in np.unique(bins):
        rows = bins == i
        share, interval, episodes = episode_share(ends[rows], episode[rows], draws)
        predicted, windows = float(probability[rows].mean()), int(rows.sum())
        values = (predicted, share, list(interval), windows, episodes)
        for name, value in zip(curve, values, strict=True):
            curve[name].append(value)
    return curve


def steps_to_end(windows: Windows) -> NDArray[np.int64]:
    """Return after how many steps each window terminates [N], 1 to H; 0 if it does not."""
    return np.where(windows.ends, windows.terminated.argmax(1) + 1, 0)


def lead_times(alarm: Booleans, windows: Windows, dt_s: float) -> NDArray[np.float64]:
    """Return the warning that each terminating episode got.

    Args:
        alarm: [N], whether the method called the window unsafe.
        windows: The N windows.
        dt_s: Length of a step.

    Returns:
        [episodes that terminate] seconds from the start of the first alarmed window that
        contains the event to the event, at most the horizon; 0 if none alarmed.
    """
    ahead = steps_to_end(windows)
    episodes, index = np.unique(windows.episode[ahead > 0], return_inverse=True)
    lead = np.zeros(len(episodes))
    np.maximum.at(lead, index, np.where(alarm, ahead * dt_s, 0.0)[ahead > 0])
    return lead
