"""The words for what is wrong with a body."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

from models.spec import Feature
from service.errors import FIELD_BYTES, MAX_DETAILS, Detail, InvalidRequestError, printable
from service.http.contract import FLOAT32_MAX

_SHOWN_DIGITS = 24
"""No double needs more to differ from its neighbours."""


def detail(field: str, problem: str, allowed: str = "") -> Detail:
    """Return one entry of an error's details."""
    entry = {"field": field, "problem": problem}
    return {**entry, "allowed": allowed} if allowed else entry


def refuse(details: Sequence[Detail]) -> NoReturn:
    """Refuse a body.

    Args:
        details: What is wrong with it, at least one entry; the first becomes the message.

    Raises:
        InvalidRequestError: Always.
    """
    first = details[0]
    message = f"{printable(first['field'], FIELD_BYTES)} {first['problem']}"
    if "allowed" in first:
        message += f" (allowed: {first['allowed']})"
    more = min(len(details), MAX_DETAILS) - 1
    if more:
        message += f", and {more} more {'problem' if more == 1 else 'problems'}"
    raise InvalidRequestError(message, details)


def number_fault(text: str, path: str, feature: Feature, *, is_ranged: bool) -> Detail | None:
    """Return what is wrong with a number, if anything.

    Args:
        text: As it was sent, or a name of what is not finite.
        path: Where it stands.
        feature: What it means.
        is_ranged: Whether it must lie within the feature's range.
    """
    value = float(text)
    if not -FLOAT32_MAX <= value <= FLOAT32_MAX:
        problem = f"is {_shown(value, text)}, not a finite number of 32 bits"
        return detail(path, problem, f"up to {FLOAT32_MAX}")
    if is_ranged and not feature.low <= value <= feature.high:
        allowed = f"{_shown(feature.low)} to {_shown(feature.high)}"
        return detail(path, f"{feature.name} is {_shown(value)}", allowed)
    return None


def is_number_within(value: Any, low: float, high: float) -> bool:
    """Tell whether a value is a JSON number in [low, high]."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _shown(value: float, text: str = "") -> str:
    """Return the shortest text that no other number has; of what has none, what was sent."""
    if math.isfinite(value):
        return repr(float(value)).removesuffix(".0")
    return text if len(text) <= _SHOWN_DIGITS else f"{text[:_SHOWN_DIGITS]}..."
