"""Request bodies from bytes to arrays, in one go; `service.schemas` declares the same contract.

The fast way takes whole arrays out of a plain body. Only if it stumbles does `service.diagnosis`
walk the body, to name what is wrong; mostly something is.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, NoReturn, get_args

import numpy as np
import orjson
import simdjson

from models.spec import Spec
from service.arrays import Layout, Reader, UnfitError, brackets
from service.diagnosis import (
    ArrayField,
    Axis,
    broken_entries,
    detail,
    is_number_within,
    kind_of,
    with_non_finite,
)
from service.errors import Detail, InvalidRequestError
from service.interface import Array

Output = Literal[
    "states", "rewards", "dones", "returns", "crash_probability", "uncertainty", "final_state"
]
Include = Literal["trajectory"]

_SIMDJSON_ERRORS = (ValueError, RuntimeError, KeyError)
"""What simdjson raises if it does not like a body, or a field is missing."""

_USUAL_BYTES = 2**18
_LAYOUTS_KEPT = 32

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


class _Given(NamedTuple):
    """What a body holds.

    Attributes:
        states: [1 or N, S].
        actions: [1 or K, H, A].
        is_one_state: Whether the state came without a list around it.
        is_one_sequence: Whether the actions did.
        options: Other fields.
    """

    states: Array
    actions: Array
    is_one_state: bool
    is_one_sequence: bool
    options: dict[str, Any]


class BodyParser:
    """Parses bodies for one model.

    Args:
        spec: The model's features.
        max_horizon: Most steps of a sequence.
        max_rows: Most sequences of a request.
    """

    def __init__(self, spec: Spec, max_horizon: int, max_rows: int) -> None:
        self._parser = simdjson.Parser()
        self._layouts: dict[bytes, tuple[Layout, Layout]] = {}
        rows = Axis("rows", 1, max_rows)
        sequences = Axis("sequences", 1, max_rows)
        steps = Axis("steps", 1, max_horizon)
        state = Axis("state features", spec.state_dim, spec.state_dim)
        action = Axis("action features", spec.action_dim, spec.action_dim)
        self._state = Reader(ArrayField("state", (rows, state), spec.state, is_ranged=False))
        self._action = Reader(
            ArrayField("action", (rows, action), spec.action, is_ranged=True), is_one_step=True
        )
        self._actions = Reader(
            ArrayField("actions", (sequences, steps, action), spec.action, is_ranged=True)
        )

    def predict(self, body: bytes) -> Parsed:
        """Read the body of `/predict`.

        Raises:
            InvalidRequestError: It breaks the contract; the details say where.
        """
        given = self._read(body, self._action)
        return Parsed(*_paired(given, "action"))

    def rollout(self, body: bytes) -> Parsed:
        """Read the body of `/rollout`.

        Raises:
            InvalidRequestError: It breaks the contract; the details say where.
        """
        given = self._read(body, self._actions, "outputs")
        outputs = _names(given.options, "outputs", OUTPUTS, DEFAULT_OUTPUTS)
        return Parsed(*_paired(given, "actions"), outputs=outputs)

    def safety_check(self, body: bytes) -> Parsed:
        """Read the body of `/safety-check`.

        Raises:
            InvalidRequestError: It breaks the contract; the details say where.
        """
        given = self._read(body, self._actions, "threshold", "include")
        options = given.options
        if not given.is_one_state:
            _refuse([detail("state", "is a list of states", "one state: a list of numbers")])
        if not is_number_within(options.get("threshold", 0.0), 0.0, 1.0):
            _refuse([detail("threshold", "is not a probability", "a number from 0 to 1")])
        return Parsed(
            *_paired(given, "actions"),
            threshold=options.get("threshold"),
            has_trajectory="trajectory" in _names(options, "include", INCLUDES, ()),
        )

    def _read(self, body: bytes, actions: Reader, *optional: str) -> _Given:
        """Read a body.

        Raises:
            InvalidRequestError: It breaks the contract.
        """
        try:
            return self._read_plain(body, actions, optional)
        except (UnfitError, *_SIMDJSON_ERRORS):
            pass
        document = _document(body)
        _check_names(document, ("state", actions.name), optional)
        faults: list[Detail] = []
        for reader in (self._state, actions):
            faults += broken_entries(reader.field, document[reader.name])
        if faults:
            _refuse(faults)
        state, is_one_state = self._state.read_slowly(document.pop("state"))
        given, is_one_sequence = actions.read_slowly(document.pop(actions.name))
        return _Given(state, given, is_one_state, is_one_sequence, document)

    def _read_plain(self, body: bytes, actions: Reader, optional: tuple[str, ...]) -> _Given:
        """Read a body in which nothing is wrong, nor anything unusual."""
        # A parser keeps as much memory as its biggest body took.
        parser = self._parser if len(body) <= _USUAL_BYTES else simdjson.Parser()
        document = parser.parse(body)
        if not isinstance(document, simdjson.Object):
            raise UnfitError
        options = {}
        if len(document) > 2:
            options = {name: _option(document[name]) for name in optional if name in document}
        # A field that came twice is neither missing nor unknown.
        if len(document) != 2 + len(options):
            raise UnfitError
        state, given, bracketed = document["state"], document[actions.name], brackets(body)
        layouts = self._layouts.get(bracketed)
        if layouts is None:
            layouts = self._state.layout(state, bracketed), actions.layout(given, bracketed)
            self._keep(bracketed, layouts)
        of_state, of_actions = layouts
        return _Given(
            self._state.read(state, of_state.shape),
            actions.read(given, of_actions.shape),
            of_state.is_bare,
            of_actions.is_bare,
            options,
        )

    def _keep(self, bracketed: bytes, layouts: tuple[Layout, Layout]) -> None:
        """Know a body's layout when it comes again: callers mostly send the same."""
        if len(bracketed) > _USUAL_BYTES:
            return
        if len(self._layouts) >= _LAYOUTS_KEPT:
            self._layouts.clear()
        self._layouts[bracketed] = layouts


