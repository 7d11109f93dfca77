"""From a job's result to the JSON text of `/predict`, `/rollout` and `/safety-check`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import orjson

from models.safety import SafetyLimits, Verdict, assess, safest
from models.survival import crash_probability, expected_returns
from service.errors import EngineError
from service.http.explained import attribution_fields
from service.http.reading.bodies import Parsed
from service.interface import Attribution, ModelInfo, Prediction
from service.scheduling.jobs import JobResult
from service.telemetry.metrics import Metrics

_JSON = orjson.OPT_SERIALIZE_NUMPY

_Outputs = Mapping[str, Callable[[Prediction], Any] | None]
"""By name, what makes an output [K, ...] of a prediction; None: it is null."""

_NUMBERS_AT_ONCE = 2**14
"""Numbers that are written without a pause: a millisecond's work."""

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


TYPE_LINE = b"content-type: application/json\r\n"
ID_LINE = b"x-request-id: %b\r\n"
JSON_HEAD = TYPE_LINE + b"content-length: %d\r\n" + ID_LINE
"""Head lines of an answer: what it is, and whose; of one whose length is known, all of them."""


class Parts(NamedTuple):
    """A long answer, made while it is sent.

    Attributes:
        texts: Parts of its JSON text; each takes about a millisecond to make.
        held_bytes: What is kept until the last part is made.
    """

    texts: Iterator[bytes]
    held_bytes: int


class Reply(NamedTuple):
    """What is sent to a caller.

    Attributes:
        status: HTTP status.
        head: Header lines, each with its end.
        body: JSON.
        parts: The body if it is long, made while it is sent; its length is not known then.
    """

    status: int
    head: bytes
    body: bytes
    parts: Parts | None = None


