"""Who is let in, by what waits, what it costs, and how long the caller has."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from service.errors import (
    DeadlineExceededError,
    OverloadedError,
    ServiceError,
    UnavailableError,
)
from service.interface import Costs
from service.scheduling.admission import Admission
from service.scheduling.health import Health
from service.scheduling.jobs import Bounds, Job, JobClass
from service.scheduling.launches import Ran
from service.scheduling.queues import Queues
from tests.fakes.engine import FakeEngine, Tally, flat_costs, slow_costs

SAFETY, PREDICT, ROLLOUT = JobClass

ROW_STEP_S = 0.001
CAPACITY = 100
PLENTY_S = 1e6


class Entrance:
    """An admission that lets jobs in, with what it looks at."""

    def __init__(self, row_step_s: float = ROW_STEP_S, costs: Costs | None = None) -> None:
        engine = self.engine = FakeEngine()
        engine.costs = costs or slow_costs(row_step_s)
        bounds = Bounds(queue_rows=dict.fromkeys(JobClass, CAPACITY))
        self.queues = Queues(bounds)
        self.tally = Tally()
        self.health = Health(bounds, self.tally, lambda: 0.0)
        self.health.accept_jobs()
        self.admission = Admission(engine, bounds, self.queues, self.health, self.tally)
        self._seq = 0

    def queue(self, job_class: JobClass, rows: int, horizon: int = 1) -> None:
        """Let a job wait."""
        self._seq += 1
        nothing = np.zeros(0, np.float32)
        job = Job(self._seq, job_class, nothing, nothing, rows, horizon, lambda outcome: None)
        self.queues.add(job)

    def ask(
        self,
        rows: int = 1,
        horizon: int = 1,
        job_class: JobClass = ROLLOUT,
        timeout_s: float = PLENTY_S,
    ) -> ServiceError | None:
        """Return why a job is refused; None if it is not."""
        try:
            self.admission.check(rows, horizon, job_class, timeout_s)
        except ServiceError as error:
            return error
        return None


async def succeed() -> Ran[None]:
    return Ran(None, None, 0.0)


def test_nobody_is_let_in_before_the_start() -> None:
    entrance = Entrance()
    health = Health(Bounds(), entrance.tally, lambda: 0.0)
    fresh = Admission(FakeEngine(), Bounds(), entrance.queues, health, entrance.tally)

    with pytest.raises(UnavailableError, match=r"^the service is starting$"):
        fresh.check(1, 1, SAFETY, PLENTY_S)

    assert entrance.tally.rejections == {"draining": 1}


def test_who_is_let_in_is_not_counted() -> None:
    entrance = Entrance()

    assert entrance.ask() is None
    assert not entrance.tally.rejections


@pytest.mark.parametrize("timeout_s", [0.0, -1.0])
async def test_the_first_reason_that_holds_is_given(timeout_s: float) -> None:
    """All are true at once; each is mended in turn, and the next one shows."""
    entrance = Entrance()
    entrance.queue(ROLLOUT, CAPACITY, horizon=10)
    entrance.health.set_down("a fault")
    entrance.health.refuse_jobs()
    seen = [entrance.ask(timeout_s=timeout_s)]
    entrance.health.accept_jobs()
    seen.append(entrance.ask(timeout_s=timeout_s))
    await entrance.health.try_engine(succeed)
    seen.append(entrance.ask(timeout_s=timeout_s))
    seen.append(entrance.ask(timeout_s=1e-9))

    assert [(type(error), str(error)) for error in seen] == [
        (UnavailableError, "the service is shutting down"),
        (UnavailableError, "the engine is down"),
        (DeadlineExceededError, "the deadline had passed on arrival"),
        (
            OverloadedError,
            "the queue for rollout holds 100 of 100 rows and has no room for 1 more",
        ),
    ]
    reasons = ["draining", "engine_down", "expired", "queue_full"]
    assert list(entrance.tally.rejections.items()) == [(reason, 1) for reason in reasons]


def test_the_last_free_row_is_given_away_and_no_more() -> None:
    entrance = Entrance()
    entrance.queue(ROLLOUT, 90)

    assert entrance.ask(rows=10) is None
    assert entrance.ask(rows=11) is not None
    assert entrance.ask(rows=CAPACITY, job_class=PREDICT) is None


def test_a_full_queue_says_how_long_its_backlog_takes_at_the_present_pace() -> None:
    entrance = Entrance()
    entrance.queue(ROLLOUT, 100, horizon=8)
    entrance.health.pace = 2.0

    error = entrance.ask()

    assert isinstance(error, OverloadedError)
    assert error.retry_after_s == pytest.approx(2.0 * 800 * ROW_STEP_S)


def test_the_first_in_line_is_tried_however_long_it_takes() -> None:
    entrance = Entrance(row_step_s=10.0)

    assert entrance.ask(rows=50, horizon=16, timeout_s=1e-9) is None


def test_what_would_come_too_late_is_refused_with_its_reckoning() -> None:
    entrance = Entrance()
    entrance.health.pace = 3.0
    entrance.queue(ROLLOUT, 20, horizon=10)  # 0.6 s

    error = entrance.ask(rows=10, horizon=5, timeout_s=0.7)  # 0.15 s more

    assert isinstance(error, OverloadedError)
    assert str(error) == (
        "an answer would take 0.75 s, of which 0.6 s for work before it; the deadline is in 0.7 s"
    )
    assert error.retry_after_s == pytest.approx(0.05)
    assert entrance.tally.rejections == {"too_late": 1}


def test_a_retry_is_never_asked_for_later_than_the_backlog_takes() -> None:
    """A job that takes longer than its deadline will not come in time, but be first in line."""
    entrance = Entrance()
    entrance.queue(ROLLOUT, 1)

    error = entrance.ask(rows=50, horizon=10, timeout_s=0.1)

    assert isinstance(error, OverloadedError)
    assert error.retry_after_s == pytest.approx(ROW_STEP_S)


def test_an_answer_just_in_time_is_in_time() -> None:
    entrance = Entrance(row_step_s=0.25)  # sums without rounding
    entrance.queue(ROLLOUT, 2)

    assert entrance.ask(rows=2, timeout_s=1.0) is None
    assert entrance.ask(rows=2, timeout_s=0.999) is not None


@pytest.mark.parametrize(("job_class", "rows"), [(SAFETY, 1), (PREDICT, 11), (ROLLOUT, 61)])
def test_less_urgent_work_is_not_in_front(job_class: JobClass, rows: int) -> None:
    entrance = Entrance()
    for other, count in ((SAFETY, 1), (PREDICT, 10), (ROLLOUT, 50)):
        entrance.queue(other, count, horizon=2)

    assert entrance.admission.backlog_s(job_class) == pytest.approx(2 * rows * ROW_STEP_S)


def test_each_class_has_its_own_share_of_the_backlog_at_the_engines_pace() -> None:
    entrance = Entrance()
    entrance.health.pace = 3.0
    for job_class, count in ((SAFETY, 1), (PREDICT, 10), (ROLLOUT, 50)):
        entrance.queue(job_class, count, horizon=2)

    seen = [entrance.admission.queue_s(job_class) for job_class in JobClass]

    assert seen == pytest.approx([3 * 2 * rows * ROW_STEP_S for rows in (1, 10, 50)])
    assert sum(seen) == pytest.approx(entrance.admission.backlog_s(ROLLOUT))


def test_on_a_gpu_a_row_that_waits_counts_as_the_launch_that_it_takes() -> None:
    entrance = Entrance(costs=flat_costs())
    entrance.queue(SAFETY, 1, horizon=16)

    assert entrance.admission.backlog_s(SAFETY) == pytest.approx(16e-4)
    assert entrance.ask(job_class=SAFETY, horizon=16, timeout_s=0.0031) is not None
    assert entrance.ask(job_class=SAFETY, horizon=16, timeout_s=0.0033) is None


def test_on_a_gpu_every_horizon_that_waits_is_a_launch_of_its_own() -> None:
    entrance = Entrance(costs=flat_costs())
    for horizon in range(1, 33):
        entrance.queue(ROLLOUT, 1, horizon=horizon)
        entrance.queue(ROLLOUT, 2, horizon=horizon)  # goes with the one before

    assert entrance.admission.backlog_s(ROLLOUT) == pytest.approx(sum(range(1, 33)) * 1e-4)
    assert entrance.admission.backlog_s(SAFETY) == 0.0


def test_what_waits_is_counted_anew_when_it_or_the_costs_change() -> None:
    entrance = Entrance()
    entrance.queue(ROLLOUT, 2, horizon=4)
    seen = [entrance.admission.backlog_s(ROLLOUT)]
    entrance.queue(ROLLOUT, 2, horizon=4)
    seen.append(entrance.admission.backlog_s(ROLLOUT))
    entrance.engine.costs = slow_costs(2 * ROW_STEP_S)
    seen.append(entrance.admission.backlog_s(ROLLOUT))

    assert seen == pytest.approx([0.008, 0.016, 0.032])


def test_on_a_gpu_what_is_begun_counts_until_it_is_done() -> None:
    entrance = Entrance(costs=flat_costs())
    entrance.queue(ROLLOUT, 4096, horizon=64)
    launch = entrance.queues.next_launch(entrance.engine.costs)
    assert launch is not None
    seen = []
    for taken in (0, 64, 128, 192):
        launch.taken = taken
        seen.append(entrance.admission.backlog_s(ROLLOUT))

    assert seen == pytest.approx([launches * 64 * 1.5e-4 for launches in (4, 3, 2, 1)])


def test_no_work_is_no_backlog_whatever_it_would_cost() -> None:
    assert Entrance().admission.backlog_s(ROLLOUT) == 0.0


@given(
    waiting=st.integers(1, CAPACITY - 10),
    rows=st.integers(1, 10),
    horizon=st.integers(1, 8),
    pace=st.floats(0.5, 10.0),
    share=st.floats(0.01, 1.0),
)
def test_whoever_comes_back_when_asked_to_is_let_in(
    waiting: int, rows: int, horizon: int, pace: float, share: float
) -> None:
    """If nothing else comes: the backlog has shrunk by then, or is gone."""
    entrance = Entrance()
    entrance.health.pace = pace
    entrance.queue(ROLLOUT, waiting)
    backlog_s = pace * waiting * ROW_STEP_S
    timeout_s = share * (backlog_s + pace * rows * horizon * ROW_STEP_S)
    error = entrance.ask(rows, horizon, timeout_s=timeout_s)
    assume(isinstance(error, OverloadedError))
    assert isinstance(error, OverloadedError)

    left_s = backlog_s - error.retry_after_s
    later = Entrance()
    later.health.pace = pace
    left = math.floor(left_s / pace / ROW_STEP_S - 1e-6)
    if left > 0:
        later.queue(ROLLOUT, left)

    assert 0 < error.retry_after_s <= backlog_s * (1 + 1e-9)
    assert later.ask(rows, horizon, timeout_s=timeout_s) is None
