"""Predicted trajectory to safety verdict, with reasons. Pure functions, NumPy only.

The rules fail safe. A verdict is `safe` only if everything about it was computed, is finite, and
lies inside what the model is known to predict well. Comparisons are written so that one with NaN
never makes a verdict `safe`, whether it stands in the prediction, the limits or the threshold. In
order:

1. `unknown` if the input lies outside the states the model was trained on, cannot be, or is a crash
   or off the road already, the prediction is not finite or holds hazards that
   are no probabilities, or the model was never calibrated: its numbers mean nothing then.
2. `unsafe` if the crash probability reaches the threshold.
3. `unknown` if the crash probability is near the threshold, the predicted motion or that of
   physics alone ends in contact all the same, the members disagree too much or too large an error
   is expected, either cannot be known, or the horizon is longer than the evaluated one: "no crash"
   cannot be trusted then.
4. `safe`.

All reasons that apply are listed, whichever of them decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from models.safety.contacts import contact_reasons
from models.safety.limits import Floats, Reason, SafetyLimits
from models.safety.plausibility import faults_of
from models.survival import log_step_survival

SAFE, UNSAFE, UNKNOWN = "safe", "unsafe", "unknown"
VERDICTS = (SAFE, UNSAFE, UNKNOWN)

_MAX_FEATURES_NAMED = 4


@dataclass(frozen=True)
class Verdict:
    """Result of a safety check of one action sequence.

    Attributes:
        verdict: "safe", "unsafe" or "unknown".
        crash_probability: P(crash or off-road within the sequence); None if not finite.
        crash_probability_by_step: The same up to each step; H entries.
        time_to_crash_s: End of the step at which the probability reaches the threshold; None
            if it never does.
        uncertainty: Disagreement of the ensemble; None if not finite, or of one member.
        expected_error_m: How far the neighbours' places will probably be off at the evaluated
            horizon; None if unknown, or nobody is there.
        threshold: Crash probability from which the sequence is unsafe; None if unknown.
        reasons: The rules that fired; empty if safe.
        horizon_s: Length of the sequence.
    """

    verdict: str
    crash_probability: float | None
    crash_probability_by_step: list[float | None]
    time_to_crash_s: float | None
    uncertainty: float | None
    expected_error_m: float | None
    threshold: float | None
    reasons: tuple[Reason, ...]
    horizon_s: float


def assess(
    states: Floats,
    dones: Floats,
    uncertainty: Floats,
    limits: SafetyLimits,
    *,
    actions: Floats | None = None,
    threshold: float | None = None,
) -> list[Verdict]:
    """Judge K predicted sequences.

    Args:
        states: [K, H+1, S], the start included.
        dones: [K, H], hazards.
        uncertainty: [K].
        limits: The checkpoint's.
        actions: [K, H, A]; needed if the limits have physics.
        threshold: Used instead of the checkpoint's. As that one, it counts only within [0, 1]. What
            is not below the checkpoint's `safe_below` is not safe by a higher one either.

    Returns:
        K verdicts. Lowering a threshold within [0, 1] never turns one that is not safe into a safe
        one.

    Raises:
        ValueError: Shapes do not fit each other or the limits, H is 0, or actions are missing.
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
        _start_reasons(start[:1], limits) * len(start) if is_same else _start_reasons(start, limits)
    )
    contacts = contact_reasons(states, actions, limits)
    expected = _expected_errors(start[:1] if is_same else start, limits) * (
        len(start) if is_same else 1
    )
    return [
        _judge(
            by_step[k], spreads[k], expected[k], inputs[k], contacts.get(k, ()), limits, threshold
        )
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
        expected_error_m=None,
        threshold=threshold,
        reasons=(*input_reasons, reason),
        horizon_s=_seconds(horizon, limits),
    )


