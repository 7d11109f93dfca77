"""Predicted trajectory to safety verdict, with reasons. Pure functions, NumPy only.

The rules fail safe. A verdict is `safe` only if everything about it was computed, is finite, and
lies inside what the model is known to predict well. Comparisons are written so that one with NaN
never makes a verdict `safe`, whether it stands in the prediction, the limits or the threshold. In
order:

1. `unknown` if the input lies outside the states the model was trained on or cannot be, the
   prediction is not finite or holds hazards that are no probabilities, or the model was never
   calibrated: its numbers mean nothing then.
2. `unsafe` if the crash probability reaches the threshold.
3. `unknown` if the members disagree too much, their disagreement cannot be known, or the
   horizon is longer than the evaluated one: "no crash" cannot be trusted then.
4. `safe`.

All reasons that apply are listed, whichever of them decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import inf

import numpy as np
from numpy.typing import NDArray

from models.survival import log_step_survival

Floats = NDArray[np.floating]

SAFE, UNSAFE, UNKNOWN = "safe", "unsafe", "unknown"
VERDICTS = (SAFE, UNSAFE, UNKNOWN)

RULES = (
    "crash_probability",
    "input_out_of_range",
    "input_impossible",
    "not_finite",
    "not_calibrated",
    "uncertain",
    "uncertainty_unavailable",
    "horizon_not_evaluated",
)
"""Every rule that a `Reason` can name."""

_MAX_FEATURES_NAMED = 4


@dataclass(frozen=True)
class SafetyLimits:
    """What a verdict is judged by; part of a checkpoint.

    Attributes:
        crash_threshold: Crash probability from which a sequence is unsafe; None if the model
            was never calibrated.
        uncertainty_limit: Uncertainty up to which "no crash" is trusted; None if it was never
            calibrated or the served ensemble has one member.
        state_low: [S], smallest trained values; -inf where unknown.
        state_high: [S], largest trained values; inf where unknown.
        horizon: Longest evaluated number of steps.
        feature_names: S names of the state features.
        dt_s: Length of a step.
        slots: Columns of presence, dx and dy of each neighbour, [slots, 3].
        apart_m: Centres of two vehicles cannot be closer: a vehicle's width.
    """

    crash_threshold: float | None
    uncertainty_limit: float | None
    state_low: Floats
    state_high: Floats
    horizon: int
    feature_names: tuple[str, ...]
    dt_s: float
    slots: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 3), np.int64))
    apart_m: float = 0.0

    def __post_init__(self) -> None:
        dim = len(self.feature_names)
        for name in ("state_low", "state_high"):
            # Another size would be broadcast: one bound for all features.
            if np.shape(getattr(self, name)) != (dim,):
                raise ValueError(f"{name} has shape {np.shape(getattr(self, name))}, not ({dim},)")
        if self.slots.shape[1:] != (3,) or not np.isin(self.slots, range(dim)).all():
            raise ValueError(f"slots must be columns below {dim}, [slots, 3], got {self.slots}")


@dataclass(frozen=True)
class Reason:
    """A rule that fired, one of `RULES`, and what it saw."""

    rule: str
    message: str


@dataclass(frozen=True)
class Verdict:
    """Result of a safety check of one action sequence.

    Attributes:
        verdict: "safe", "unsafe" or "unknown".
        crash_probability: P(crash or off-road within the sequence); None if not finite.
        crash_probability_by_step: The same up to each step; H entries.
        time_to_crash_s: End of the step at which the probability reaches the threshold; None
            if it never does.
        uncertainty: Disagreement of the ensemble; None if not finite.
        threshold: Crash probability from which the sequence is unsafe; None if unknown.
        reasons: The rules that fired; empty if safe.
        horizon_s: Length of the sequence.
    """

    verdict: str
    crash_probability: float | None
    crash_probability_by_step: list[float | None]
    time_to_crash_s: float | None
    uncertainty: float | None
    threshold: float | None
    reasons: tuple[Reason, ...]
    horizon_s: float


def assess(
    states: Floats,
    dones: Floats,
    uncertainty: Floats,
    limits: SafetyLimits,
    *,
    threshold: float | None = None,
) -> list[Verdict]:
    """Judge K predicted sequences.

    Args:
        states: [K, H+1, S], the start included.
        dones: [K, H], hazards.
        uncertainty: [K].
        limits: The checkpoint's.
        threshold: Used instead of the checkpoint's. As that one, it counts only within [0, 1].

    Returns:
        K verdicts. Lowering a threshold within [0, 1] never turns one that is not safe into a safe
        one.

    Raises:
        ValueError: Shapes do not fit each other or the limits, or H is 0.
    """
    _check_shapes(states, dones, uncertainty, limits)
    threshold = limits.crash_threshold if threshold is None else threshold
    if threshold is not None and not 0 <= threshold <= 1:
        threshold = None
    log_alive = log_step_survival(dones)
    is_valid = np.logical_and(np.isfinite(states).all((1, 2)), (log_alive <= 0).all(1))
    # Cut at 0, above which nothing is valid: inf and -inf have no sum.
    by_step = (-np.expm1(np.cumsum(np.minimum(log_alive, 0), axis=1))).tolist()
    spreads = uncertainty.tolist()
    start = states[:, 0]
    # As when one state serves all sequences.
    is_same = len(start) == 1 or bool((start == start[:1]).all())
    inputs = (
        _input_reasons(start[:1], limits) * len(start) if is_same else _input_reasons(start, limits)
    )
    return [
        _judge(by_step[k], spreads[k], inputs[k], limits, threshold)
        if is_valid[k] and 0 <= spreads[k] < inf
        else _unjudged(inputs[k], limits, threshold, dones.shape[1])
        for k in range(len(dones))
    ]


def safest(verdicts: Sequence[Verdict]) -> int:
    """Return the index of the verdict with the lowest risk.

    Safe ones come before unknown ones, unknown before unsafe; then the lower crash probability
    wins, then the lower uncertainty, then the first.

    Raises:
        ValueError: There are none.
    """
    order = (SAFE, UNKNOWN, UNSAFE)

    def risk(index: int) -> tuple[int, float, float]:
        verdict = verdicts[index]
        numbers = (verdict.crash_probability, verdict.uncertainty)
        # Whose numbers are unknown, or NaN, has the highest risk of its kind.
        probability, uncertainty = (inf if x is None or not x >= 0 else x for x in numbers)
        return order.index(verdict.verdict), probability, uncertainty

    return min(range(len(verdicts)), key=risk)


def _check_shapes(states: Floats, dones: Floats, uncertainty: Floats, limits: SafetyLimits) -> None:
    """Refuse what NumPy would broadcast, and so judge by numbers of something else."""
    count, horizon = dones.shape
    needed = (count, horizon + 1, len(limits.feature_names))
    if states.shape != needed or uncertainty.shape != (count,) or not horizon:
        raise ValueError(
            f"states {states.shape}, dones {dones.shape} and uncertainty {uncertainty.shape} do "
            f"not fit each other and {len(limits.feature_names)} features"
        )


def _unjudged(
    input_reasons: list[Reason], limits: SafetyLimits, threshold: float | None, horizon: int
) -> Verdict:
    """Return the verdict on a prediction whose numbers are none."""
    reason = Reason(
        "not_finite", "the prediction holds values that are not finite, or are no probabilities"
    )
    return Verdict(
        verdict=UNKNOWN,
        crash_probability=None,
        crash_probability_by_step=[None] * horizon,
        time_to_crash_s=None,
        uncertainty=None,
        threshold=threshold,
        reasons=(*input_reasons, reason),
        horizon_s=_seconds(horizon, limits),
    )


def _judge(
    by_step: list[float],
    uncertainty: float,
    input_reasons: list[Reason],
    limits: SafetyLimits,
    threshold: float | None,
) -> Verdict:
    horizon, probability = len(by_step), by_step[-1]
    blocking = list(input_reasons)
    if threshold is None:
        blocking.append(
            Reason("not_calibrated", "the checkpoint has no calibrated crash threshold")
        )
    crash, time_to_crash_s = [], None
    if threshold is not None and not probability < threshold:
        # No probability is NaN here, so the last one reaches the threshold if none before does.
        steps = next(k for k, p in enumerate(by_step, start=1) if p >= threshold)
        time_to_crash_s = _seconds(steps, limits)
        crash.append(
            Reason(
                "crash_probability",
                f"crash probability {probability:.4f} reaches the threshold {threshold:.4f}, "
                f"first after {time_to_crash_s:.2f} s",
            )
        )
    doubts = _doubts(uncertainty, limits, horizon)
    verdict = UNKNOWN if blocking else UNSAFE if crash else UNKNOWN if doubts else SAFE
    return Verdict(
        verdict=verdict,
        crash_probability=probability,
        crash_probability_by_step=[*by_step],
        time_to_crash_s=time_to_crash_s,
        uncertainty=uncertainty,
        threshold=threshold,
        reasons=(*blocking, *crash, *doubts),
        horizon_s=_seconds(horizon, limits),
    )


def _seconds(steps: int, limits: SafetyLimits) -> float:
    # Rounded to nanoseconds: 12 * 0.05 is 0.6000000000000001 in binary.
    return round(steps * limits.dt_s, 9)


def _doubts(uncertainty: float, limits: SafetyLimits, horizon: int) -> list[Reason]:
    doubts = []
    limit = limits.uncertainty_limit
    if limit is None or not 0 <= limit < inf:
        doubts.append(
            Reason(
                "uncertainty_unavailable",
                "disagreement needs a calibrated ensemble of at least two members",
            )
        )
    elif not uncertainty <= limit:
        doubts.append(
            Reason(
                "uncertain",
                f"the members disagree by {uncertainty:.4f}, more than the limit {limit:.4f}",
            )
        )
    if not horizon <= limits.horizon < inf:
        doubts.append(
            Reason(
                "horizon_not_evaluated",
                f"{horizon} steps are more than the {limits.horizon} that were evaluated",
            )
        )
    return doubts


def _input_reasons(start: Floats, limits: SafetyLimits) -> list[list[Reason]]:
    """Say, for each start state [K, S], why the model's answer to it would mean nothing."""
    outside = _range_reasons(start, limits)
    slots = limits.slots.tolist()
    if len(start) == 1 and is_plainly_possible(start[0].tolist(), slots, limits.apart_m):
        return outside
    return [[*x, *y] for x, y in zip(outside, _impossible_reasons(start, limits), strict=True)]


