"""The table of endpoints: app, metric labels, OpenAPI and exchanges read it.

A new prediction endpoint is a row here, its fields (`contract`, `reading.bodies`) and its answer
(`answers`, `schemas`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from pydantic import BaseModel

from service.http.answers import Answers, Parts
from service.http.contract import Kind
from service.http.reading.bodies import Parsed
from service.http.schemas import CandidatesAnswer, PredictAnswer, RolloutAnswer, SafetyCheckAnswer
from service.scheduling.jobs import JobClass, JobResult

_URGENT_CHECK = 2**10
"""Bigger safety checks would hold those behind them."""


class Endpoint(NamedTuple):
    """An endpoint that the model answers; it takes POST only.

    Attributes:
        path: Its path, which is its metric label, too, but with an attribution.
        summary: For the documents.
        kind: Names its body in the contract.
        request: Name of its body's schema.
        job_class: Of its jobs.
        answer: Makes JSON fields of a job's result, or a long answer in parts.
        answers: Schemas of its answers.
        urgent_work: Rows x steps of a job beyond which it takes its turn with rollouts.
    """

    path: str
    summary: str
    kind: Kind
    request: str
    job_class: JobClass
    answer: Callable[[Answers, Parsed, JobResult], dict[str, Any] | Parts]
    answers: tuple[type[BaseModel], ...]
    urgent_work: float = math.inf


ENDPOINTS = (
    Endpoint(
        "/predict",
        "Predict one step",
        "predict",
        "PredictRequest",
        JobClass.PREDICT,
        Answers.predicted,
        (PredictAnswer,),
    ),
    Endpoint(
        "/rollout",
        "Predict sequences",
        "rollout",
        "RolloutRequest",
        JobClass.ROLLOUT,
        Answers.rolled_out,
        (RolloutAnswer,),
    ),
    Endpoint(
        "/safety-check",
        "Will these actions crash?",
        "safety_check",
        "SafetyCheckRequest",
        JobClass.SAFETY,
        Answers.judged,
        (SafetyCheckAnswer, CandidatesAnswer),
        _URGENT_CHECK,
    ),
)

PROBES = ("/healthz", "/readyz", "/metrics")
"""Need no key."""

PATHS = (
    *(endpoint.path for endpoint in ENDPOINTS),
    "/model",
    *PROBES,
    "/",
    "/docs",
    "/openapi.json",
)
"""Every route's template, in the order of the documents: values of the metric label `endpoint`."""