def _judge(
    by_step: list[float],
    uncertainty: float,
    expected_error_m: float | None,
    input_reasons: list[Reason],
    contacts: Sequence[Reason],
    limits: SafetyLimits,
    threshold: float | None,
) -> Verdict:
    horizon, probability = len(by_step), by_step[-1]
    blocking = list(input_reasons)
    if threshold is None:
        blocking.append(Reason("not_calibrated", limits.uncalibrated))
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
    doubts = [] if crash else _near_reasons(probability, limits)
    doubts += contacts
    doubts += _doubts(uncertainty, expected_error_m, limits, horizon)
    verdict = UNKNOWN if blocking else UNSAFE if crash else UNKNOWN if doubts else SAFE
    return Verdict(
        verdict=verdict,
        crash_probability=probability,
        crash_probability_by_step=[*by_step],
        time_to_crash_s=time_to_crash_s,
        uncertainty=uncertainty if limits.has_disagreement else None,
        expected_error_m=expected_error_m,
        threshold=threshold,
        reasons=(*blocking, *crash, *doubts),
        horizon_s=_seconds(horizon, limits),
    )


def _seconds(steps: int, limits: SafetyLimits) -> float:
    # Rounded to nanoseconds: 12 * 0.05 is 0.6000000000000001 in binary.
    return round(steps * limits.dt_s, 9)


def _near_reasons(probability: float, limits: SafetyLimits) -> list[Reason]:
    """Say why a crash probability below the threshold is too near to it for a safe verdict."""
    bound = limits.safe_below
    if bound is None or probability < bound <= 1:
        return []
    return [
        Reason(
            "crash_not_excluded",
            f"crash probability {probability:.4f} reaches no threshold, but {bound:.4f}, from "
            "which on no sequence is called safe",
        )
    ]


def _expected_errors(start: Floats, limits: SafetyLimits) -> list[float | None]:
    """Return the expected error of each start state [K, S], m.

    It is None if it is not known, or nobody is there.
    """
    if limits.expected_error is None:
        return [None] * len(start)
    people = (start[:, limits.slots[:, 0]] > 0).sum(1).tolist()
    expected = limits.expected_error(start).tolist()
    return [x if count else None for x, count in zip(expected, people, strict=True)]


def _error_doubts(expected_error_m: float | None, limits: SafetyLimits) -> list[Reason]:
    limit_m = limits.error_limit_m
    if limits.expected_error is None:
        if limit_m is None:
            return []
        return [Reason("uncertainty_unavailable", "the error to be expected is not known")]
    if expected_error_m is None:
        return []
    if limit_m is None:
        message = "the error that is expected has no limit: too few windows had neighbours"
        return [Reason("uncertainty_unavailable", message)]
    if expected_error_m <= limit_m < inf:
        return []
    return [
        Reason(
            "uncertain",
            f"neighbours are expected to be {expected_error_m:.2f} m from where they are "
            f"predicted, more than the limit {limit_m:.2f} m",
        )
    ]


def _doubts(
    uncertainty: float, expected_error_m: float | None, limits: SafetyLimits, horizon: int
) -> list[Reason]:
    doubts = []
    limit = limits.uncertainty_limit if limits.has_disagreement else None
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
    doubts += _error_doubts(expected_error_m, limits)
    if not horizon <= limits.horizon < inf:
        doubts.append(
            Reason(
                "horizon_not_evaluated",
                f"{horizon} steps are more than the {limits.horizon} that were evaluated",
            )
        )
    return doubts


def _start_reasons(start: Floats, limits: SafetyLimits) -> list[list[Reason]]:
    """Say, for each start state [K, S], why the model's answer to it would mean nothing.

    It lies outside what the model was trained on, it cannot be, or it is the end already: the ego
    touches a neighbour or is off the road. Episodes end there, so no model has learned what comes
    next, and hazards are those of steps that begin before the end.

    All sequences of a safety check begin in one state. Plain Python looks at one in a tenth of the
    time that NumPy takes.
    """
    reasons = _range_reasons(start, limits)
    for of_state, state in zip(reasons, start.tolist(), strict=True):
        faults = [*faults_of(state, limits)]
        if faults:
            of_state.append(Reason("input_impossible", "; ".join(faults[:_MAX_FEATURES_NAMED])))
    return reasons


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
