"""Jobs in, futures out: one task computes what waits, as soon as the engine is free.

Work-conserving: no timer ever holds a job back. Every future is resolved exactly once: with a
result, an error of the engine, its deadline, the engine's death, or shutdown.

A safety check waits for at most one slice of another class (see `service.queues`), which lasts
about `preempt_after_s`, and for the safety checks that came before it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

import structlog

from service.admission import Admission
from service.errors import (
    DeadlineExceededError,
    EngineError,
    ServiceError,
    UnavailableError,
)
from service.interface import Array, EngineLike, Prediction
from service.jobs import Bounds, Job, JobClass, JobResult, Launch
from service.launches import BadOutputError, checked, gather, joined, portions
from service.observer import Observer
from service.queues import Queues
from service.vitals import Vitals
from service.worker import Worker, WorkerLike, timed

log = structlog.get_logger()

CANARY_ATTEMPTS = 3
_DRAINING = "the service is shutting down"


class Scheduler:
    """Bounded queues in front of one engine.

    All state belongs to the event loop's thread. The engine is called by one thread at a time: by
    the worker, or for slices shorter than the worker's thread is worth, here.

    Args:
        engine: Begins launches, and knows what they cost.
        bounds: Limits.
        observer: Counts what happens.
        worker: Runs engine calls; a thread by default.
        timer: Clock for durations. Deadlines use the loop's.

    Attributes:
        queues: What waits.
        vitals: How the engine does.
    """

    def __init__(
        self,
        engine: EngineLike,
        bounds: Bounds,
        observer: Observer,
        *,
        worker: WorkerLike | None = None,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._engine = engine
        self._observer = observer
        self._bounds = bounds
        self._worker = worker or Worker()
        self._timer = timer
        self.queues = Queues(bounds, self._most_rows)
        self._live: set[Job] = set()
        self._seq = 0
        self._is_canary_due = False
        self._canary_timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self.vitals = Vitals(timer)
        self._admission = Admission(engine, self.queues, self.vitals, observer)

    async def start(self) -> None:
        """Start the worker and the launching task, and prove that the engine answers."""
        self._worker.start()
        await self._check()
        self._admission.refusal = None
        self._task = asyncio.create_task(self._serve(), name="scheduler")
        self._task.add_done_callback(self._on_end)
        self._arm_canary()

    async def drain(self) -> None:
        """Refuse new jobs and wait until those accepted are resolved."""
        self._admission.refusal = _DRAINING
        while self._live:
            await asyncio.wait([job.future for job in self._live])
            await asyncio.sleep(0)  # lets the futures' callbacks empty the set

    def give_up(self) -> None:
        """Refuse new jobs and resolve those accepted as unavailable, at once."""
        self._admission.refusal = _DRAINING
        self._fail_all("draining", _DRAINING)

    async def close(self, timeout_s: float = 1.0) -> None:
        """Refuse new jobs, resolve those that are left as unavailable, end the worker.

        Args:
            timeout_s: How long to wait for an engine call in progress.
        """
        self.give_up()
        if self._canary_timer is not None:
            self._canary_timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._worker.close(timeout_s)

    async def submit(
        self, states: Array, actions: Array, *, job_class: JobClass, timeout_s: float
    ) -> JobResult:
        """Wait for the prediction of B rows; arguments and errors are those of `enqueue`."""
        return await self.enqueue(states, actions, job_class=job_class, timeout_s=timeout_s)

    def enqueue(
        self, states: Array, actions: Array, *, job_class: JobClass, timeout_s: float
    ) -> asyncio.Future[JobResult]:
        """Queue a job; cancelling the future frees its place.

        Args:
            states: [B, S], float32, finite.
            actions: [B, H, A], float32, finite, H >= 1.
            job_class: Decides its queue and its turn.
            timeout_s: Time until its deadline.

        Returns:
            A future of the result; it may hold EngineError, UnavailableError or
            DeadlineExceededError.

        Raises:
            OverloadedError: The queue of its class is full, or its answer would be late.
            UnavailableError: The service is starting or draining, or the engine is down.
            DeadlineExceededError: `timeout_s` is not positive.
        """
        rows, horizon = actions.shape[:2]
        self._admission.check(rows, horizon, job_class, timeout_s)
        loop = asyncio.get_running_loop()
        self._seq += 1
        future: asyncio.Future[JobResult] = loop.create_future()
        job = Job(self._seq, job_class, states, actions, rows, horizon, future, self._timer())
        job.timer = loop.call_later(timeout_s, self._expire, job, timeout_s)
        future.add_done_callback(partial(self._release, job))
        self._live.add(job)
        self.queues.add(job)
        self._wake.set()
        return future

    def _release(self, job: Job, future: asyncio.Future[JobResult]) -> None:
        """Free a resolved job's place, however it was resolved."""
        self._live.discard(job)
        if job.timer is not None:
            job.timer.cancel()
        if job.lane is not None:
            self.queues.remove(job)
        if future.cancelled():
            self._observer.rejected("cancelled")

    def _expire(self, job: Job, timeout_s: float) -> None:
        where = "while it waited" if job.started_s is None else "while it was computed"
        if self._fail(job, DeadlineExceededError(f"no answer within {timeout_s:g} s, {where}")):
            self._observer.rejected("expired")

    def _fail(self, job: Job, error: ServiceError) -> bool:
        """Resolve a job with an error; False if it was resolved already."""
        if job.future.done():
            return False
        job.future.set_exception(error)
        self.queues.remove(job)
        return True

    def _fail_all(self, reason: str, message: str) -> None:
        for job in list(self._live):
            if self._fail(job, UnavailableError(message)):
                self._observer.rejected(reason)

    async def _serve(self) -> None:
        """Compute what waits, slice by slice; sleep when nothing does."""
        while True:
            launch = self.queues.next_launch()
            if launch is not None:
                await self._advance(launch)
            if self._is_canary_due:
                await self._check()
            elif launch is None:
                self._wake.clear()
                await self._wake.wait()

    async def _advance(self, launch: Launch) -> None:
        """Compute a slice of a launch."""
        costs = self._engine.costs
        steps = costs.most_steps(self._bounds.preempt_after_s, launch.rows)
        # At least one: a launch that did not fit the memory begins anew in halves.
        steps = max(1, min(steps, launch.horizon - launch.taken))
        expected_s = costs.launch_s(launch.rows, steps)
        if launch.running is None:
            now = self._timer()
            for piece in launch.pieces:
                piece.job.started_s = now if piece.job.started_s is None else piece.job.started_s
        call = partial(self._compute, launch, steps)
        if self._engine.is_quick_to_call and self.vitals.pace * expected_s <= self._bounds.inline_s:
            ran = timed(call)
            await asyncio.sleep(0)  # lets others in between slices
        else:
            ran = await self._worker.run(call)
        launch.seconds += ran.seconds
        if ran.error is not None:
            self._blame(launch, ran.error)
            return
        self.vitals.succeeded(expected_s, ran.seconds)
        launch.taken += steps
        if ran.value is not None:
            self._deliver(launch, ran.value)

    def _compute(self, launch: Launch, steps: int) -> Prediction | None:
        """Begin a launch or go on with it; return its prediction once it is complete."""
        if launch.running is None:
            states, actions = gather(launch)
            launch.running = self._engine.begin(states, actions)
        if not launch.running.advance(steps):
            return None
        return checked(launch.running.result(), launch)

    def _most_rows(self, horizon: int) -> int:
        return self._engine.costs.most_rows(self._bounds.preempt_after_s, horizon)

    def _deliver(self, launch: Launch, prediction: Prediction) -> None:
        """Give each job its own rows; resolve those that are complete."""
        self.queues.close(launch)
        self._observer.launched(launch.rows, len(launch.pieces))
        for piece, part in portions(launch, prediction):
            job = piece.job
            if job.future.done():
                continue
            job.parts.append(part)
            job.compute_s += launch.seconds
            job.launch_rows = max(job.launch_rows, launch.rows)
            if piece.stop == job.rows:
                job.future.set_result(joined(job))

    def _blame(self, launch: Launch, error: Exception) -> None:
        """Fail the job that broke a launch; if several were in it, find out which."""
        self.queues.close(launch)
        kind = "bad_output" if isinstance(error, BadOutputError) else "exception"
        self._observer.engine_failed(kind)
        log.error(
            "launch failed",
            kind=kind,
            error=repr(error),
            job_class=launch.job_class,
            rows=launch.rows,
            requests=len(launch.pieces),
        )
        if len(launch.pieces) > 1:
            self.queues.put_back(launch.pieces)
        else:
            cause = type(error).__name__
            self._fail(launch.pieces[0].job, EngineError(f"the engine failed: {cause}"))
        self._is_canary_due = True

    async def _check(self) -> None:
        """Try the engine; after repeated failures all that waits is answered."""
        self._is_canary_due = False
        for _ in range(CANARY_ATTEMPTS):
            ran = await self._worker.run(self._engine.canary)
            if ran.error is None:
                self.vitals.succeeded()
                self.vitals.is_alive = True
                return
            self._observer.engine_failed("canary")
            log.error("canary failed", kind="canary", error=repr(ran.error))
        self.vitals.is_alive = False
        self._fail_all("engine_down", "the engine is down")

    def _arm_canary(self) -> None:
        interval_s = self._bounds.canary_interval_s
        self._canary_timer = asyncio.get_running_loop().call_later(interval_s, self._on_canary)

    def _on_canary(self) -> None:
        age_s = self.vitals.age_s
        # A tenth of slack: a timer may fire a clock tick early.
        is_stale = age_s is None or age_s >= 0.9 * self._bounds.canary_interval_s
        if is_stale or not self.vitals.is_alive:
            self._is_canary_due = True
            self._wake.set()
        self._arm_canary()

    def _on_end(self, task: asyncio.Task[None]) -> None:
        """Resolve everything if the launching task itself ends by a fault of ours."""
        if task.cancelled() or task.exception() is None:
            return
        log.error("scheduler failed", error=repr(task.exception()))
        self.vitals.is_alive = False
        self._fail_all("engine_down", "the scheduler failed")
