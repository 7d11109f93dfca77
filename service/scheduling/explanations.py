"""Questions what a crash probability comes from: answered in pieces, while nothing else waits."""

from __future__ import annotations

import asyncio
from bisect import bisect_right, insort
from collections.abc import Callable, Iterable

import structlog

from service.errors import DeadlineExceededError, OverloadedError, ServiceError
from service.interface import Array, Attribution, EngineLike, Pieces
from service.scheduling.jobs import Observer

log = structlog.get_logger()

MOST_QUESTIONS = 8
"""That wait or are being answered. A caller may have as many as places are free: alone half of all,
and others find some."""

_SMOOTHING = 0.3
"""Weight of the newest answer in how much slower than undisturbed they are."""

Explained = Attribution | ServiceError | None
"""How a question ended; None if it was cancelled."""


class Question:
    """One question. Changed on the event loop's thread, but for `advance`.

    Args:
        begin: Makes its pieces.
        respond: Gets the outcome, exactly once, whatever happens.
        steps: H.
        members: How many compute it; None: all.
        caller: Who asks.

    Attributes:
        steps: H.
        members: As given.
        caller: As given.
        round: Those of lower rounds go first; see `Explanations`.
        started_s: When its first piece was begun, on the loop's clock; None before.
        computed_s: What its pieces took.
        is_done: Whether it has its outcome.
    """

    def __init__(
        self,
        begin: Callable[[], Pieces],
        respond: Callable[[Explained], None],
        steps: int,
        members: int | None,
        caller: str,
    ) -> None:
        self._begin = begin
        self._respond = respond
        self._pieces: Pieces | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.steps = steps
        self.members = members
        self.caller = caller
        self.round = 0
        self.started_s: float | None = None
        self.computed_s = 0.0
        self.is_done = False

    def watch(self, deadline_s: float, late: Callable[[], None]) -> None:
        """Have `late` called at its deadline, on the loop's clock."""
        self._timer = asyncio.get_running_loop().call_at(deadline_s, late)

    def advance(self) -> Attribution | None:
        """Compute its next piece; return the attribution after the last one. Any thread."""
        if self._pieces is None:
            self._pieces = self._begin()
        try:
            next(self._pieces)
        except StopIteration as end:
            attribution: Attribution = end.value
            return attribution
        return None

    def resolve(self, outcome: Explained) -> None:
        """Give it its outcome, the first time."""
        if not self.is_done:
            self.is_done = True
            if self._timer is not None:
                self._timer.cancel()
            try:
                self._respond(outcome)
            except Exception as exc:
                log.error("respond callback failed", exc_info=exc)


class _Costs:
    """What answers take, learned from those that were given: nothing is known before the first."""

    def __init__(self) -> None:
        self._step_s: dict[int | None, float] = {}  # by members: of the quickest answer
        self._pace = 1.0  # how much longer than that they take, with what comes between

    def least_s(self, steps: int, members: int | None) -> float:
        """Return how long an answer takes undisturbed; 0 if that is not known."""
        return steps * self._step_s.get(members, 0.0)

    def whole_s(self, steps: int, members: int | None) -> float:
        """Return how long an answer takes with what comes between; 0 if that is not known."""
        return self._pace * self.least_s(steps, members)

    def left_s(self, question: Question, now_s: float) -> float:
        """Return how long a question will still take, with what comes between."""
        whole_s = self.whole_s(question.steps, question.members)
        begun_s = 0.0 if question.started_s is None else now_s - question.started_s
        return max(0.0, whole_s - begun_s)

    def learn(self, question: Question, now_s: float) -> None:
        """Note what a question took that was answered."""
        assert question.started_s is not None
        step_s = question.computed_s / question.steps
        known_s = self._step_s.get(question.members, step_s)
        self._step_s[question.members] = min(known_s, step_s)
        least_s = self.least_s(question.steps, question.members)
        if least_s > 0:
            pace = (now_s - question.started_s) / least_s
            self._pace += _SMOOTHING * (pace - self._pace)


