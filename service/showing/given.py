"""What is shown: a moment of a recorded episode, or the body of a request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from models.checkpoint import Checkpoint
from models.prediction import Array
from models.spec import Spec
from service.errors import InvalidRequestError
from service.http.contract import Contract, Kind
from service.http.reading.bodies import BodyParser, Parsed
from service.http.reading.diagnosis import detail, refuse
from world_model_client.scene.frames import numbers

_UNKNOWN_HORIZON = 16
"""Steps of an episode that are predicted by a model that was never evaluated."""


class Recorded(NamedTuple):
    """What was recorded from the start on.

    Attributes:
        states: [R+1, S].
        actions: [R, A].
    """

    states: Array
    actions: Array


@dataclass(frozen=True)
class Given:
    """What is to be predicted.

    Attributes:
        title: Names it, for a person.
        state: [S].
        actions: [H, A].
        threshold: Crash probability to judge by; None: the checkpoint's.
        members: How many of the ensemble answer, the first ones; None: all.
        recorded: The same steps as they were recorded, if it is a moment of an episode.
    """

    title: str
    state: Array
    actions: Array
    threshold: float | None = None
    members: int | None = None
    recorded: Recorded | None = None


@dataclass(frozen=True)
class Choice:
    """Which part of a file is shown.

    Attributes:
        step: Of an episode; None: the last one with a whole horizon of recorded steps after it.
        row: Of a request with several states or sequences; None: the only one.
    """

    step: int | None = None
    row: int | None = None


def read_given(
    path: Path, checkpoint: Checkpoint, choice: Choice, *, max_horizon: int, max_rows: int
) -> Given:
    """Read a file; requests are read as a service reads them.

    Args:
        path: JSON: an episode as `world-model evaluate --examples` writes it, or the body of a
            request to /safety-check, /rollout or /predict.
        checkpoint: Predicts it.
        choice: Which part of it.
        max_horizon: Most steps of a sequence.
        max_rows: Most sequences of a request.

    Raises:
        InvalidRequestError: It is neither, or does not fit the checkpoint; the message names the
            file, the field and what is allowed.
        OSError: It cannot be read.
    """
    text = path.read_bytes()
    contract = Contract(checkpoint.spec, max_horizon, max_rows, checkpoint.member_count)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as exc:
        if b'"states"' in text:
            reason = "it is nested too deeply" if isinstance(exc, RecursionError) else exc
            raise InvalidRequestError(f"{path}: the episode cannot be read: {reason}") from exc
        document = None  # the reader of requests says what is wrong
    try:
        if isinstance(document, dict) and "states" in document:
            horizon = min(checkpoint.limits.horizon or _UNKNOWN_HORIZON, max_horizon)
            return _of_episode(path.name, document, contract, choice, horizon)
        return _of_request(path.name, text, document, contract, choice)
    except InvalidRequestError as exc:
        raise InvalidRequestError(f"{path}: {exc.message}", exc.details) from exc


def _of_episode(
    name: str, document: Mapping[str, Any], contract: Contract, choice: Choice, horizon: int
) -> Given:
    spec = contract.spec
    if choice.row is not None:
        _refuse("row", f"is {choice.row}, but an episode has no rows", "none")
    _check_features(document, spec)
    for field in ("actions", "dt_s"):
        if field not in document:
            _refuse(field, "is missing", "an episode with states, actions and dt_s")
    states = _rows("states", document["states"], spec.state_dim)
    actions = _rows("actions", document["actions"], spec.action_dim)
    count = len(actions)
    if len(states) != count + 1:
        _refuse("states", f"has {len(states)} rows, actions has {count}", "one row more")
    step = max(0, count - horizon) if choice.step is None else choice.step
    if not 0 <= step < count:
        _refuse("step", f"is {step}", f"0 to {count - 1}, the steps of the episode")
    steps = slice(step, min(count, step + horizon))
    body = {
        "state": document["states"][step],
        "actions": document["actions"][steps],
        "dt_s": document["dt_s"],
    }
    try:
        parsed = _parsed(contract, "safety_check", json.dumps(body).encode())
    except InvalidRequestError as exc:
        raise InvalidRequestError(f"from step {step}, {exc.message}", exc.details) from exc
    return Given(
        f"{name} from step {step} of {count}",
        parsed.states[0],
        parsed.actions[0],
        recorded=Recorded(states[step : steps.stop + 1], actions[steps]),
    )


def _of_request(
    name: str, text: bytes, document: object, contract: Contract, choice: Choice
) -> Given:
    if choice.step is not None:
        _refuse("step", f"is {choice.step}, but the file is no episode", "none for a request")
    kind = _kind(document)
    parsed = _parsed(contract, kind, text)
    count = len(parsed.actions)
    if choice.row is None and count > 1:
        _refuse("row", f"is not given, but the request has {count} rows", f"0 to {count - 1}")
    row = choice.row or 0
    if not 0 <= row < count:
        _refuse("row", f"is {row}", f"0 to {count - 1}, the rows of the request")
    return Given(
        name if count == 1 else f"{name}, row {row} of {count}",
        parsed.states[row],
        parsed.actions[row],
        parsed.threshold,
        parsed.members,
    )


def _kind(document: object) -> Kind:
    """Return which endpoint a body is for: one that two take is for a safety check."""
    if not isinstance(document, dict):
        return "safety_check"
    if "action" in document:
        return "predict"
    state = document.get("state")
    has_many_states = isinstance(state, list) and bool(state) and isinstance(state[0], list)
    return "rollout" if has_many_states or "outputs" in document else "safety_check"


def _parsed(contract: Contract, kind: Kind, text: bytes) -> Parsed:
    """Read a body of any length."""
    slices = BodyParser(contract).in_slices(kind, text)
    while True:
        try:
            next(slices)
        except StopIteration as end:
            parsed: Parsed = end.value
            return parsed


def _check_features(document: Mapping[str, Any], spec: Spec) -> None:
    """Refuse an episode whose numbers mean something else than the model's."""
    for field, features in (("state_features", spec.state), ("action_features", spec.action)):
        names = [feature.name for feature in features]
        given = document.get(field, names)
        if not isinstance(given, list) or len(given) != len(names):
            _refuse(field, "are not those of the model", f"its {len(names)} names")
        for index, (one, name) in enumerate(zip(given, names, strict=True)):
            if one != name:
                _refuse(f"{field}[{index}]", f"is {json.dumps(one)}", f"{name}, as in the model")


def _rows(name: str, values: Any, width: int) -> Array:
    try:
        rows = numbers(name, values, (None, width), f"rows of {width} finite numbers")
    except ValueError as exc:
        raise InvalidRequestError(str(exc)) from exc
    with np.errstate(over="ignore"):  # what is too large is refused as part of a request
        return rows.astype(np.float32)


def _refuse(field: str, problem: str, allowed: str) -> NoReturn:
    refuse([detail(field, problem, allowed)])
