"""A prediction as text: the verdict with its reasons, and a line for each step."""

from __future__ import annotations

from collections.abc import Iterator

from service.showing.places import Places
from service.showing.predicted import Predicted, crash_of


def verdict_lines(predicted: Predicted) -> Iterator[str]:
    """Yield what is said about the whole sequence, in short lines."""
    verdict, limits = predicted.verdict, predicted.limits
    yield f"{verdict.verdict} within {verdict.horizon_s:g} s"
    for name, value, what, limit in (
        ("crash probability", verdict.crash_probability, "threshold", verdict.threshold),
        ("uncertainty", verdict.uncertainty, "limit", limits.uncertainty_limit),
        ("expected error in m", verdict.expected_error_m, "limit", limits.error_limit_m),
    ):
        yield f"{name} {_text(value)}, {what} {_text(limit)}"
    for reason in verdict.reasons:
        yield f"{reason.rule}: {reason.message}"


def table(predicted: Predicted) -> str:
    """Return the text: of each step its end, what it holds, and who is nearest to the ego then."""
    lines = [f"{predicted.given.title}, model {predicted.version}", *verdict_lines(predicted)]
    known = Places.are_known(predicted.spec)
    gaps = Places(predicted.spec).gaps(predicted.states) if known else {}
    lines.append(
        f"{'step':>4}  {'time_s':>6}  {'crash_probability':>17}  {'done':>7}  reward  gap_m"
    )
    by_step = predicted.verdict.crash_probability_by_step
    for k, seconds in enumerate(predicted.times_s[1:], 1):
        nearest = min(((gap_m[k], name) for name, gap_m in gaps.items()), default=None)
        line = (
            f"{k:>4}  {seconds:>6.2f}  {_text(by_step[k - 1]):>17}  "
            f"{predicted.dones[k - 1]:>7.4f}  {predicted.rewards[k - 1]:>6.3f}"
        )
        lines.append(line if nearest is None else f"{line}  {nearest[0]:.2f} to {nearest[1]}")
    crash = crash_of(predicted, gaps)
    if crash is not None:
        lines.append(crash.text)
    return "\n".join(lines)


def _text(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"
