"""How servers want to be asked: paths, bodies, and where the numbers are in an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from benchmarks.serving.workloads import Question, asked_rows

_NUMPY = orjson.OPT_SERIALIZE_NUMPY


@dataclass(frozen=True)
class Dialect:
    """One way of asking.

    Attributes:
        path: Kind of request -> path.
        body: Kind of request, question -> body.
        read: Body of an answer -> its fields.
    """

    path: Callable[[str], str]
    body: Callable[[str, Question], bytes]
    read: Callable[[bytes], Mapping[str, Any]]


def _json_body(kind: str, question: Question) -> bytes:
    states, actions = (np.ascontiguousarray(x) for x in asked_rows(kind, question))
    body: dict[str, Any] = {"state": states[0]}
    if kind == "predict":
        body["action"] = actions[0, 0]
    elif kind == "plan":
        body |= {"actions": actions, "outputs": ["returns", "crash_probability"]}
    else:
        body["actions"] = actions[0]
    return orjson.dumps(body, option=_NUMPY)


def _tensor_body(kind: str, question: Question) -> bytes:
    states, actions = asked_rows(kind, question)
    tensors = {"state": states[:1], "actions": actions}
    inputs = [
        {
            "name": name,
            "shape": x.shape,
            "datatype": "FP32",
            "data": np.ascontiguousarray(x.ravel()),
        }
        for name, x in tensors.items()
    ]
    return orjson.dumps({"inputs": inputs}, option=_NUMPY)


def _read_tensors(body: bytes) -> Mapping[str, Any]:
    """Return tensors by name, without dims of 1: servers add them where plain JSON has none."""
    outputs = orjson.loads(body)["outputs"]
    return {x["name"]: np.squeeze(np.array(x["data"]).reshape(x["shape"])) for x in outputs}


OURS = Dialect(lambda kind: "/rollout" if kind == "plan" else f"/{kind}", _json_body, orjson.loads)
"""The service's contract."""

PLAIN_JSON = Dialect(lambda kind: f"/{kind}", _json_body, orjson.loads)
"""The same bodies, a path for each kind."""

TENSORS = Dialect(lambda kind: f"/v2/models/{kind}/infer", _tensor_body, _read_tensors)
"""The Open Inference Protocol, a model for each kind."""
