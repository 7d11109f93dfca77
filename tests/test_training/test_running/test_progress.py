from __future__ import annotations

import sys
import time

import pytest

from training.running.progress import Progress, duration


class Clock:
    """Time that stands still until it is set."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    return made


def test_a_log_file_gets_lines_with_share_and_time_left(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("training", 1000, unit="rows") as progress:
        for done in range(1, 1001):
            clock.now_s += 1
            progress.note(f"note {done}")
            progress.reach(done)

    text = capsys.readouterr().err
    lines = [line.partition(" ")[2] for line in text.splitlines()]
    assert "\r" not in text
    assert lines[0] == "training: 0 % (0 of 1000 rows), time left unknown yet"
    assert lines[1] == "training: 6 % (60 of 1000 rows), 16 min left, note 60"
    assert lines[-1].startswith("training: 100 % (1000 of 1000 rows), note")
    assert 15 <= len(lines) <= 20  # one a minute


def test_work_of_an_earlier_call_does_not_count_for_the_time_left(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("training", 100, done=40) as progress:
        progress.skip(10)
        clock.now_s += 10
        progress.reach(60)

    assert "training: 60 %, 40 s left" in capsys.readouterr().err


def test_progress_of_stretches_never_goes_back(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("evaluating", 10) as progress:
        with progress.stretch(5) as on_share:
            on_share(0.5)
            on_share(0.2)
        assert progress._done == 5
        progress.extend(10)
        progress.reach(99)
        assert progress._done == 20


def test_a_terminal_gets_one_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress("training", 10, unit="rows") as progress:
        progress.note("1 of 2 members done")
        progress.reach(10)

    text = capsys.readouterr().err
    assert "training: 100%" in text
    assert "10.0 of 10.0 rows" in text
    assert text.count("\n") == 1


def test_nothing_is_shown_unless_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("collecting", 10, is_shown=False) as progress:
        progress.reach(10)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.2, "3 s"), (89, "89 s"), (600, "10 min"), (11_100, "3 h 05 min")]
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