def is_plainly_possible(
    state: Sequence[float], slots: Sequence[tuple[int, int, int]], apart_m: float
) -> bool:
    """Tell quickly whether each neighbour is there or not, and any two that are there are apart.

    Most states are; for one of them this takes a fifth of the time that NumPy takes to find no
    reason against it.

    Args:
        state: [S].
        slots: Columns of presence, dx and dy of each neighbour.
        apart_m: Centres of two vehicles cannot be closer.

    Returns:
        False also for states that are possible by a hair: those need a proper look.
    """
    if any(state[presence] not in (0.0, 1.0) for presence, _, _ in slots):
        return False
    there = [(state[dx], state[dy]) for presence, dx, dy in slots if state[presence]]
    # Apart along one axis is apart; the margin is for the rounding of float32.
    far = 1.001 * apart_m
    return all(
        abs(x1 - x2) > far or abs(y1 - y2) > far for (x1, y1), (x2, y2) in combinations(there, 2)
    )


def _range_reasons(start: Floats, limits: SafetyLimits) -> list[list[Reason]]:
    """Name, for each start state [K, S], the features outside what training covered."""
    inside = (start >= limits.state_low) & (start <= limits.state_high)
    if inside.all():
        return [[] for _ in start]
    reasons: list[list[Reason]] = []
    for k in range(len(start)):
        columns = np.flatnonzero(~inside[k])
        named = [
            f"{limits.feature_names[i]} = {start[k, i]:g} is outside "
            f"[{limits.state_low[i]:g}, {limits.state_high[i]:g}]"
            for i in columns[:_MAX_FEATURES_NAMED]
        ]
        if len(columns) > _MAX_FEATURES_NAMED:
            named.append(f"and {len(columns) - _MAX_FEATURES_NAMED} more features")
        reasons.append([Reason("input_out_of_range", "; ".join(named))] if named else [])
    return reasons


def _impossible_reasons(start: Floats, limits: SafetyLimits) -> list[list[Reason]]:
    """Say, for each start state [K, S], what cannot be: half a neighbour, two in one place."""
    presence, dx, dy = (start[:, columns] for columns in limits.slots.T)
    half = (presence != 0) & (presence != 1)
    with np.errstate(over="ignore", invalid="ignore"):  # infinitely far is apart, NaN is not
        gap = np.hypot(dx[:, :, None] - dx[:, None], dy[:, :, None] - dy[:, None])
    there = presence > 0
    together = np.triu(~(gap >= limits.apart_m) & there[:, :, None] & there[:, None], k=1)
    reasons: list[list[Reason]] = []
    for k in range(len(start)):
        named = [
            f"{limits.feature_names[column]} = {start[k, column]:g} is neither 0 nor 1"
            for column in limits.slots[half[k], 0]
        ]
        named += [
            f"neighbours {i + 1} and {j + 1} are in the same place"
            for i, j in zip(*np.nonzero(together[k]), strict=True)
        ]
        reasons.append(
            [Reason("input_impossible", "; ".join(named[:_MAX_FEATURES_NAMED]))] if named else []
        )
    return reasons
