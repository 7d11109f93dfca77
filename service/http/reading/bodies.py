"""Request bodies from bytes to arrays, by what `service.http.contract` declares.

Whole arrays are taken out of a short, plain body. Only if that does not work does
`service.http.reading.walk` read the body field by field, which it can do of big bodies in slices of
time.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
from simdjson import Array as JsonArray
from simdjson import Object as JsonObject
from simdjson import Parser

from models.saturation import Saturations
from models.slots import EmptySlots
from models.spec import Spec
from service.http.contract import DEFAULT_OUTPUTS, INCLUDES, MOST_NAMES, OUTPUTS, Contract, Kind
from service.http.reading.arrays import (
    SIMDJSON_ERRORS,
    Layout,
    Reader,
    UnfitError,
    brackets,
    with_points,
)
from service.http.reading.diagnosis import detail, is_number_within, refuse
from service.http.reading.walk import Walk
from service.interface import Array

T = TypeVar("T")

AT_ONCE_BYTES = 2**15
"""Longer bodies are better read in slices: reading so many bytes takes half a millisecond."""
_LAYOUTS_KEPT = 32
_LONGEST_SHOWN = 40
_UNFIT = (UnfitError, *SIMDJSON_ERRORS)


class Parsed(NamedTuple):
    """A valid request.

    Attributes:
        states: [K, S].
        actions: [K, H, A].
        is_single: Whether the answer has no batch dimension.
        outputs: Wanted outputs of a rollout.
        threshold: Crash probability to judge by; None: the checkpoint's.
        has_trajectory: Whether a safety check's answer includes the trajectory.
        members: How many answer, the first ones, fewer than are served; None: all.
        has_attribution: Whether its answer, to one sequence, includes the attribution.
    """

    states: Array
    actions: Array
    is_single: bool
    outputs: tuple[str, ...] = ()
    threshold: float | None = None
    has_trajectory: bool = False
    members: int | None = None
    has_attribution: bool = False


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


class _Body(NamedTuple):
    """How the body of an endpoint is read.

    Attributes:
        actions: Reader of its actions.
        options: Optional fields, and the names that each may list; none: it is a single value.
        finish: Makes a request of the fields.
        contract: What bodies hold.
    """

    actions: Reader
    options: Mapping[str, tuple[str, ...]]
    finish: Callable[[_Given, Contract], Parsed]
    contract: Contract

    def request(self, given: _Given) -> Parsed:
        """Make a request of the fields, or refuse them."""
        if given.options:
            _check_conventions(given.options, self.contract)
        return self.finish(given, self.contract)


class BodyParser:
    """Parses bodies for one model.

    Args:
        contract: What they hold.
        piece_bytes: Bytes that are read in a slice of time.
    """

    def __init__(self, contract: Contract, piece_bytes: int = AT_ONCE_BYTES) -> None:
        self._piece_bytes = piece_bytes
        self._parser = Parser()
        self._layouts: dict[bytes, tuple[Layout, Layout]] = {}
        spec = contract.spec
        self._state = Reader(
            contract.fields("predict").state,
            finish=_meaning(spec),
        )
        self._bodies = {kind: _body(contract, kind) for kind in _FINISH}

    def read(self, kind: Kind, body: bytes) -> Parsed:
        """Read a body at once.

        Args:
            kind: Of which endpoint.
            body: The body, of at most `AT_ONCE_BYTES`.

        Raises:
            InvalidRequestError: It breaks the contract; the details say where.
        """
        endpoint = self._bodies[kind]
        try:
            given = self._read_plain(body, endpoint)
        except _UNFIT:
            given = None
        if given is None:
            given = self._read_otherwise(body, endpoint)
        return endpoint.request(given)

    def in_slices(self, kind: Kind, body: bytes) -> Generator[None, None, Parsed]:
        """Read a body so that somebody else may be served between any two slices.

        The result is that of `read`, except that a body is refused if more than `AT_ONCE_BYTES`
        pass outside of the two arrays, or within one state or action.

        Args:
            kind: Of which endpoint.
            body: The body.

        Yields:
            Nothing, after less than about a millisecond each.

        Raises:
            InvalidRequestError: It breaks the contract; the details say where.
        """
        endpoint = self._bodies[kind]
        return endpoint.request((yield from self._walk(body, endpoint)))

    def _read_otherwise(self, body: bytes, endpoint: _Body) -> _Given:
        """Read a body that is not plain."""
        pointed = with_points(body)
        if pointed is not body:
            with contextlib.suppress(*_UNFIT):
                return self._read_plain(pointed, endpoint)
        given = _result(self._walk(body, endpoint))
        # Next time it is plain, however strangely its names are written.
        state = Layout(given.states.shape, given.is_one_state)
        actions = Layout(given.actions.shape, given.is_one_sequence)
        self._keep(brackets(body), (state, actions))
        return given

    def _walk(self, body: bytes, endpoint: _Body) -> Generator[None, None, _Given]:
        actions, names = endpoint.actions, endpoint.options
        walk = Walk(body, (self._state, actions), names, self._parser, self._piece_bytes)
        fields = yield from walk.fields()
        state, is_one_state = fields.pop("state")
        given, is_one_sequence = fields.pop(actions.name)
        return _Given(state, given, is_one_state, is_one_sequence, fields)

    def _read_plain(self, body: bytes, endpoint: _Body) -> _Given:
        """Read a plain body.

        Raises:
            UnfitError: Something is wrong with it, or just unusual.
            ValueError: Likewise, like the others of `SIMDJSON_ERRORS`.
        """
        document = self._parser.parse(body)
        if not isinstance(document, JsonObject):
            raise UnfitError
        actions, names = endpoint.actions, endpoint.options
        options = {}
        count = len(document)
        if count > 2:
            options = {
                name: _option(document[name], names[name]) for name in names if name in document
            }
        # A field that came twice is neither missing nor unknown.
        if count != 2 + len(options):
            raise UnfitError
        state, given, bracketed = document["state"], document[actions.name], brackets(body)
        layouts = self._layouts.get(bracketed)
        if layouts is None:
            if not bracketed.startswith(b"{"):  # simdjson would skip a byte order mark
                raise UnfitError
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
        if len(self._layouts) >= _LAYOUTS_KEPT:
            self._layouts.clear()
        self._layouts[bracketed] = layouts


def _result(slices: Generator[None, None, T]) -> T:
    """Run slices to the end and return what they return."""
    while True:
        try:
            next(slices)
        except StopIteration as stop:
            value: T = stop.value
            return value


def _option(value: Any, choice: tuple[str, ...]) -> Any:
    """Return an option's value, or its names if there is a choice.

    Raises:
        UnfitError: It is longer or deeper than any that is valid.
    """
    if isinstance(value, JsonArray):
        names = list(value) if choice and len(value) <= MOST_NAMES else [None]
        if not all(isinstance(name, str) for name in names):
            raise UnfitError
        return names
    if isinstance(value, JsonObject):
        raise UnfitError
    return value


def _meaning(spec: Spec) -> Callable[[Array, np.ndarray], Array] | None:
    """Return what makes of states as they came what is meant by them; None: nothing is to do."""
    cleared = EmptySlots(spec).cleared if spec.geometry else None
    if not spec.saturations:
        return cleared
    saturated = Saturations(spec).applied
    if cleared is None:
        return lambda states, exact: saturated(states)
    return lambda states, exact: cleared(saturated(states), exact)


def _body(contract: Contract, kind: Kind) -> _Body:
    fields = contract.fields(kind)
    actions = Reader(fields.actions, is_one_step=kind == "predict")
    return _Body(actions, fields.options, _FINISH[kind], contract)


def _check_conventions(options: Mapping[str, Any], contract: Contract) -> None:
    """Refuse a request whose numbers are meant otherwise than the model takes them.

    Raises:
        InvalidRequestError: Its steps have another length, or its axes another name.
    """
    faults, spec = [], contract.spec
    if "dt_s" in options and not is_number_within(options["dt_s"], *contract.dt_bounds):
        allowed = f"{spec.dt_s:.9g}, the length of this model's steps in seconds"
        faults.append(detail("dt_s", f"is {_shown(options['dt_s'])}", allowed))
    if "frame" in options and options["frame"] != spec.frame:
        allowed = f"{spec.frame}, the axes of this model"
        faults.append(detail("frame", f"is {_shown(options['frame'])}", allowed))
    if faults:
        refuse(faults)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _as_prediction(given: _Given, contract: Contract) -> Parsed:
    return Parsed(*_paired(given, "action"))


def _as_rollout(given: _Given, contract: Contract) -> Parsed:
    options = given.options
    members = _members(options, contract)
    outputs = _names(options, "outputs", OUTPUTS, DEFAULT_OUTPUTS)
    return Parsed(*_paired(given, "actions"), outputs=outputs, members=members)


def _as_check(given: _Given, contract: Contract) -> Parsed:
    options = given.options
    if not given.is_one_state:
        refuse([detail("state", "is a list of states", "one state: a list of numbers")])
    if "threshold" in options and not is_number_within(options["threshold"], 0.0, 1.0):
        refuse([detail("threshold", "is not a probability", "a number from 0 to 1")])
    members = _members(options, contract)
    included = _names(options, "include", INCLUDES, ())
    if "attribution" in included and not given.is_one_sequence:
        problem = "asks for the attribution of a list of sequences"
        refuse([detail("include", problem, "attribution with one sequence: actions [H][A]")])
    return Parsed(
        *_paired(given, "actions"),
        members=members,
        threshold=options.get("threshold"),
        has_trajectory="trajectory" in included,
        has_attribution="attribution" in included,
    )


def _members(options: Mapping[str, Any], contract: Contract) -> int | None:
    """Return how many members answer; None if all do, which is another launch than fewer.

    Raises:
        InvalidRequestError: There are not so many, or it is no whole number.
    """
    served = contract.members
    members = options.get("members", served)
    # 2.0 is 2, as for JSON Schema.
    if not (is_number_within(members, 1, served) and members == int(members)):
        allowed = f"a whole number from 1 to {served}, the members that are served"
        refuse([detail("members", f"is {_shown(members)}", allowed)])
    return None if members == served else int(members)


def _names(
    options: dict[str, Any], field: str, allowed: tuple[str, ...], default: tuple[str, ...]
) -> tuple[str, ...]:
    """Return a field that lists names, or its default if it is not there."""
    if field not in options:
        return default
    value, choice = options[field], ", ".join(allowed)
    if not isinstance(value, list) or not value:
        refuse([detail(field, "must be a list of at least one name", choice)])
    faults = [
        detail(f"{field}[{index}]", "is not a known name", choice)
        for index, name in enumerate(value)
        if name not in allowed
    ]
    if faults:
        refuse(faults)
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
            refuse([detail(name, problem, allowed)])
    return states, actions, is_one_state and is_one_sequence


_FINISH: Mapping[Kind, Callable[[_Given, Contract], Parsed]] = {
    "predict": _as_prediction,
    "rollout": _as_rollout,
    "safety_check": _as_check,
}
