"""Request bodies from bytes to arrays, in one go; `service.schemas` declares the same contract.

The fast way converts and checks whole arrays. Only if it finds a fault does `service.diagnosis`
walk the body to name the place.
"""

from __future__ import annotations

import json
import math
from typing import Any, Literal, NamedTuple, NoReturn, get_args

import numpy as np
import orjson

from models.spec import Spec
from service.arrays import Reader, UnfitError
from service.diagnosis import (
    ArrayField,
    Axis,
    broken_entries,
    detail,
    is_number_within,
    kind_of,
)
from service.errors import Detail, InvalidRequestError
from service.interface import Array

Output = Literal[
    "states", "rewards", "dones", "returns", "crash_probability", "uncertainty", "final_state"
]
Include = Literal["trajectory"]

_PATIENCE = 16
"""Letters looked at before a body is searched for a whole word."""

OUTPUTS: tuple[str, ...] = get_args(Output)
DEFAULT_OUTPUTS = ("states", "rewards", "dones")
INCLUDES: tuple[str, ...] = get_args(Include)


class Parsed(NamedTuple):
    """A valid request.

    Attributes:
        states: [K, S].
        actions: [K, H, A].
        is_single: Whether the answer has no batch dimension.
        outputs: Wanted outputs of a rollout.
        threshold: Crash probability to judge by; None: the checkpoint's.
        has_trajectory: Whether a safety check's answer includes the trajectory.
    """

    states: Array
    actions: Array
    is_single: bool
    outputs: tuple[str, ...] = ()
    threshold: float | None = None
    has_trajectory: bool = False


class BodyParser:
    """Parses bodies for one model.

    Args:
        spec: The model's features.
        max_horizon: Most steps of a sequence.
        max_rows: Most sequences of a request.
    """

    def __init__(self, spec: Spec, max_horizon: int, max_rows: int) -> None:
        rows = Axis("rows", 1, max_rows)
        sequences = Axis("sequences", 1, max_rows)
        steps = Axis("steps", 1, max_horizon)
        state = Axis("state features", spec.state_dim, spec.state_dim)
        action = Axis("action features", spec.action_dim, spec.action_dim)
        self._state = Reader(ArrayField("state", (rows, state), spec.state, is_ranged=False))
        self._action = Reader(ArrayField("action", (rows, action), spec.action, is_ranged=True))
        self._actions = Reader(
            ArrayField("actions", (sequences, steps, action), spec.action, is_ranged=True)
        )

    def predict(self, body: bytes) -> Parsed:
        """Read the body of `/predict`.

        Raises:
            InvalidRequestError: It breaks the contract; the details say where.
        """
        document, is_plain = _document(body, required=("state", "action"))
        states, actions = self._arrays(document, is_plain, self._action)
        is_single = states.ndim == 1 and actions.ndim == 1
        return _broadcast(states, actions[..., None, :], "action", is_single)

    def rollout(self, body: bytes) -> Parsed:
        """Read the body of `/rollout`.

        Raises:
            InvalidRequestError: It breaks the contract; the details say where.
        """
        document, is_plain = _document(body, required=("state", "actions"), optional=("outputs",))
        states, actions = self._arrays(document, is_plain, self._actions)
        outputs = _names(document, "outputs", OUTPUTS, DEFAULT_OUTPUTS)
        is_single = states.ndim == 1 and actions.ndim == 2
        return _broadcast(states, actions, "actions", is_single, outputs=outputs)

    def safety_check(self, body: bytes) -> Parsed:
        """Read the body of `/safety-check`.

        Raises:
            InvalidRequestError: It breaks the contract; the details say where.
        """
        document, is_plain = _document(
            body, required=("state", "actions"), optional=("threshold", "include")
        )
        states, actions = self._arrays(document, is_plain, self._actions)
        if states.ndim != 1:
            _refuse([detail("state", "is a list of states", "one state: a list of numbers")])
        if not is_number_within(document.get("threshold", 0.0), 0.0, 1.0):
            _refuse([detail("threshold", "is not a probability", "a number from 0 to 1")])
        return _broadcast(
            states,
            actions,
            "actions",
            actions.ndim == 2,
            threshold=document.get("threshold"),
            has_trajectory="trajectory" in _names(document, "include", INCLUDES, ()),
        )

    def _arrays(
        self, document: dict[str, Any], is_plain: bool, actions: Reader
    ) -> tuple[Array, Array]:
        """Return the state and the actions as float32, of whatever nesting they came."""
        try:
            if is_plain:
                return self._state.read(document["state"]), actions.read(document[actions.name])
        except UnfitError:
            is_plain = False
        faults: list[Detail] = []
        for reader in (self._state, actions):
            faults += broken_entries(reader.field, document[reader.name])
        if faults:
            _refuse(faults)
        # What is not plain is elsewhere.
        return self._state.read(document["state"]), actions.read(document[actions.name])