class Answers:
    """Makes the answers of the prediction endpoints.

    Args:
        info: The loaded model.
        metrics: Counts stages and verdicts.
    """

    def __init__(self, info: ModelInfo, metrics: Metrics) -> None:
        self._metrics = metrics
        self._spec = info.spec
        self._by_members = {k: info.of(k) for k in (None, *range(1, info.members))}

    def text(
        self,
        compose: Callable[[Answers, Parsed, JobResult], dict[str, Any] | Parts],
        parsed: Parsed,
        parse_s: float,
        result: JobResult,
        attribution: Attribution | None = None,
    ) -> bytes | Parts:
        """Return an answer's JSON text.

        Args:
            compose: Makes its fields: `predicted`, `rolled_out` or `judged`.
            parsed: The request.
            parse_s: What reading it took.
            result: Of its job.
            attribution: To be included if the request asks for it; None: there is none to be had.

        Raises:
            EngineError: A number of the prediction is not finite.
        """
        started = perf_counter()
        answer = compose(self, parsed, result)
        if isinstance(answer, Parts):
            texts = self._timed(answer.texts, parsed, parse_s, result)
            return answer._replace(texts=texts)
        if parsed.has_attribution:
            answer["attribution"] = attribution and attribution_fields(attribution, self._spec)
        answer["model_version"] = self._by_members[parsed.members].version
        body = orjson.dumps(answer, option=_JSON)
        self._metrics.observe_stages(
            parse_s, result.queue_s, result.compute_s, perf_counter() - started
        )
        return body

    def _timed(
        self, texts: Iterator[bytes], parsed: Parsed, parse_s: float, result: JobResult
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
        version = self._by_members[parsed.members].version
        yield b',"model_version":%b}' % orjson.dumps(version)
        self._metrics.observe_stages(parse_s, result.queue_s, result.compute_s, respond_s)

    def predicted(self, parsed: Parsed, result: JobResult) -> dict[str, Any] | Parts:
        """Return the answer of `/predict`."""
        has_disagreement = self._limits(parsed).has_disagreement
        if parsed.is_single and result.launched.is_finite and has_disagreement:
            # The most frequent request of all: no detour by views of its rows.
            row, launched = result.first, result.launched
            uncertainty = launched.uncertainty[row]
            self._metrics.observe_uncertainty(float(uncertainty))
            return {
                "next_state": launched.states[row, 1],
                "reward": launched.rewards[row, 0],
                "done": launched.dones[row, 0],
                "uncertainty": uncertainty,
            }
        outputs = _PREDICTED if has_disagreement else {**_PREDICTED, "uncertainty": None}
        return _written(outputs, self._finite(parsed, result), parsed)

    def rolled_out(self, parsed: Parsed, result: JobResult) -> dict[str, Any] | Parts:
        """Return the answer of `/rollout`."""
        outputs = {name: _OUTPUTS[name] for name in parsed.outputs}
        if "uncertainty" in outputs and not self._limits(parsed).has_disagreement:
            outputs["uncertainty"] = None
        return _written(outputs, self._finite(parsed, result), parsed)

    def judged(self, parsed: Parsed, result: JobResult) -> dict[str, Any] | Parts:
        """Return the answer of `/safety-check`."""
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
            verdicts = self._verdicts(parsed, part, first)
            text = orjson.dumps(_entries(verdicts, part, parsed), option=_JSON)[1:-1]
            yield (b"," if first else b'{"candidates":[') + text
            here = safest(verdicts)
            if best_verdict is None or safest([best_verdict, verdicts[here]]) == 1:
                best, best_verdict = first + here, verdicts[here]
        yield b'],"best":%d' % best

    def _verdicts(self, parsed: Parsed, prediction: Prediction, first: int = 0) -> list[Verdict]:
        """Judge a prediction of a request's rows from the first named one on."""
        uncertainty = prediction.uncertainty
        if not prediction.is_finite:  # rewards decide no verdict, but such a model is not trusted
            has_rewards = np.isfinite(prediction.rewards).all(axis=1)
            uncertainty = np.where(has_rewards, uncertainty, np.float32("nan"))
        verdicts = assess(
            prediction.states,
            prediction.dones,
            uncertainty,
            self._limits(parsed),
            actions=parsed.actions[first : first + len(uncertainty)],
            threshold=parsed.threshold,
        )
        self._metrics.observe_verdicts(verdicts, has_uncertainty=parsed.members is None)
        return verdicts

    def _limits(self, parsed: Parsed) -> SafetyLimits:
        return self._by_members[parsed.members].limits

    def _finite(self, parsed: Parsed, result: JobResult) -> Prediction:
        """Return a job's prediction; refuse what JSON cannot hold and nobody should act on.

        Raises:
            EngineError: A number of it is not finite.
        """
        prediction = result.prediction
        if not prediction.is_finite:
            self._metrics.engine_failed("non_finite")
            row = _first_broken_row(prediction)
            raise EngineError(f"non-finite prediction in row {row}: the model diverged")
        # Fewer members disagree less: counted with all, they would look like other traffic.
        if parsed.members is None and self._limits(parsed).has_disagreement:
            self._metrics.observe_uncertainties(prediction.uncertainty)
        return prediction


def _first_broken_row(prediction: Prediction) -> int:
    """Return the first row of a prediction, one of them not finite, that is not."""
    for first, part in _parts(prediction, 64):
        numbers = (part.states, part.rewards, part.dones, part.uncertainty)
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
        return {
            name: None if of is None else np.ascontiguousarray(of(prediction))[0]
            for name, of in outputs.items()
        }
    rows, horizon = prediction.dones.shape
    state = prediction.states.shape[2]
    of_states = {"states": (horizon + 1) * state, "next_state": state, "final_state": state}
    of_steps = {"rewards": horizon, "dones": horizon}
    sizes = {name: {**of_states, **of_steps}.get(name, 1) for name in outputs}
    if sum(sizes.values()) * rows <= 2 * _NUMBERS_AT_ONCE:
        return {
            name: None if of is None else np.ascontiguousarray(of(prediction))
            for name, of in outputs.items()
        }
    return Parts(_written_in_parts(outputs, prediction, sizes), _held(prediction))


def _written_in_parts(
    outputs: _Outputs, prediction: Prediction, sizes: Mapping[str, int]
) -> Iterator[bytes]:
    """Yield the texts of outputs, a few rows at a time; the same text as all at once."""
    lead = b"{"
    for name, of in outputs.items():
        if of is None:
            yield b'%b"%b":null' % (lead, name.encode())
            lead = b","
            continue
        at_once = max(1, _NUMBERS_AT_ONCE // (sizes[name] + prediction.dones.shape[1]))
        for first, part in _parts(prediction, at_once):
            text = orjson.dumps(np.ascontiguousarray(of(part)), option=_JSON)[1:-1]
            yield (b"," if first else b'%b"%b":[' % (lead, name.encode())) + text
        lead = b"],"
    if lead == b"],":
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
        "expected_error_m": verdict.expected_error_m,
        "threshold": verdict.threshold,
        "reasons": verdict.reasons,
        "horizon_s": verdict.horizon_s,
    }
    if trajectory is not None:
        entry["trajectory"] = np.ascontiguousarray(trajectory)
    return entry
