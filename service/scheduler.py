"""Jobs in, futures out: one task launches what waits, as soon as the engine is free.

Work-conserving: no timer ever holds a job back. Every future is resolved exactly once: with a
result, an error of the engine, its deadline, the engine's death, or shutdown.

A safety check waits for at most one launch of another class (see `service.queues`), whose size is
bounded by `launch_work`, and for the safety checks that came before it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

import structlog

from service.errors import (
    DeadlineExceededError,
    EngineError,
    OverloadedError,
    ServiceError,
    UnavailableError,
)
from service.interface import Array, Prediction
from service.launches import BadOutputError, checked, gather, joined, portions
from service.observer import Observer
from service.queues import Bounds, Job, JobClass, JobResult, Launch, Queues
from service.vitals import Vitals
from service.worker import Ran, Worker, WorkerLike

log = structlog.get_logger()

CANARY_ATTEMPTS = 3


class Scheduler:
    """Bounded queues in front of one engine.

    All state belongs to the event loop's thread; only `run` and `canary` are called elsewhere, by
    the worker, one at a time.

    Args:
        run: (states [B, S], actions [B, H, A]) -> prediction.
        canary: Raises if the engine cannot make a forward pass.
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
        run: Callable[[Array, Array], Prediction],
        canary: Callable[[], None],
        bounds: Bounds,
        observer: Observer,
        *,
        worker: WorkerLike | None = None,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._run = run
        self._canary = canary
        self._observer = observer
        self._bounds = bounds
        self._worker = worker or Worker()
        self._timer = timer
        self.queues = Queues(bounds)
        self._live: set[Job] = set()
        self._seq = 0
        self._running_work = 0
        self._refusal: str | None = "the service is starting"
        self._is_canary_due = False
        self._canary_timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self.vitals = Vitals(timer)

    async def start(self) -> None:
        """Start the worker and the launching task, and prove that the engine answers."""
        self._worker.start()
        await self._check()
        self._refusal = None
        self._task = asyncio.create_task(self._serve(), name="scheduler")
        self._task.add_done_callback(self._on_end)
        self._arm_canary()

    async def drain(self) -> None:
        """Refuse new jobs and wait until those accepted are resolved."""
        self._refusal = "the service is shutting down"
        while self._live:
            await asyncio.wait([job.future for job in self._live])
            await asyncio.sleep(0)  # lets the futures' callbacks empty the set

    def give_up(self) -> None:
        """Refuse new jobs and resolve those accepted as unavailable, at once."""
        self._refusal = "the service is shutting down"
        self._fail_all("draining", self._refusal)

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
            OverloadedError: The queue of its class is full.
            UnavailableError: The service is starting or draining, or the engine is down.
            DeadlineExceededError: `timeout_s` is not positive.
        """
        self._admit(len(states), job_class, timeout_s)
        loop = asyncio.get_running_loop()
        self._seq += 1
        job = Job(self._seq, job_class, states, actions, loop.create_future(), self._timer())
        job.timer = loop.call_later(timeout_s, self._expire, job, timeout_s)
        job.future.add_done_callback(partial(self._release, job))
        self._live.add(job)
        self.queues.add(job)
        self._wake.set()
        return job.future

    def _admit(self, rows: int, job_class: JobClass, timeout_s: float) -> None:
        if self._refusal is not None:
            self._observer.rejected("draining")
            raise UnavailableError(self._refusal)
        if not self.vitals.is_alive:
            self._observer.rejected("engine_down")
            raise UnavailableError("the engine is down")
        if timeout_s <= 0:
            self._observer.rejected("expired")
            raise DeadlineExceededError("the deadline had passed on arrival")
        if not self.queues.has_room(job_class, rows):
            self._observer.rejected("queue_full")
            raise OverloadedError(
                f"the queue for {job_class} holds {self.queues.rows(job_class)} of "
                f"{self.queues.capacity[job_class]} rows and has no room for {rows} more",
                retry_after_s=self.backlog_s(job_class),
            )

    def backlog_s(self, job_class: JobClass) -> float:
        """Return how long the work before a new job of this class takes, as far as known."""
        return self.vitals.duration_s(self.queues.work_before(job_class) + self._running_work)

    def _release(self, job: Job, future: asyncio.Future[JobResult]) -> None:
        """Free a resolved job's place, however it was resolved."""
        self._live.discard(job)
        if job.timer is not None:
            job.timer.cancel()
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
        """Launch what waits; sleep when nothing does."""
        while True:
            launch = self.queues.next_launch()
            if launch is not None:
                await self._launch(launch)
            if self._is_canary_due:
                await self._check()
            elif launch is None:
                self._wake.clear()
                await self._wake.wait()

    async def _launch(self, launch: Launch) -> None:
        states, actions = gather(launch)
        now = self._timer()
        for piece in launch.pieces:
            piece.job.started_s = now if piece.job.started_s is None else piece.job.started_s
        self._running_work = actions.shape[0] * actions.shape[1]
        ran = await self._worker.run(partial(checked, self._run, states, actions))
        if ran.value is None:
            self._blame(launch, ran)
        else:
            self.vitals.succeeded(self._running_work, ran.seconds)
            self._observer.launched(len(states), len(launch.pieces))
            self._deliver(launch, ran.value, ran.seconds)
        self._running_work = 0

    def _deliver(self, launch: Launch, prediction: Prediction, seconds: float) -> None:
        """Give each job its own rows; resolve those that are complete."""
        for piece, part in portions(launch, prediction):
            job = piece.job
            if job.future.done():
                continue
            job.parts.append(part)
            job.compute_s += seconds
            job.launch_rows = max(job.launch_rows, launch.rows)
            if piece.stop == job.rows:
                job.future.set_result(joined(job))

    def _blame(self, launch: Launch, ran: Ran[Prediction]) -> None:
        """Fail the job that broke a launch; if several were in it, find out which."""
        kind = "bad_output" if isinstance(ran.error, BadOutputError) else "exception"
        self._observer.engine_failed(kind)
        log.error(
            "launch failed",
            kind=kind,
            error=repr(ran.error),
            job_class=launch.job_class,
            rows=launch.rows,
            requests=len(launch.pieces),
        )
        if len(launch.pieces) > 1:
            self.queues.put_back(launch.pieces)
        else:
            cause = type(ran.error).__name__
            self._fail(launch.pieces[0].job, EngineError(f"the engine failed: {cause}"))
        self._is_canary_due = True

    async def _check(self) -> None:
        """Try the engine; after repeated failures all that waits is answered."""
        self._is_canary_due = False
        for _ in range(CANARY_ATTEMPTS):
            ran = await self._worker.run(self._canary)
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
