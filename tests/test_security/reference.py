"""What a body means, read in the most obvious way: slowly, and without any of the service's code.

The contract of `docs/http.md` over JSON as RFC 8259 has it, strictly: a body that is not JSON is
refused wherever that shows, names that come twice too. Numbers are doubles; those of arrays are
compared with their ranges as such, and only then rounded to 32 bits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.spec import Feature, Spec
from service.http.contract import Kind

OUTPUTS = (
    "states",
    "rewards",
    "dones",
    "returns",
    "crash_probability",
    "uncertainty",
    "final_state",
)
FIELDS: dict[Kind, tuple[str, ...]] = {
    "predict": ("state", "action", "dt_s", "frame"),
    "rollout": ("state", "actions", "outputs", "members", "dt_s", "frame"),
    "safety_check": ("state", "actions", "threshold", "include", "members", "dt_s", "frame"),
}
"""Endpoint -> required fields, which are two, and others."""


class Refused(Exception):  # noqa: N818 (an outcome, not a fault)
    """The body breaks the contract."""


@dataclass(frozen=True)
class Meaning:
    """What a valid body asks for; see `service.http.reading.bodies.Parsed`."""

    states: list[list[float]]
    actions: list[list[list[float]]]
    is_single: bool
    outputs: tuple[str, ...] = ()
    threshold: float | None = None
    has_trajectory: bool = False
    has_attribution: bool = False
    members: int | None = None


@dataclass(frozen=True)
class Reference:
    """A reader for one model."""

    spec: Spec
    max_horizon: int
    max_rows: int
    members: int

    def read(self, endpoint: Kind, body: bytes) -> Meaning:
        """Return what a body means.

        Raises:
            Refused: It breaks the contract.
        """
        document = _document(body)
        required, others = FIELDS[endpoint][:2], FIELDS[endpoint][2:]
        for name in document:
            _check(name in (*required, *others), f"{name} is not known")
        for name in required:
            _check(name in document, f"{name} is missing")
        if "dt_s" in document:
            _check(abs(_double(document["dt_s"]) / self.spec.dt_s - 1) <= 1e-6, "another dt_s")
        if "frame" in document:
            _check(self.spec.frame in (document["frame"],), "another frame")
        states, is_one_state = self._rows(document["state"], self._state)
        if endpoint == "predict":
            rows, is_one_action = self._rows(document["action"], self._action)
            actions = [[row] for row in rows]
        else:
            actions, is_one_action = self._sequences(document["actions"])
        if endpoint == "safety_check":
            _check(is_one_state, "state is a list of states")
        if is_one_state:
            states = states * len(actions)
        elif is_one_action:
            actions = actions * len(states)
        _check(len(states) == len(actions), "state and actions differ in rows")
        members = document.get("members", self.members)
        is_whole = type(members) is int or (type(members) is float and members.is_integer())
        _check(is_whole and 1 <= members <= self.members, "number of members")
        return Meaning(
            states,
            actions,
            is_one_state and is_one_action,
            members=None if members == self.members else int(members),
            **_options(endpoint, document, is_one_sequence=is_one_action),
        )

    def _sequences(self, value: Any) -> tuple[list[list[list[float]]], bool]:
        """Return K sequences, and whether the value is a single one."""
        is_batch = bool(isinstance(value, list) and value and isinstance(value[0], list))
        is_batch = is_batch and bool(value[0]) and isinstance(value[0][0], list)
        entries = value if is_batch else [value]
        _check(1 <= len(entries) <= self.max_rows, "number of sequences")
        sequences = [self._sequence(entry) for entry in entries]
        _check(len({len(x) for x in sequences}) == 1, "sequences differ in steps")
        return sequences, not is_batch

    def _sequence(self, value: Any) -> list[list[float]]:
        _check(isinstance(value, list), "a sequence is not a list")
        _check(1 <= len(value) <= self.max_horizon, "number of steps")
        return [self._action(entry) for entry in value]

    def _rows(
        self, value: Any, read: Callable[[Any], list[float]]
    ) -> tuple[list[list[float]], bool]:
        """Return N vectors, and whether the value is a single one."""
        is_batch = bool(isinstance(value, list) and value and isinstance(value[0], list))
        entries = value if is_batch else [value]
        _check(1 <= len(entries) <= self.max_rows, "number of rows")
        return [read(entry) for entry in entries], not is_batch

    def _action(self, value: Any) -> list[float]:
        return _vector(value, self.spec.action, is_ranged=True)

    def _state(self, value: Any) -> list[float]:
        state = _vector(value, self.spec.state, is_ranged=False)
        for saturation in self.spec.saturations:
            column = self.spec.state_index(saturation.feature)
            if saturation.low is not None and state[column] < saturation.low:
                state[column] = saturation.low
            if saturation.high is not None and state[column] > saturation.high:
                state[column] = saturation.high
        geometry = self.spec.geometry
        for slot in geometry.slots if geometry else ():
            columns = [self.spec.state_index(name) for name in (slot.gate, *slot.features)]
            gate = value[columns[0]]
            if gate == 0:  # nobody is there: whatever is left in the slot is not meant
                for column in columns:
                    state[column] = 0.0
            elif state[columns[0]] == 0:  # by rounding alone
                state[columns[0]] = math.copysign(2.0**-126, gate)
        return state


def _document(body: bytes) -> dict[str, Any]:
    try:
        text = body.decode()
        _check(not text.startswith("\ufeff"), "RFC 8259, 8.1: no byte order mark")
        document = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:
        raise Refused("not JSON") from exc
    _check(isinstance(document, dict), "not an object")
    return dict(document)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    _check(len(set(names)) == len(names), "a name comes twice")
    return dict(pairs)


def _no_constant(text: str) -> float:
    raise Refused(f"{text} is not JSON")


def _vector(value: Any, features: Sequence[Feature], *, is_ranged: bool) -> list[float]:
    """Return the numbers of a vector, each rounded to 32 bits."""
    _check(isinstance(value, list), "not a list of numbers")
    _check(len(value) == len(features), "number of features")
    rounded = []
    for number, feature in zip(value, features, strict=True):
        double = _double(number)
        with np.errstate(over="ignore"):
            single = np.float32(double)
        _check(bool(np.isfinite(single)), "not finite in 32 bits")
        if is_ranged:
            _check(feature.low <= double <= feature.high, "out of range")
        rounded.append(float(single))
    return rounded


def _double(value: Any) -> float:
    _check(isinstance(value, int | float) and not isinstance(value, bool), "not a number")
    try:
        return float(value)
    except OverflowError as exc:
        raise Refused("an integer beyond all doubles") from exc


def _options(endpoint: str, document: dict[str, Any], *, is_one_sequence: bool) -> dict[str, Any]:
    if endpoint == "rollout":
        return {"outputs": _names(document, "outputs", OUTPUTS, ("states", "rewards", "dones"))}
    if endpoint == "safety_check":
        include = _names(document, "include", ("trajectory", "attribution"), ())
        is_explained = "attribution" in include
        _check(is_one_sequence or not is_explained, "the attribution of many sequences")
        threshold = document.get("threshold", 0.5)
        _check(0.0 <= _double(threshold) <= 1.0, "not a probability")
        return {
            "threshold": document.get("threshold"),
            "has_trajectory": "trajectory" in include,
            "has_attribution": is_explained,
        }
    return {}


def _names(
    document: dict[str, Any], field: str, known: tuple[str, ...], default: tuple[str, ...]
) -> tuple[str, ...]:
    if field not in document:
        return default
    value = document[field]
    _check(isinstance(value, list) and bool(value), "not a list of names")
    for name in value:
        _check(name in known, "not a known name")
    return tuple(value)


def _check(is_fine: bool, reason: str) -> None:
    if not is_fine:
        raise Refused(reason)
