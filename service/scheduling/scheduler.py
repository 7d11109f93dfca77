"""Jobs in, outcomes out: one task computes what waits, as soon as the engine is free.

Work-conserving: no timer ever holds a job back. Every job gets exactly one outcome: a result, an
error of the engine, its deadline, the engine's death, shutdown, or none as it was cancelled.

A safety check waits for at most one slice of another class (see `service.scheduling.queues`), and
for the safety checks that came before it. A slice lasts about `preempt_after_s`; where launches
cannot be left between steps, as on a GPU, half as long again as the smallest launch of its horizon
and members, if that is longer. While no job waits, attributions are computed
(`service.scheduling.explanations`), piece by piece: whoever comes waits for one piece at most.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

import structlog

from service.errors import DeadlineExceededError, EngineError, UnavailableError
from service.interface import Array, EngineLike, Prediction
from service.scheduling.admission import Admission
from service.scheduling.deadlines import Deadlines
from service.scheduling.explanations import Explained, Explanations, Question
from service.scheduling.health import ENGINE_DOWN, SHUTTING_DOWN, Health
from service.scheduling.jobs import Bounds, Job, JobClass, JobResult, Observer, Outcome
from service.scheduling.launches import BadOutputError, Launch, timed
from service.scheduling.queues import Queues
from service.scheduling.worker import Worker, WorkerLike, input_file

log = structlog.get_logger()

_FAILED = "the scheduler failed"


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
        health: Whether jobs are accepted and the engine can be used.
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
        self.queues = Queues(bounds)
        self._live: dict[int, Job] = {}
        self._explanations = Explanations(engine, observer)
        self._deadlines = Deadlines(self._live, self._expire)
        self._seq = 0
        self._task: asyncio.Task[None] | None = None
        self._is_quick = False
        self._stop_when_readable: int | None = None
        self._wake = asyncio.Event()
        self.health = Health(bounds, observer, timer)
        self._admission = Admission(engine, bounds, self.queues, self.health, observer)

    async def start(self) -> None:
        """Start the worker and the launching task, and prove that the engine answers."""
        self._worker.start()
        self._is_quick = self._engine.is_quick_to_call
        self._stop_when_readable = input_file(asyncio.get_running_loop())
        await self._try_engine()
        self.health.accept_jobs()
        self._task = asyncio.create_task(self._serve(), name="scheduler")
        self._task.add_done_callback(self._on_end)
        self.health.watch(self._wake.set)

    def end_explanations(self) -> None:
        """Take no more questions for attributions, and answer only the one that was begun.

        Those that wait would take longer than what else has come, and the service's end with them.
        """
        self._explanations.is_ending = True
        error = UnavailableError(SHUTTING_DOWN)
        self._explanations.end_all(error, "draining", but_begun=True)

    def give_up(self) -> None:
        """Refuse new jobs and resolve those accepted as unavailable, at once."""
        self.health.refuse_jobs()
        self._fail_all("draining", SHUTTING_DOWN)

    async def close(self, timeout_s: float = 1.0) -> None:
        """Refuse new jobs, resolve those that are left as unavailable, end the worker.

        Args:
            timeout_s: How long to wait for an engine call in progress.
        """
        self.give_up()
        self._deadlines.close()
        self.health.stop_watching()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._worker.close(timeout_s)

    def enqueue(
        self,
        states: Array,
        actions: Array,
        *,
        job_class: JobClass,
        timeout_s: float,
        respond: Callable[[Outcome], None],
        members: int | None = None,
    ) -> Job:
        """Queue a job.

        Args:
            states: [B, S], float32, finite.
            actions: [B, H, A], float32, finite, H >= 1.
            job_class: Decides its queue and its turn.
            timeout_s: Time until its deadline.
            respond: Gets its outcome, exactly once and later than this call: a result, an
                EngineError, an UnavailableError, a DeadlineExceededError, or None.
            members: How many compute it, the first ones, fewer than are served; None: all.

        Raises:
            OverloadedError: The queue of its class is full, or its answer would be late.
            UnavailableError: The service is starting or draining, or the engine is down.
            DeadlineExceededError: `timeout_s` is not positive.
        """
        rows, horizon, _ = actions.shape
        self._admission.check(rows, horizon, job_class, timeout_s, members)
        loop = asyncio.get_running_loop()
        seq = self._seq = self._seq + 1
        job = Job(seq, job_class, states, actions, rows, horizon, respond, members)
        job.submitted_s = self._timer()
        job.timeout_s = timeout_s
        job.deadline_s = loop.time() + timeout_s
        # What can fail comes first: a job that is queued has a caller that waits for its outcome.
        self._deadlines.watch(job, loop)
        self.queues.add(job)
        self._live[seq] = job
        self._wake.set()
        return job

    def least_s(self, rows: int, horizon: int, members: int | None = None) -> float:
        """Return the shortest deadline that is kept for a job if nothing else does anything."""
        return self._admission.least_s(rows, horizon, members)

    def backlog_s(self, job_class: JobClass) -> float:
        """Return how long the work before a new job of a class takes, as far as known."""
        return self._admission.backlog_s(job_class)

    def queue_s(self, job_class: JobClass) -> float:
        """Return how long what waits or is begun of a class takes, as far as known."""
        return self._admission.queue_s(job_class)

    def cancel(self, job: Job) -> None:
        """Free a job's place; its outcome is None, unless it had one already."""
        if self._resolve(job, None):
            self._observer.rejected("cancelled")

    def explain(
        self,
        state: Array,
        actions: Array,
        *,
        deadline_s: float,
        respond: Callable[[Explained], None],
        members: int | None = None,
        caller: str = "",
    ) -> Question:
        """Ask what a sequence's crash probability comes from; computed while no job waits.

        Args:
            state: [S], float32, finite.
            actions: [H, A], float32, finite, H >= 1.
            deadline_s: When it must be answered, on the loop's clock.
            respond: Gets the outcome, exactly once and later than this call: an attribution, an
                EngineError, an UnavailableError, a DeadlineExceededError, or None.
            members: As for `enqueue`.
            caller: Who asks: callers share the places, and take turns.

        Raises:
            OverloadedError: Too many wait, or its answer would be late.
            UnavailableError: The service is ending, or the engine is down.
        """
        self._check_explains()
        question = self._explanations.ask(
            state,
            actions,
            deadline_s=deadline_s,
            respond=respond,
            members=members,
            caller=caller,
        )
        self._wake.set()
        return question

    def check_explain(self, steps: int, timeout_s: float, members: int | None, caller: str) -> None:
        """Return if `explain` would take a question now; before its sequence is computed.

        Args:
            steps: H.
            timeout_s: Time until its deadline.
            members: As for `enqueue`.
            caller: As for `explain`.

        Raises:
            OverloadedError: As of `explain`.
            UnavailableError: As of `explain`.
        """
        self._check_explains()
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        self._explanations.check(steps, members, caller, deadline_s)

    def _check_explains(self) -> None:
        refusal = self.health.refusal
        if self._explanations.is_ending:
            refusal = "draining", SHUTTING_DOWN
        if refusal is not None:
            reason, message = refusal
            self._observer.rejected(reason)
            raise UnavailableError(message)

    def least_explained_s(self, steps: int, members: int | None = None) -> float:
        """Return the shortest deadline that is kept for one row of so many steps and `explain`.

        What `explain` takes is 0 until it was answered once.
        """
        return self.least_s(1, steps, members) + self._explanations.least_s(steps, members)

    def forget(self, question: Question) -> None:
        """Free a question's place; its outcome is None, unless it had one already."""
        self._explanations.end(question, None, "cancelled")

    def _resolve(self, job: Job, outcome: Outcome) -> bool:
        """Give a job its outcome; False if it had one already."""
        if job.is_done:
            return False
        job.is_done = True
        del self._live[job.seq]
        if job.is_waiting:
            self.queues.remove(job)
            self._note_wait(job.job_class, [job], self._timer())
        try:
            job.respond(outcome)
        except Exception as exc:
            log.error("respond callback failed", exc_info=exc)
        return True

    def _note_wait(self, job_class: JobClass, jobs: list[Job], now: float) -> None:
        """Count how long jobs waited, unless they were in a launch before: each is counted once."""
        row_seconds = 0.0
        for job in jobs:
            if job.started_s is None:
                row_seconds += job.rows * (now - job.submitted_s)
        self._observer.waited(job_class, row_seconds)

    def _expire(self, job: Job) -> None:
        where = "while it waited" if job.started_s is None else "while it was computed"
        message = f"the deadline passed {where}"
        self._resolve(job, DeadlineExceededError(message))
        self._observer.rejected("expired")

    def _fail_all(self, reason: str, message: str) -> None:
        for job in list(self._live.values()):
            if self._resolve(job, UnavailableError(message)):
                self._observer.rejected(reason)
        self._explanations.end_all(UnavailableError(message), reason)

    async def _serve(self) -> None:
        """Compute what waits, slice by slice; sleep when nothing does."""
        while True:
            launch = self.queues.next_launch(self._engine.costs)
            if launch is not None:
                await self._advance(launch)
                await asyncio.sleep(0)  # lets others in between slices
            question = self._explanations.first if launch is None else None
            if question is not None:
                await self._explain(question)
            if self.health.is_canary_due:
                await self._try_engine()
            elif launch is None and question is None:
                self._wake.clear()
                await self._wake.wait()

    async def _advance(self, launch: Launch) -> None:
        """Compute a slice of a launch."""
        engine = self._engine
        # Nothing that comes in is more urgent than a safety check. Left at each input, it would
        # take a turn of the event loop a step where somebody sends without end.
        is_safety = launch.job_class is JobClass.SAFETY
        stop_when_readable = None if is_safety else self._stop_when_readable
        steps, expected_s, is_inline = launch.next_slice(
            engine.costs,
            self._bounds,
            self.health.pace,
            is_quick=self._is_quick,
            may_be_long=self._stop_when_readable is not None,
            due_in_s=self._deadlines.due_in_s,
        )
        if launch.running is None:
            now = self._timer()
            self._note_wait(launch.job_class, launch.jobs, now)
            for job in launch.jobs:
                job.started_s = now
        if is_inline:
            ran = timed(partial(launch.run, engine, steps, stop_when_readable))
        else:
            ran = await self._worker.run(partial(launch.run, engine, steps))
        launch.seconds += ran.seconds
        if ran.value is None:
            assert ran.error is not None
            self._blame(launch, ran.error)
            return
        taken, prediction = ran.value
        launch.taken += taken
        self.health.succeeded(expected_s * taken / steps, ran.seconds)
        if prediction is not None:
            self._deliver(launch, prediction)

    async def _explain(self, question: Question) -> None:
        """Compute a piece of an attribution: on the worker, as the event loop has better to do."""
        if question.started_s is None:
            self._explanations.begin(question)
        ran = await self._worker.run(question.advance)
        self._explanations.advanced(question, ran.seconds, is_answered=ran.value is not None)
        if ran.error is not None:
            self._observer.engine_failed("exception")
            log.error("attribution failed", kind="exception", error=repr(ran.error))
            cause = type(ran.error).__name__
            self._explanations.end(question, EngineError(f"the engine failed: {cause}"))
            self.health.is_canary_due = True
        elif ran.value is not None:
            self._explanations.end(question, ran.value)

    def _deliver(self, launch: Launch, prediction: Prediction) -> None:
        """Give each job its own rows, if they come in time."""
        self.queues.close(launch)
        self._observer.launched(launch.rows, len(launch.jobs), launch.seconds)
        now = asyncio.get_running_loop().time()
        first = 0
        for job in launch.jobs:
            if job.is_done:
                pass
            elif job.deadline_s < now:  # timers wait for slices that are computed on the loop
                self._expire(job)
            else:
                assert job.started_s is not None
                queue_s = job.started_s - job.submitted_s
                self._resolve(job, JobResult(prediction, first, job.rows, queue_s, launch.seconds))
            first += job.rows

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
            requests=len(launch.jobs),
        )
        if len(launch.jobs) > 1:
            self.queues.put_back(launch.jobs)
        else:
            cause = type(error).__name__
            self._resolve(launch.jobs[0], EngineError(f"the engine failed: {cause}"))
        self.health.is_canary_due = True

    async def _try_engine(self) -> None:
        """Try the engine; if it cannot be used, all that waits is answered."""
        canary = partial(self._worker.run, self._engine.canary)
        if not await self.health.try_engine(canary):
            self._fail_all("engine_down", ENGINE_DOWN)
            if self._engine.is_lost:
                self.health.on_lost()

    def _on_end(self, task: asyncio.Task[None]) -> None:
        """Resolve everything if the launching task itself ends by a fault of ours."""
        if task.cancelled() or task.exception() is None:
            return
        log.error("scheduler failed", error=repr(task.exception()))
        self.health.set_down(_FAILED)
        self._fail_all("engine_down", _FAILED)
