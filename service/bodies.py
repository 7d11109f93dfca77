"""Request bodies from bytes to arrays, in one go; `service.schemas` declares the same contract.

The fast way converts and checks whole arrays. Only if it finds a fault does `service.diagnosis`
walk the body to name the place.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, get_args

import numpy as np
import orjson
from numpy.typing import NDArray

from models.spec import Spec
from service.diagnosis import (
    FLOAT32_MAX,
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

OUTPUTS: tuple[str, ...] = get_args(Output)
DEFAULT_OUTPUTS = ("states", "rewards", "dones")
INCLUDES: tuple[str, ...] = get_args(Include)


@dataclass(frozen=True, slots=True)
class Parsed:
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
        self._state = ArrayField("state", (rows, state), spec.state, is_ranged=False)
        self._action = ArrayField("action", (rows, action), spec.action, is_ranged=True)
        self._actions = ArrayField(
            "actions", (sequences, steps, action), spec.action, is_ranged=True
        )
        self._low = np.array([feature.low for feature in spec.action])
        self._high = np.array([feature.high for feature in spec.action])

    def predict(self, body: bytes) -> Parsed:
        """Read the body of `/predict`.

        Raises:
            InvalidRequestError: It breaks the contract; the details say where.
        """
        document = _document(body, required=("state", "action"))
        states, actions = self._arrays(document, body, self._action)
        is_single = states.ndim == 1 and actions.ndim == 1
        return _broadcast(states, actions[..., None, :], "action", is_single)

    def rollout(self, body: bytes) -> Parsed:
        """Read the body of `/rollout`.

        Raises:
            InvalidRequestError: It breaks the contract; the details say where.
        """
        document = _document(body, required=("state", "actions"), optional=("outputs",))
        states, actions = self._arrays(document, body, self._actions)
        outputs = _names(document, "outputs", OUTPUTS, DEFAULT_OUTPUTS)
        is_single = states.ndim == 1 and actions.ndim == 2
        return _broadcast(states, actions, "actions", is_single, outputs=outputs)

    def safety_check(self, body: bytes) -> Parsed:
        """Read the body of `/safety-check`.

        Raises:
            InvalidRequestError: It breaks the contract; the details say where.
        """
        document = _document(body, required=("state", "actions"), optional=("threshold", "include"))
        states, actions = self._arrays(document, body, self._actions)
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
        self, document: dict[str, Any], body: bytes, actions: ArrayField
    ) -> tuple[Array, Array]:
        """Return the state and the actions as float32, of whatever nesting they came."""
        # Next to numbers, NumPy turns true into 1.0 without a word.
        has_booleans = b"true" in body or b"false" in body
        found: list[Array] = []
        faults: list[Detail] = []
        for field in (self._state, actions):
            value = document[field.name]
            array = None if has_booleans else _as_array(value)
            if array is None or not self._is_valid(field, array):
                faults += broken_entries(field, value)
                array = np.zeros(0) if faults else np.array(value, np.float64)
            found.append(array.astype(np.float32))
        if faults:
            _refuse(faults)
        return found[0], found[1]

    def _is_valid(self, field: ArrayField, array: NDArray[Any]) -> bool:
        axes = field.axes[len(field.axes) - array.ndim :]
        if not len(field.axes) - 1 <= array.ndim <= len(field.axes):
            return False
        if not all(
            axis.low <= count <= axis.high for axis, count in zip(axes, array.shape, strict=True)
        ):
            return False
        if field.is_ranged:
            return bool((array >= self._low).all() and (array <= self._high).all())
        return bool(np.abs(array).max() <= FLOAT32_MAX)


def _document(
    body: bytes, *, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return the object in a body, its fields known and complete."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        document = _with_non_finite(body)
        if document is None:
            _refuse([detail("body", f"is not JSON: {exc}")])
    if not isinstance(document, dict):
        _refuse([detail("body", f"must be a JSON object, is {kind_of(document)}")])
    faults = [detail(name, "is missing") for name in required if name not in document]
    known = (*required, *optional)
    faults += [
        detail(name, "is not a known field", ", ".join(known))
        for name in document
        if name not in known
    ]
    if faults:
        _refuse(faults)
    return document


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


def _as_array(value: Any) -> NDArray[Any] | None:
    """Return nested lists of numbers as an array; None if they are anything else."""
    try:
        array = np.array(value)
    except ValueError:  # ragged
        return None
    return array if array.dtype.kind in "fiu" else None


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
    if states.ndim == 1:
        rows = actions.shape[0] if actions.ndim == 3 else 1
        states = np.broadcast_to(states, (rows, *states.shape))
    if actions.ndim == 2:
        actions = np.broadcast_to(actions, (len(states), *actions.shape))
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
