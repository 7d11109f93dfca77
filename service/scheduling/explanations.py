"""Questions what a crash probability comes from: answered in pieces, while nothing else waits."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from service.errors import DeadlineExceededError, OverloadedError, ServiceError
from service.interface import Array, Attribution, EngineLike, Pieces
from service.scheduling.jobs import Observer

MOST_QUESTIONS = 8
"""That wait or are being answered."""

Explained = Attribution | ServiceError | None
"""How a question ended; None if it was cancelled."""


class Question:
    """One question. Changed on the event loop's thread, but for `advance`.

    Args:
        begin: Makes its pieces.
        respond: Gets the outcome, exactly once, whatever happens.

    Attributes:
        is_done: Whether it has its outcome.
    """

    def __init__(self, begin: Callable[[], Pieces], respond: Callable[[Explained], None]) -> None:
        self._begin = begin
        self._respond = respond
        self._pieces: Pieces | None = None
        self._timer: asyncio.TimerHandle | None = None
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
            self._respond(outcome)


class Explanations:
    """Questions in their order. All state belongs to the event loop's thread.

    Args:
        engine: Answers them.
        observer: Counts what gets no answer.
    """

    def __init__(self, engine: EngineLike, observer: Observer) -> None:
        self._engine = engine
        self._observer = observer
        self._waiting: deque[Question] = deque()

    @property
    def first(self) -> Question | None:
        """The one that is answered next, or now."""
        return self._waiting[0] if self._waiting else None

    def ask(
        self,
        state: Array,
        actions: Array,
        *,
        deadline_s: float,
        respond: Callable[[Explained], None],
        members: int | None,
    ) -> Question:
        """Add a question; see `Scheduler.explain`."""
        if len(self._waiting) >= MOST_QUESTIONS:
            self._observer.rejected("queue_full")
            raise OverloadedError(
                f"{MOST_QUESTIONS} attributions wait already, which are computed one by one while "
                "nothing else is"
            )
        question = Question(lambda: self._engine.explain(state, actions, members), respond)

        def expire() -> None:
            error = DeadlineExceededError("the deadline passed before the attribution was computed")
            self.end(question, error, "expired")

        question.watch(deadline_s, expire)
        self._waiting.append(question)
        return question

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

    def end_all(self, error: ServiceError, reason: str) -> None:
        """Give all questions the same error."""
        for question in list(self._waiting):
            self.end(question, error, reason)
