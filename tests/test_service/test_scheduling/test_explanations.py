"""Attributions: computed in pieces while nothing else waits, with exactly one outcome each."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable

import pytest

from service.errors import DeadlineExceededError, EngineError, OverloadedError, UnavailableError
from service.interface import Attribution
from service.scheduling.explanations import MOST_QUESTIONS, Explained, Question
from service.scheduling.jobs import JobClass
from tests.fakes.bench import Bench, simulate
from tests.fakes.engine import VirtualLoop, expected, fake_attribution, rows, same_bits

SAFETY, PREDICT, ROLLOUT = JobClass
NAMES = itertools.count()


def asked(
    bench: Bench,
    outcomes: list[Explained],
    timeout_s: float = 20.0,
    seed: int = 0,
    caller: str | None = None,
) -> Question:
    """Ask as a caller; None: as one who has not asked before."""
    states, actions = rows(1, seed=seed)
    deadline_s = asyncio.get_running_loop().time() + timeout_s
    return bench.scheduler.explain(
        states[0],
        actions[0],
        deadline_s=deadline_s,
        respond=outcomes.append,
        caller=caller or str(next(NAMES)),
    )


def test_it_is_computed_piece_by_piece() -> None:
    outcomes: list[Explained] = []

    async def play(bench: Bench, loop: VirtualLoop) -> None:
        asked(bench, outcomes)
        await asyncio.sleep(1)

    bench = simulate(play)

    states, actions = rows(1)
    attribution = outcomes[0]
    assert isinstance(attribution, Attribution)
    assert attribution.state.tolist() == fake_attribution(states[0], actions[0]).state.tolist()
    assert (len(outcomes), bench.engine.computed) == (1, ["piece"] * 3)


@pytest.mark.parametrize("job_class", JobClass)
def test_whoever_comes_waits_for_one_piece_at_most(job_class: JobClass) -> None:
    outcomes: list[Explained] = []
    order: list[str] = []
    waited_s: list[float] = []

    async def play(bench: Bench, loop: VirtualLoop) -> None:
        asked(bench, outcomes)
        await asyncio.sleep(0.0015)  # the second piece is being computed; each takes 1 ms
        result = await bench.ask(job_class=job_class, horizon=2)
        waited_s.append(result.queue_s)
        order.extend(bench.engine.computed)
        assert same_bits(result.prediction, expected(*rows(1, horizon=2)))
        await asyncio.sleep(1)

    simulate(play)

    assert order[:3] == ["piece", "piece", "launch"]
    assert waited_s[0] <= 0.0005 + 1e-9
    assert isinstance(outcomes[0], Attribution)


def test_it_waits_as_long_as_any_job_does() -> None:
    outcomes: list[Explained] = []

    async def play(bench: Bench, loop: VirtualLoop) -> None:
        jobs = [bench.ask(job_class=x, horizon=h) for x in JobClass for h in (3, 4)]
        asked(bench, outcomes)
        await asyncio.gather(*jobs)
        await asyncio.sleep(1)

    bench = simulate(play)

    assert bench.engine.computed == ["launch"] * 6 + ["piece"] * 3
    assert isinstance(outcomes[0], Attribution)


def test_its_deadline_is_kept() -> None:
    outcomes: list[Explained] = []

    async def play(bench: Bench, loop: VirtualLoop) -> None:
        asked(bench, outcomes, timeout_s=0.0015)
        await asyncio.sleep(1)

    bench = simulate(play)

    assert isinstance(outcomes[0], DeadlineExceededError)
    assert bench.tally.rejections == {"expired": 1}
    assert bench.engine.computed == ["piece"] * 2


def test_one_that_is_forgotten_is_not_computed() -> None:
    first: list[Explained] = []
    second: list[Explained] = []

    async def play(bench: Bench, loop: VirtualLoop) -> None:
        question = asked(bench, first)
        asked(bench, second)
        bench.scheduler.forget(question)
        bench.scheduler.forget(question)
        await asyncio.sleep(1)

    bench = simulate(play)

    assert first == [None]
    assert isinstance(second[0], Attribution)
    assert bench.tally.rejections == {"cancelled": 1}
    assert bench.engine.computed == ["piece"] * 3


def test_only_so_many_may_wait() -> None:
    outcomes: list[Explained] = []

    async def play(bench: Bench, loop: VirtualLoop) -> None:
        for _ in range(MOST_QUESTIONS):
            asked(bench, outcomes)
        with pytest.raises(OverloadedError):
            asked(bench, outcomes)
        await asyncio.sleep(1)
        asked(bench, outcomes)
        await asyncio.sleep(1)

    bench = simulate(play)

    assert [type(x) for x in outcomes] == [Attribution] * (MOST_QUESTIONS + 1)
    assert bench.tally.rejections == {"queue_full": 1}


ANSWER_S = 0.004
"""What one takes in these plays: three pieces and the end, 1 ms each."""


def test_one_that_would_be_late_is_refused_at_once_with_the_time_it_takes() -> None:
    outcomes: list[Explained] = []

    async def play(bench: Bench, loop: VirtualLoop) -> None:
        asked(bench, outcomes, timeout_s=0.0045)  # nothing is known yet
        await asyncio.sleep(1)
        for _ in range(3):
            asked(bench, outcomes)
        await asyncio.sleep(0.0025)
        with pytest.raises(
            OverloadedError, match=r"would take 0\.0135 s, of which 0\.0095 s"
        ) as late:
            asked(bench, outcomes, timeout_s=0.013)
        assert late.value.retry_after_s == pytest.approx(0.0005)
        with pytest.raises(OverloadedError) as never:
            asked(bench, outcomes, timeout_s=0.001)
        assert never.value.retry_after_s == pytest.approx(3 * ANSWER_S - 0.0025)
        asked(bench, outcomes, timeout_s=0.014)
        await asyncio.sleep(1)

    bench = simulate(play)

    assert [type(x) for x in outcomes] == [Attribution] * 5
    assert bench.tally.rejections == {"too_late": 2}


def test_the_first_in_line_is_always_tried() -> None:
    outcomes: list[Explained] = []

    async def play(bench: Bench, loop: VirtualLoop) -> None:
        asked(bench, outcomes)
        await asyncio.sleep(1)
        asked(bench, outcomes, timeout_s=0.0001)
        await asyncio.sleep(1)

    simulate(play)

    assert [type(x) for x in outcomes] == [Attribution, DeadlineExceededError]


def test_where_none_has_room_it_is_said_when_the_first_one_ends() -> None:
    outcomes: list[Explained] = []

    async def play(bench: Bench, loop: VirtualLoop) -> None:
        asked(bench, outcomes)
        await asyncio.sleep(1)
        for _ in range(MOST_QUESTIONS):
            asked(bench, outcomes)
        await asyncio.sleep(0.0015)
        with pytest.raises(OverloadedError) as full:
            asked(bench, outcomes)
        assert full.value.retry_after_s == pytest.approx(ANSWER_S - 0.0015)

    simulate(play)


def test_a_caller_gets_as_many_places_as_are_free_and_others_always_find_one() -> None:
    outcomes: list[Explained] = []
    taken: dict[str, int] = {}

    async def play(bench: Bench, loop: VirtualLoop) -> None:
        asked(bench, outcomes, caller="early")
        await asyncio.sleep(1)
        for caller in "aaaaabbbccdde":
            with contextlib.suppress(OverloadedError):
                asked(bench, outcomes, caller=caller)
                taken[caller] = taken.get(caller, 0) + 1
        await asyncio.sleep(1)

    bench = simulate(play)

    assert taken == {"a": 4, "b": 2, "c": 1, "d": 1}
    assert bench.tally.rejections == {"queue_full": 5}
    assert [type(x) for x in outcomes] == [Attribution] * 9


def test_who_has_too_many_is_told_when_one_of_them_ends() -> None:
    outcomes: list[Explained] = []

    async def play(bench: Bench, loop: VirtualLoop) -> None:
        asked(bench, outcomes)
        await asyncio.sleep(1)
        asked(bench, outcomes, caller="b")
        for _ in range(3):
            asked(bench, outcomes, caller="a")
        asked(bench, outcomes, caller="c")
        with pytest.raises(OverloadedError) as full:
            asked(bench, outcomes, caller="a")
        assert full.value.retry_after_s == pytest.approx(2 * ANSWER_S)

    simulate(play)


def test_callers_take_turns_whoever_has_asked_more() -> None:
    order: list[str] = []

    async def play(bench: Bench, loop: VirtualLoop) -> None:
        def ask(caller: str, timeout_s: float = 20.0) -> None:
            states, actions = rows(1)
            bench.scheduler.explain(
                states[0],
                actions[0],
                deadline_s=loop.time() + timeout_s,
                respond=lambda outcome: order.append(caller),
                caller=caller,
            )

        ask("early")
        await asyncio.sleep(1)
        for caller in "aaab":
            ask(caller)
        await asyncio.sleep(0.0005)
        with pytest.raises(OverloadedError):
            ask("c", timeout_s=3 * ANSWER_S - 0.001)
        ask("c", timeout_s=3 * ANSWER_S)
        await asyncio.sleep(1)

    simulate(play)

    assert "".join(order[1:]) == "abcaa"


def explain(
    bench: Bench, loop: VirtualLoop, caller: str, answered: Callable[[Explained], None]
) -> None:
    """Ask for the attribution of one sequence, within 20 s."""
    states, actions = rows(1)
    deadline_s = loop.time() + 20.0
    bench.scheduler.explain(
        states[0], actions[0], deadline_s=deadline_s, respond=answered, caller=caller
    )


def test_who_asks_again_at_once_goes_behind_those_that_wait() -> None:
    order: list[str] = []

    async def play(bench: Bench, loop: VirtualLoop) -> None:
        def ask(name: str, left: int = 0) -> None:
            def answered(outcome: Explained) -> None:
                assert isinstance(outcome, Attribution)
                order.append(name)
                if left:
                    ask(name, left - 1)

            explain(bench, loop, name[0], answered)

        ask("a", 5)
        ask("b")
        ask("b2")
        ask("c", 5)
        await asyncio.sleep(1)

    simulate(play)

    assert order[:6] == ["a", "b", "c", "b2", "a", "c"]
    assert len(order) == 14


def test_callers_that_never_asked_before_do_not_hold_a_round_for_ever() -> None:
    order: list[str] = []

    async def play(bench: Bench, loop: VirtualLoop) -> None:
        def ask(caller: str) -> None:
            def answered(outcome: Explained) -> None:
                order.append(caller)
                if caller != "b" and len(order) < 40:
                    ask(str(next(NAMES)))

            explain(bench, loop, caller, answered)

        for caller in "bbac":
            ask(caller)
        await asyncio.sleep(1)

    simulate(play)

    assert "b" in order[1 : MOST_QUESTIONS + 3]


@pytest.mark.parametrize("end", ["answer", "close"])
def test_a_callback_that_fails_harms_nobody_else(end: str) -> None:
    outcomes: list[Explained] = []

    def fail(outcome: Explained) -> None:
        outcomes.append(outcome)
        raise ArithmeticError("told to fail")

    async def play(bench: Bench, loop: VirtualLoop) -> None:
        states, actions = rows(1)
        bench.scheduler.explain(states[0], actions[0], deadline_s=loop.time() + 20, respond=fail)
        asked(bench, outcomes)
        if end == "close":
            await bench.scheduler.close()
        else:
            await asyncio.sleep(1)
            await bench.ask()

    simulate(play)

    kind = UnavailableError if end == "close" else Attribution
    assert [type(x) for x in outcomes] == [kind] * 2


def test_while_the_service_ends_only_the_one_that_was_begun_is_answered() -> None:
    outcomes: list[Explained] = []

    async def play(bench: Bench, loop: VirtualLoop) -> None:
        for _ in range(3):
            asked(bench, outcomes)
        await asyncio.sleep(0.0005)
        bench.scheduler.end_explanations()
        with pytest.raises(UnavailableError):
            asked(bench, outcomes)
        await bench.ask()
        await asyncio.sleep(1)

    bench = simulate(play)

    assert [type(x) for x in outcomes] == [UnavailableError, UnavailableError, Attribution]
    assert bench.tally.rejections == {"draining": 3}


def test_what_is_computed_between_pieces_counts_and_what_is_least_does_not_change() -> None:
    outcomes: list[Explained] = []
    waits_s: list[float] = []

    async def play(bench: Bench, loop: VirtualLoop) -> None:
        async def wait_s() -> None:
            asked(bench, outcomes)
            with pytest.raises(OverloadedError) as late:
                asked(bench, outcomes, timeout_s=0.0)
            waits_s.append(late.value.retry_after_s)

        asked(bench, outcomes)
        await asyncio.sleep(1)
        await wait_s()
        for _ in range(3):
            await asyncio.sleep(0.0005)  # a piece is being computed
            await bench.ask(horizon=10)
        await asyncio.sleep(1)
        await wait_s()
        await asyncio.sleep(1)
        assert bench.scheduler.least_explained_s(4) == pytest.approx(
            ANSWER_S + bench.scheduler.least_s(1, 4)
        )

    simulate(play)

    assert waits_s[0] == pytest.approx(ANSWER_S)
    assert waits_s[1] > 2 * ANSWER_S


def test_a_fault_is_its_own() -> None:
    outcomes: list[Explained] = []

    async def play(bench: Bench, loop: VirtualLoop) -> None:
        def fail() -> None:
            raise ArithmeticError("told to fail")

        bench.engine.on_piece = fail
        asked(bench, outcomes)
        await asyncio.sleep(0.1)
        bench.engine.on_piece = lambda: None
        asked(bench, outcomes)
        await bench.ask()
        await asyncio.sleep(1)

    bench = simulate(play)

    assert isinstance(outcomes[0], EngineError)
    assert isinstance(outcomes[1], Attribution)
    assert bench.tally.faults == {"exception": 1}
    assert bench.engine.canaries >= 2


@pytest.mark.parametrize("end", ["close", "give_up"])
def test_the_end_of_the_service_resolves_it(end: str) -> None:
    outcomes: list[Explained] = []

    async def play(bench: Bench, loop: VirtualLoop) -> None:
        asked(bench, outcomes)
        asked(bench, outcomes)
        await asyncio.sleep(0.0005)
        if end == "give_up":
            bench.scheduler.give_up()
        else:
            await bench.scheduler.close()
        assert [type(x) for x in outcomes] == [UnavailableError] * 2
        with pytest.raises(UnavailableError):
            asked(bench, outcomes)

    simulate(play)

    assert len(outcomes) == 2