def _option(value: Any) -> Any:
    """Return an option's value; lists of names and numbers are plain."""
    return value.as_list() if isinstance(value, simdjson.Array) else value


def _document(body: bytes) -> dict[str, Any]:
    """Return the object in a body."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        document = with_non_finite(body)
        if document is None:
            _refuse([detail("body", f"is not JSON: {exc}")])
    if not isinstance(document, dict):
        _refuse([detail("body", f"must be a JSON object, is {kind_of(document)}")])
    return document


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


def _paired(given: _Given, name: str) -> tuple[Array, Array, bool]:
    """Give states and actions as many rows; a bare one serves all of the other's.

    Returns:
        States [K, S], actions [K, H, A], and whether both were bare.

    Raises:
        InvalidRequestError: The numbers of rows differ, and neither is bare.
    """
    states, actions, is_one_state, is_one_sequence, _ = given
    if len(states) != len(actions):
        if is_one_state:
            # What np.broadcast_to returns, in a tenth of its time.
            shape, strides = (len(actions), states.shape[1]), (0, states.itemsize)
            states = np.ndarray(shape, states.dtype, states, strides=strides)
        elif is_one_sequence:
            actions = np.broadcast_to(actions, (len(states), *actions.shape[1:]))
        else:
            problem = f"has {len(actions)} rows, state has {len(states)}"
            allowed = "as many rows as state, or one side without rows"
            _refuse([detail(name, problem, allowed)])
    return states, actions, is_one_state and is_one_sequence


def _refuse(details: list[Detail]) -> NoReturn:
    first = details[0]
    message = f"{first['field']} {first['problem']}"
    if "allowed" in first:
        message += f" (allowed: {first['allowed']})"
    if len(details) > 1:
        message += f", and {len(details) - 1} more problems"
    raise InvalidRequestError(message, details)
