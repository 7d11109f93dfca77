"""Whether a server says what the model says, before its speed means anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks.serving.candidates import NotMeasuredError
from benchmarks.serving.processes import Server
from benchmarks.serving.workloads import COMPARED

TOLERANCE = 1e-4
"""Absolute, and relative to the expected number."""

_AT_ONCE = 16
_MOST_PLANS = 4


def check(
    server: Server,
    bodies: Mapping[str, Sequence[bytes]],
    expected: Mapping[str, Sequence[Mapping[str, Any]]],
) -> None:
    """Ask all questions, many at once so that a swapped row shows, and compare the answers.

    Args:
        server: Ready.
        bodies: By kind of request, one a question.
        expected: By kind of request, the fields of the answer to each.

    Raises:
        NotMeasuredError: An answer is missing or differs.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for kind, asked in bodies.items():
            count = _MOST_PLANS if kind == "plan" else len(asked)
            try:
                answers = list(pool.map(lambda body, k=kind: server.ask(k, body), asked[:count]))
            except OSError as exc:
                raise NotMeasuredError(
                    f"its answers to {kind} could not be checked: {exc}"
                ) from exc
            for answer, wanted in zip(answers, expected[kind], strict=False):
                problem = difference(kind, server.candidate.dialect.read(answer), wanted)
                if problem is not None:
                    raise NotMeasuredError(f"refused: {problem}")


def difference(kind: str, answer: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """Return how an answer differs from the model's; None if it does not."""
    for name in COMPARED[kind]:
        if name not in answer:
            return f"its answer to {kind} lacks {name}"
        got, wanted = np.asarray(answer[name], float), np.asarray(expected[name], float)
        if got.shape != wanted.shape:
            return f"{name} of {kind} has shape {got.shape}, the model's has {wanted.shape}"
        error = np.abs(got - wanted)
        if not (error <= TOLERANCE * (1 + np.abs(wanted))).all():
            return f"{name} of {kind} differs from the model's by up to {error.max():.2g}"
    return None