class Explanations:
    """Questions in their order. All state belongs to the event loop's thread.

    Callers take turns, in rounds. The present round is that of the question begun last. A new
    question goes into it, or into the next one if a question of the same caller was begun in it. A
    caller whose questions wait has one in each round. In a round, who asked first goes first. No
    more than `MOST_QUESTIONS` callers have their turn in a round, so that each round ends.

    Args:
        engine: Answers them.
        observer: Counts what gets no answer.

    Attributes:
        is_ending: Whether no more are taken.
    """

    def __init__(self, engine: EngineLike, observer: Observer) -> None:
        self._engine = engine
        self._observer = observer
        self._waiting: list[Question] = []
        self._costs = _Costs()
        self._round = 0  # the present one
        self._served: set[str] = set()  # callers of which a question was begun in it
        self.is_ending = False

    @property
    def first(self) -> Question | None:
        """The one that is answered next, or now."""
        return self._waiting[0] if self._waiting else None

    def least_s(self, steps: int, members: int | None) -> float:
        """Return how long an answer takes undisturbed, as far as known."""
        return self._costs.least_s(steps, members)

    def ask(
        self,
        state: Array,
        actions: Array,
        *,
        deadline_s: float,
        respond: Callable[[Explained], None],
        members: int | None,
        caller: str,
    ) -> Question:
        """Add a question; see `Scheduler.explain`."""
        self.check(len(actions), members, caller, deadline_s)
        question = Question(
            lambda: self._engine.explain(state, actions, members),
            respond,
            len(actions),
            members,
            caller,
        )
        question.round = self._round_for(caller)

        def expire() -> None:
            error = DeadlineExceededError("the deadline passed before the attribution was computed")
            self.end(question, error, "expired")

        question.watch(deadline_s, expire)
        insort(self._waiting, question, key=_round_of)
        return question

    def begin(self, question: Question) -> None:
        """Note that the first piece of a question is about to be computed."""
        question.started_s = asyncio.get_running_loop().time()
        if question.round > self._round:
            self._round = question.round
            self._served.clear()
        self._served.add(question.caller)

    def _round_for(self, caller: str) -> int:
        """Return the round of a caller's next question."""
        own = self._of(caller)
        if own:
            return own[-1].round + 1
        is_over = caller in self._served or len(self._served) >= MOST_QUESTIONS
        return self._round + is_over

    def _of(self, caller: str) -> list[Question]:
        return [question for question in self._waiting if question.caller == caller]

    def check(self, steps: int, members: int | None, caller: str, deadline_s: float) -> None:
        """Return if there is room for a question now, and it will be answered in time.

        Args:
            steps: H.
            members: How many compute it; None: all.
            caller: Who asks.
            deadline_s: When it must be answered, on the loop's clock.

        Raises:
            OverloadedError: It is not so.
        """
        waiting, own = len(self._waiting), self._of(caller)
        if len(own) >= MOST_QUESTIONS - waiting:
            self._observer.rejected("queue_full")
            freeing = own[0] if own else self._waiting[0]
            before_s = self._left_s(self._waiting[: self._waiting.index(freeing)])
            raise OverloadedError(
                f"{waiting} attributions wait already, {len(own)} of them of this caller; there "
                f"are {MOST_QUESTIONS} places, and a caller may have as many as are free",
                retry_after_s=before_s + self._left_s([freeing]),
            )
        place = bisect_right(self._waiting, self._round_for(caller), key=_round_of)
        backlog_s = self._left_s(self._waiting[:place])
        total_s = backlog_s + self._costs.whole_s(steps, members)
        timeout_s = deadline_s - asyncio.get_running_loop().time()
        # The first in line is always tried.
        if self._waiting and total_s > timeout_s:
            self._observer.rejected("too_late")
            raise OverloadedError(
                f"an attribution would take {total_s:.3g} s, of which {backlog_s:.3g} s for those "
                f"before it; the deadline is in {timeout_s:.3g} s",
                retry_after_s=min(backlog_s, total_s - timeout_s),
            )

    def _left_s(self, questions: Iterable[Question]) -> float:
        now_s = asyncio.get_running_loop().time()
        return sum(self._costs.left_s(question, now_s) for question in questions)

    def advanced(self, question: Question, seconds: float, *, is_answered: bool) -> None:
        """Note what a piece of a question took, and whether that was the last one."""
        question.computed_s += seconds
        if is_answered:
            self._costs.learn(question, asyncio.get_running_loop().time())

    def end(self, question: Question, outcome: Explained, reason: str | None = None) -> None:
        """Give a question its outcome, unless it has one.

        Args:
            question: One that was asked.
            outcome: Its outcome.
            reason: Why it is no attribution: one of `REJECTIONS`, or None.
        """
        if question.is_done:
            return
        self._waiting.remove(question)
        if reason is not None:
            self._observer.rejected(reason)
        question.resolve(outcome)

    def end_all(self, error: ServiceError, reason: str, *, but_begun: bool = False) -> None:
        """Give all questions the same error.

        Args:
            error: The error.
            reason: One of `REJECTIONS`.
            but_begun: Leave the one that is being answered.
        """
        for question in list(self._waiting):
            if not (but_begun and question.started_s is not None):
                self.end(question, error, reason)


def _round_of(question: Question) -> int:
    return question.round
