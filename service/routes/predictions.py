"""/predict, /rollout and /safety-check: bytes to a job of plain arrays, its result to bytes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import orjson

from models.outcomes import crash_probability, expected_returns
from models.safety import Verdict, assess, safest
from service.bodies import BodyParser, Parsed
from service.errors import EngineError
from service.interface import ModelInfo, Prediction
from service.jobs import JobClass, JobResult, Outcome
from service.metrics import Metrics
from service.routes.call import HotRoute, Pending
from service.scheduler import Scheduler

_JSON = orjson.OPT_SERIALIZE_NUMPY

_Respond = Callable[[Outcome], None]
_Compose = Callable[[Parsed, JobResult], dict[str, Any]]

_OUTPUTS: dict[str, Callable[[Prediction], Any]] = {
    "states": lambda p: p.states,
    "rewards": lambda p: p.rewards,
    "dones": lambda p: p.dones,
    "returns": lambda p: expected_returns(p.rewards, p.dones),
    "crash_probability": lambda p: crash_probability(p.dones),
    "uncertainty": lambda p: p.uncertainty,
    "final_state": lambda p: p.states[:, -1],
}


class Predictions:
    """The routes that need the model.

    Args:
        parser: Reads bodies for the loaded model.
        scheduler: Receives the jobs.
        info: The loaded model.
        metrics: Counts stages and verdicts.
    """

    def __init__(
        self, parser: BodyParser, scheduler: Scheduler, info: ModelInfo, metrics: Metrics
    ) -> None:
        self._parser = parser
        self._scheduler = scheduler
        self._info = info
        self._metrics = metrics

    def routes(self) -> dict[str, HotRoute]:
        """Return the routes by path; all answer POST only."""
        return {
            "/predict": self.predict,
            "/rollout": self.rollout,
            "/safety-check": self.safety_check,
        }

    def predict(self, body: bytes, timeout_s: float, respond: _Respond) -> Pending:
        """Predict one step."""
        parse = self._parser.predict
        return self._ask(parse, body, timeout_s, JobClass.PREDICT, self._predicted, respond)

    def rollout(self, body: bytes, timeout_s: float, respond: _Respond) -> Pending:
        """Predict sequences, and answer the outputs asked for."""
        parse = self._parser.rollout
        return self._ask(parse, body, timeout_s, JobClass.ROLLOUT, self._rolled_out, respond)

    def safety_check(self, body: bytes, timeout_s: float, respond: _Respond) -> Pending:
        """Judge sequences."""
        parse = self._parser.safety_check
        return self._ask(parse, body, timeout_s, JobClass.SAFETY, self._judged, respond)

    def _ask(
        self,
        parse: Callable[[bytes], Parsed],
        body: bytes,
        timeout_s: float,
        job_class: JobClass,
        compose: _Compose,
        respond: _Respond,
    ) -> Pending:
        started = perf_counter()
        parsed = parse(body)
        parse_s = perf_counter() - started
        job = self._scheduler.enqueue(
            parsed.states,
            parsed.actions,
            job_class=job_class,
            timeout_s=timeout_s,
            respond=respond,
        )
        cancel = partial(self._scheduler.cancel, job)
        return Pending(job, cancel, partial(self._answer, compose, parsed, parse_s))

    def _answer(
        self, compose: _Compose, parsed: Parsed, parse_s: float, result: JobResult
    ) -> bytes:
        started = perf_counter()
        answer = compose(parsed, result)
        answer["model_version"] = self._info.version
        body = orjson.dumps(answer, option=_JSON)
        self._metrics.staged(parse_s, result.queue_s, result.compute_s, perf_counter() - started)
        return body

    def _predicted(self, parsed: Parsed, result: JobResult) -> dict[str, Any]:
        if parsed.is_single and result.launched.is_finite:
            # The most frequent request of all: no detour by views of its rows.
            row, launched = result.first, result.launched
            uncertainty = launched.uncertainty[row]
            self._metrics.disagreed_once(float(uncertainty))
            return {
                "next_state": launched.states[row, 1],
                "reward": launched.rewards[row, 0],
                "done": launched.dones[row, 0],
                "uncertainty": uncertainty,
            }
        prediction = self._finite(result)
        return {
            "next_state": _rows(prediction.states[:, 1], parsed),
            "reward": _rows(prediction.rewards[:, 0], parsed),
            "done": _rows(prediction.dones[:, 0], parsed),
            "uncertainty": _rows(prediction.uncertainty, parsed),
        }

    def _rolled_out(self, parsed: Parsed, result: JobResult) -> dict[str, Any]:
        prediction = self._finite(result)
        return {name: _rows(_OUTPUTS[name](prediction), parsed) for name in parsed.outputs}

    def _judged(self, parsed: Parsed, result: JobResult) -> dict[str, Any]:
        prediction = result.prediction
        if not prediction.is_finite:  # the verdict is `unknown` then, and a fault all the same
            self._metrics.engine_failed("non_finite")
        verdicts = assess(
            prediction.states,
            prediction.dones,
            prediction.uncertainty,
            self._info.limits,
            threshold=parsed.threshold,
        )
        self._metrics.checked(verdicts)
        entries = [
            _entry(verdict, prediction.states[k] if parsed.has_trajectory else None)
            for k, verdict in enumerate(verdicts)
        ]
        if parsed.is_single:
            return entries[0]
        return {"candidates": entries, "best": safest(verdicts)}

    def _finite(self, result: JobResult) -> Prediction:
        """Return a job's prediction; refuse what JSON cannot hold and nobody should act on.

        Raises:
            EngineError: A number of it is not finite.
        """
        prediction = result.prediction
        if not prediction.is_finite:
            self._metrics.engine_failed("non_finite")
            row = _first_broken_row(prediction)
            raise EngineError(f"non-finite prediction in row {row}: the model diverged")
        self._metrics.disagreed(prediction.uncertainty)
        return prediction


def _first_broken_row(prediction: Prediction) -> int:
    """Return the first row of a prediction, one of them not finite, that is not."""
    numbers = (prediction.states, prediction.rewards, prediction.dones)
    rows = len(prediction.uncertainty)
    finite = np.column_stack([np.isfinite(x).reshape(rows, -1) for x in numbers])
    return int(np.argmin(finite.all(axis=1)))


def _rows(values: Any, parsed: Parsed) -> Any:
    """Return an output for JSON: [K, ...], or its only row if the request had no batch."""
    return np.ascontiguousarray(values)[0] if parsed.is_single else np.ascontiguousarray(values)


def _entry(verdict: Verdict, trajectory: Any) -> dict[str, Any]:
    """Return a verdict as JSON fields; a trajectory's non-finite numbers become null."""
    entry: dict[str, Any] = {
        "verdict": verdict.verdict,
        "crash_probability": verdict.crash_probability,
        "crash_probability_by_step": verdict.crash_probability_by_step,
        "time_to_crash_s": verdict.time_to_crash_s,
        "uncertainty": verdict.uncertainty,
        "threshold": verdict.threshold,
        "reasons": verdict.reasons,
        "horizon_s": verdict.horizon_s,
    }
    if trajectory is not None:
        entry["trajectory"] = np.ascontiguousarray(trajectory)
    return entry