def _document(
    body: bytes, *, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> tuple[dict[str, Any], bool]:
    """Return the object in a body, its fields known and complete, and whether it is plain.

    It is not if NaN, Infinity, true or false are somewhere in it, which readers of numbers would
    take for numbers.
    """
    is_plain = not (
        (b"u" in body and _holds(body, b"true", b"u"))
        or (b"f" in body and _holds(body, b"false", b"f"))
    )
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        document, is_plain = _with_non_finite(body), False
        if document is None:
            _refuse([detail("body", f"is not JSON: {exc}")])
    if not isinstance(document, dict):
        _refuse([detail("body", f"must be a JSON object, is {kind_of(document)}")])
    if document.keys() != set(required):
        _check_names(document, required, optional)
    return document, is_plain


def _check_names(
    document: dict[str, Any], required: tuple[str, ...], optional: tuple[str, ...]
) -> None:
    known = (*required, *optional)
    faults = [detail(name, "is missing") for name in required if name not in document]
    faults += [
        detail(name, "is not a known field", ", ".join(known))
        for name in document
        if name not in known
    ]
    if faults:
        _refuse(faults)


def _holds(body: bytes, word: bytes, rare: bytes) -> bool:
    """Tell whether a word is in a body, by a letter of it that is rare there.

    A search for one byte takes a tenth of the time of one for a word.
    """
    before, at = word.index(rare), -1
    for _ in range(_PATIENCE):
        at = body.find(rare, at + 1)
        if at < 0:
            return False
        if body.startswith(word, max(0, at - before)):
            return True
    return word in body


def _with_non_finite(body: bytes) -> Any:
    """Parse a body that holds NaN, Infinity or 1e400, so that they can be named; else None."""
    seen: list[str] = []

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            seen.append(text)
        return value

    try:
        document = json.loads(body, parse_constant=number, parse_float=number)
    except (ValueError, RecursionError):
        return None
    return document if seen else None


def _names(
    document: dict[str, Any], field: str, allowed: tuple[str, ...], default: tuple[str, ...]
) -> tuple[str, ...]:
    """Return a field that lists names, or its default if it is not there."""
    if field not in document:
        return default
    value, choice = document[field], ", ".join(allowed)
    if not isinstance(value, list) or not value:
        _refuse([detail(field, "must be a list of at least one name", choice)])
    faults = [
        detail(f"{field}[{index}]", "is not a known name", choice)
        for index, name in enumerate(value)
        if name not in allowed
    ]
    if faults:
        _refuse(faults[:16])
    return tuple(value)


def _broadcast(states: Array, actions: Array, name: str, is_single: bool, **options: Any) -> Parsed:
    """Give states and actions the same number of rows; a bare one serves all of the other's."""
    # Broadcasting costs as much as parsing one row, which needs none.
    if states.ndim == 1:
        states = states[None]
        if actions.ndim == 3 and len(actions) > 1:
            states = np.broadcast_to(states, (len(actions), states.shape[1]))
    if actions.ndim == 2:
        actions = actions[None]
        if len(states) > 1:
            actions = np.broadcast_to(actions, (len(states), *actions.shape[1:]))
    if len(states) != len(actions):
        _refuse(
            [
                detail(
                    name,
                    f"has {len(actions)} rows, state has {len(states)}",
                    "as many rows as state, or one side without rows",
                )
            ]
        )
    return Parsed(states, actions, is_single, **options)


def _refuse(details: list[Detail]) -> NoReturn:
    first = details[0]
    message = f"{first['field']} {first['problem']}"
    if "allowed" in first:
        message += f" (allowed: {first['allowed']})"
    if len(details) > 1:
        message += f", and {len(details) - 1} more problems"
    raise InvalidRequestError(message, details)
