from __future__ import annotations

import asyncio
import itertools
from collections.abc import Generator

from service.http.turns import Turns
from tests.fakes.engine import until


def counted(name: str, count: int, seen: list[str]) -> Generator[None, None, str]:
    for k in range(count):
        seen.append(f"{name}{k}")
        yield
    return name


async def test_long_work_takes_turns_with_all_that_is_ready() -> None:
    turns, seen = Turns(), list[str]()
    done: list[str] = []
    for name in "ab":
        turns.run(counted(name, 3, seen), done.append, lambda error: None)
    for k in range(4):
        await asyncio.sleep(0)
        seen.append(f"other{k}")
    await until(lambda: len(done) == 2)

    assert [x for x in seen if "other" not in x] == ["a0", "b0", "a1", "b1", "a2", "b2"]
    places = [seen.index(f"other{k}") for k in range(4)]
    assert all(after - before <= 2 for before, after in itertools.pairwise(places))
    assert done == ["a", "b"]


async def test_a_fault_ends_the_work_and_harms_no_other() -> None:
    turns, seen = Turns(), list[str]()
    done: list[str] = []
    failed: list[Exception] = []

    def broken() -> Generator[None, None, str]:
        yield
        raise ValueError("a fault")

    turns.run(broken(), done.append, failed.append)
    turns.run(counted("a", 4, seen), done.append, failed.append)
    await until(lambda: bool(done))

    assert done == ["a"]
    assert [str(error) for error in failed] == ["a fault"]


async def test_cancelled_work_gets_no_more_turns() -> None:
    turns, seen = Turns(), list[str]()
    done: list[str] = []
    cancel = turns.run(counted("a", 1000, seen), done.append, lambda error: None)
    other = turns.run(counted("b", 3, seen), done.append, lambda error: None)
    await until(lambda: len(seen) >= 4)
    cancel()
    await until(lambda: bool(done))
    other()  # it has ended: nothing happens

    assert done == ["b"]
    assert len([x for x in seen if x.startswith("a")]) <= 3


async def test_work_cancelled_before_its_first_turn_harms_no_other() -> None:
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, fault: faults.append(fault))
    turns, seen = Turns(), list[str]()
    done: list[str] = []
    cancel = turns.run(counted("a", 2, seen), done.append, lambda error: None)
    cancel()
    turns.run(counted("b", 2, seen), done.append, lambda error: None)
    await until(lambda: bool(done))

    for _ in range(3):
        await asyncio.sleep(0)

    assert seen == ["b0", "b1"]
    assert faults == []
