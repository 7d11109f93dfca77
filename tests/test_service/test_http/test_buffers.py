"""Memory of all connections together."""

from __future__ import annotations

import asyncio

import pytest

from service.http.buffers import Intake, Unread
from tests.fakes.engine import until


class Upload:
    """A connection with a request that is not complete, as `Intake` sees it.

    Args:
        intake: Gets what waits in the kernel as soon as it may be read; None: it stays there.
        pending_bytes: Waits in the kernel.
    """

    def __init__(self, intake: Intake | None = None, pending_bytes: int = 0) -> None:
        self.is_held = False
        self.is_cut = False
        self.is_paused = False
        self.is_ahead = False
        self.pending_bytes = pending_bytes
        self._intake = intake

    def hold_input(self) -> None:
        self.is_held = True

    def take_input(self) -> None:
        self.is_held = False
        if self._intake is not None:
            asyncio.get_running_loop().call_soon(self._read)

    def cut_input(self) -> None:
        self.is_cut = True
        if self._intake is not None:
            self._intake.remove(self)

    def _read(self) -> None:
        count, self.pending_bytes = self.pending_bytes, 0
        if self._intake is not None and count and not self.is_cut:
            self._intake.add(self, count)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.http.buffers._SMALL_BYTES", 10)
    monkeypatch.setattr("service.http.buffers._SLOW_AFTER_S", 0.05)
    monkeypatch.setattr("service.http.buffers._SLOW_BYTES", 100)
    monkeypatch.setattr("service.http.buffers._LOOK_EVERY_S", 0.01)


@pytest.mark.usefixtures("counted")
async def test_incomplete_requests_wait_for_room_but_for_the_first() -> None:
    intake = Intake(1000)
    first, second, third = Upload(), Upload(), Upload()
    intake.add(first, 600)
    intake.add(second, 600)
    intake.add(first, 600)

    assert [u.is_held for u in (first, second)] == [False, True]
    intake.add(third, 11)
    assert third.is_held
    intake.remove(first)
    assert [u.is_held for u in (second, third)] == [False, True]
    intake.remove(second)
    assert not third.is_held
    assert not any(u.is_cut for u in (first, second, third))


@pytest.mark.usefixtures("counted")
async def test_small_requests_never_wait() -> None:
    intake = Intake(1000)
    big, small = Upload(), Upload()
    intake.add(big, 1500)
    for count in (0, 4, 6):
        intake.add(small, count)
        assert not small.is_held
    intake.add(small, 1)
    assert small.is_held


@pytest.mark.usefixtures("counted")
async def test_a_request_that_waited_is_read_again_when_it_is_forgotten() -> None:
    intake = Intake(1000)
    first, kept = Upload(), Upload()
    intake.add(first, 900)
    intake.add(kept, 900)
    assert kept.is_held
    intake.remove(kept)
    assert not kept.is_held


@pytest.mark.usefixtures("counted")
async def test_bodies_that_wait_to_be_read_take_room() -> None:
    intake = Intake(1000)
    upload = Upload()
    intake.keep(900)
    intake.add(upload, 200)
    assert upload.is_held, "not even the first goes on while bodies are read"
    intake.give_back(900)
    assert not upload.is_held
    intake.add(upload, 2000)
    assert not upload.is_held


@pytest.mark.usefixtures("counted")
async def test_far_too_much_at_once_is_refused() -> None:
    intake = Intake(1000)
    uploads = [Upload() for _ in range(5)]
    for upload in uploads:
        intake.add(upload, 600)

    assert [u.is_cut for u in uploads] == [False, False, False, True, True]


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("is_dripping", [False, True])
async def test_a_request_that_stands_still_gives_way(is_dripping: bool) -> None:
    intake = Intake(1000)
    idle, waiting = Upload(intake), Upload(intake)
    intake.add(idle, 900)
    intake.add(waiting, 900)
    assert waiting.is_held
    while not idle.is_cut:
        if is_dripping:
            intake.add(idle, 1)
        await asyncio.sleep(0.005)

    assert not waiting.is_held
    assert not waiting.is_cut


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("pending_bytes", [0, 1, 99, 100, 150])
async def test_all_who_stand_still_give_way_at_the_same_time(
    monkeypatch: pytest.MonkeyPatch, pending_bytes: int
) -> None:
    """Those too who wait for room, whatever they have left in the kernel before."""
    monkeypatch.setattr("service.http.buffers._SLOW_AFTER_S", 0.2)
    intake = Intake(1000)
    stalled = [Upload(intake, pending_bytes) for _ in range(8)]
    honest = Upload(intake, 500)
    for upload in (*stalled, *stalled, honest):
        intake.add(upload, 90)
    assert sum(upload.is_held for upload in stalled) == 5
    begun = asyncio.get_running_loop().time()
    await until(lambda: honest.pending_bytes == 0)  # who stands still and harms nobody may stay
    took_s = asyncio.get_running_loop().time() - begun

    assert took_s < 6 * 0.2, "one after the other they would take eight times as long"
    assert sum(upload.is_cut for upload in stalled) >= 3
    assert not honest.is_cut


@pytest.mark.usefixtures("counted")
async def test_who_is_not_read_is_not_blamed() -> None:
    intake = Intake(1000)
    first, waiting, other, paused = (Upload() for _ in range(4))
    for upload in (paused, first, waiting, other):
        intake.add(upload, 400)
    paused.is_paused = True
    waiting.pending_bytes = other.pending_bytes = 100
    for _ in range(30):
        intake.add(first, 50)
        await asyncio.sleep(0.01)

    assert not first.is_held, "who is paused does not count as the first"
    assert [u.is_held for u in (waiting, other)] == [True, True], "the line moves"
    assert not any(u.is_cut for u in (first, waiting, other, paused))


@pytest.mark.usefixtures("counted")
async def test_who_sends_ahead_makes_room_first() -> None:
    intake = Intake(1000)
    uploads = [Upload(intake) for _ in range(4)]
    for upload in uploads[:3]:
        intake.add(upload, 600)
    uploads[2].is_paused = uploads[2].is_ahead = True
    intake.add(uploads[3], 600)

    assert [u.is_cut for u in uploads] == [False, False, True, False]
    assert uploads[3].is_held


class Answer:
    """A connection with an answer that is not read, as `Unread` sees it."""

    def __init__(self, unread_bytes: int) -> None:
        self.unread_bytes = unread_bytes
        self.is_cut = False

    def cut_output(self) -> None:
        self.is_cut = True


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.http.buffers._STALLED_AFTER_S", 0.02)
    monkeypatch.setattr("service.http.buffers._LOOK_EVERY_S", 0.01)


@pytest.mark.usefixtures("quick")
async def test_answers_that_stand_still_for_longest_are_cut_first() -> None:
    unread = Unread(1000, timeout_s=60)
    answers = [Answer(400) for _ in range(4)]
    for answer in answers:
        unread.add(answer)
    await until(lambda: answers[1].is_cut)

    assert [a.is_cut for a in answers] == [True, True, False, False]


@pytest.mark.usefixtures("quick")
async def test_one_big_answer_alone_is_kept_until_its_time_is_over() -> None:
    unread = Unread(1000, timeout_s=0.2)
    big, read = Answer(10**9), Answer(10**9)
    unread.add(read)
    unread.remove(read)
    unread.add(big)
    await asyncio.sleep(0.1)
    assert not big.is_cut
    await until(lambda: big.is_cut)

    assert not read.is_cut
