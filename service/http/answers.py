"""/predict, /rollout and /safety-check: bytes to a job of plain arrays, its result to bytes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import orjson

from models.safety import Verdict, assess, safest
from models.survival import crash_probability, expected_returns
from service.errors import EngineError
from service.http.call import HotRoute, Parts, Pending
from service.http.reading.bodies import BodyParser, Parsed
from service.interface import ModelInfo, Prediction
from service.scheduling.jobs import JobClass, JobResult, Outcome
from service.scheduling.scheduler import Scheduler
from service.telemetry.metrics import Metrics

_JSON = orjson.OPT_SERIALIZE_NUMPY

_Respond = Callable[[Outcome], None]
_Compose = Callable[[Parsed, JobResult], dict[str, Any] | Parts]
_Outputs = Mapping[str, Callable[[Prediction], Any]]

_NUMBERS_AT_ONCE = 2**14
"""Numbers that are written without a pause: a millisecond's work."""

_URGENT_WORK = 2**10
"""Rows x steps up to which a safety check is urgent: bigger ones would hold those behind them."""

_VERDICT_NUMBERS, _VERDICT_STEP_NUMBERS = 300, 3
"""What judging a sequence, and each of its steps, costs in such numbers."""

_PREDICTED: _Outputs = {
    "next_state": lambda p: p.states[:, 1],
    "reward": lambda p: p.rewards[:, 0],
    "done": lambda p: p.dones[:, 0],
    "uncertainty": lambda p: p.uncertainty,
}
_OUTPUTS: _Outputs = {
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
        parser = self._parser
        predict = partial(self._submit, JobClass.PREDICT, self._predicted)
        rollout = partial(self._submit, JobClass.ROLLOUT, self._rolled_out)
        check = partial(self._submit, JobClass.SAFETY, self._judged)
        in_slices = parser.in_slices
        return {
            "/predict": HotRoute(parser.predict, partial(in_slices, "predict"), predict),
            "/rollout": HotRoute(parser.rollout, partial(in_slices, "rollout"), rollout),
            "/safety-check": HotRoute(
                parser.safety_check, partial(in_slices, "safety_check"), check
            ),
        }

    def _submit(
        self,
        job_class: JobClass,
        compose: _Compose,
        parsed: Parsed,
        parse_s: float,
        timeout_s: float,
        respond: _Respond,
    ) -> Pending:
        rows, horizon, _ = parsed.actions.shape
        if job_class is JobClass.SAFETY and rows * horizon > _URGENT_WORK:
            job_class = JobClass.ROLLOUT
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
    ) -> bytes | Parts:
        started = perf_counter()
        answer = compose(parsed, result)
        if isinstance(answer, Parts):
            return answer._replace(texts=self._timed(answer.texts, parse_s, result))
        answer["model_version"] = self._info.version
        body = orjson.dumps(answer, option=_JSON)
        self._metrics.staged(parse_s, result.queue_s, result.compute_s, perf_counter() - started)
        return body

    def _timed(
        self, texts: Iterator[bytes], parse_s: float, result: JobResult
    ) -> Generator[bytes, None, None]:
        """Pass on the texts of a long answer, the version behind them, and note what they took."""
        respond_s = 0.0
        while True:
            started = perf_counter()
            text = next(texts, None)
            respond_s += perf_counter() - started
            if text is None:
                break
            yield text
        yield b',"model_version":%b}' % orjson.dumps(self._info.version)
        self._metrics.staged(parse_s, result.queue_s, result.compute_s, respond_s)

    def _predicted(self, parsed: Parsed, result: JobResult) -> dict[str, Any] | Parts:
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
        return _written(_PREDICTED, self._finite(result), parsed)

    def _rolled_out(self, parsed: Parsed, result: JobResult) -> dict[str, Any] | Parts:
        outputs = {name: _OUTPUTS[name] for name in parsed.outputs}
        return _written(outputs, self._finite(result), parsed)

    def _judged(self, parsed: Parsed, result: JobResult) -> dict[str, Any] | Parts:
        prediction = result.prediction
        if not prediction.is_finite:  # the verdict is `unknown` then, and a fault all the same
            self._metrics.engine_failed("non_finite")
        rows, horizon = prediction.dones.shape
        numbers_a_row = _VERDICT_NUMBERS + _VERDICT_STEP_NUMBERS * horizon
        if parsed.has_trajectory:
            numbers_a_row += prediction.states[0].size
        if rows * numbers_a_row > 2 * _NUMBERS_AT_ONCE and not parsed.is_single:
            at_once = max(1, _NUMBERS_AT_ONCE // numbers_a_row)
            return Parts(self._judged_in_parts(parsed, prediction, at_once), _held(prediction))
        verdicts = self._verdicts(parsed, prediction)
        entries = _entries(verdicts, prediction, parsed)
        if parsed.is_single:
            return entries[0]
        return {"candidates": entries, "best": safest(verdicts)}

    def _judged_in_parts(
        self, parsed: Parsed, prediction: Prediction, at_once: int
    ) -> Iterator[bytes]:
        """Yield the texts of many verdicts, a few at a time; the same text as all at once."""
        best, best_verdict = 0, None
        for first, part in _parts(prediction, at_once):
            verdicts = self._verdicts(parsed, part)
            text = orjson.dumps(_entries(verdicts, part, parsed), option=_JSON)[1:-1]
            yield (b"," if first else b'{"candidates":[') + text
            here = safest(verdicts)
            if best_verdict is None or safest([best_verdict, verdicts[here]]) == 1:
                best, best_verdict = first + here, verdicts[here]
        yield b'],"best":%d' % best

    def _verdicts(self, parsed: Parsed, prediction: Prediction) -> list[Verdict]:
        verdicts = assess(
            prediction.states,
            prediction.dones,
            prediction.uncertainty,
            self._info.limits,
            threshold=parsed.threshold,
        )
        self._metrics.checked(verdicts)
        return verdicts

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
    for first, part in _parts(prediction, 64):
        numbers = (part.states, part.rewards, part.dones)
        rows = len(part.uncertainty)
        finite = np.column_stack([np.isfinite(x).reshape(rows, -1) for x in numbers]).all(axis=1)
        if not finite.all():
            return first + int(np.argmin(finite))
    return 0


def _parts(prediction: Prediction, at_once: int) -> Iterator[tuple[int, Prediction]]:
    """Yield a few rows of a prediction after the others, each with the first one's index."""
    rows = len(prediction.uncertainty)
    for first in range(0, rows, at_once):
        yield first, prediction.part(first, min(first + at_once, rows))


def _held(prediction: Prediction) -> int:
    p = prediction
    return p.states.nbytes + p.rewards.nbytes + p.dones.nbytes + p.uncertainty.nbytes


def _written(outputs: _Outputs, prediction: Prediction, parsed: Parsed) -> dict[str, Any] | Parts:
    """Return outputs for JSON: [K, ...], or their only row if the request had no batch."""
    if parsed.is_single:
        return {name: np.ascontiguousarray(of(prediction))[0] for name, of in outputs.items()}
    rows, horizon = prediction.dones.shape
    state = prediction.states.shape[2]
    of_states = {"states": (horizon + 1) * state, "next_state": state, "final_state": state}
    of_steps = {"rewards": horizon, "dones": horizon}
    sizes = {name: {**of_states, **of_steps}.get(name, 1) for name in outputs}
    if sum(sizes.values()) * rows <= 2 * _NUMBERS_AT_ONCE:
        return {name: np.ascontiguousarray(of(prediction)) for name, of in outputs.items()}
    return Parts(_written_in_parts(outputs, prediction, sizes), _held(prediction))


def _written_in_parts(
    outputs: _Outputs, prediction: Prediction, sizes: Mapping[str, int]
) -> Iterator[bytes]:
    """Yield the texts of outputs, a few rows at a time; the same text as all at once."""
    lead = b"{"
    for name, of in outputs.items():
        at_once = max(1, _NUMBERS_AT_ONCE // (sizes[name] + prediction.dones.shape[1]))
        for first, part in _parts(prediction, at_once):
            text = orjson.dumps(np.ascontiguousarray(of(part)), option=_JSON)[1:-1]
            yield (b"," if first else b'%b"%b":[' % (lead, name.encode())) + text
        lead = b"],"
    yield b"]"


def _entries(
    verdicts: Sequence[Verdict], prediction: Prediction, parsed: Parsed
) -> list[dict[str, Any]]:
    return [
        _entry(verdict, prediction.states[k] if parsed.has_trajectory else None)
        for k, verdict in enumerate(verdicts)
    ]


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
