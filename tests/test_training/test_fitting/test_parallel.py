from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.test_training.interrupted import Running, still_there
from training.fitting.parallel import MemberFailedError, run_in_processes
from training.running.stopping import STOP_SIGNALS, Stopped, stoppable


def touch(path: str) -> None:
    Path(path).write_text("done")


def fail(path: str) -> None:
    raise SystemExit(7)


def wait_for_interrupt(path: str) -> None:
    """Say that it began; when interrupted, say that it saved, which more signals do not prevent."""
    try:
        Path(f"{path}.began").write_text("")
        time.sleep(60)
    except KeyboardInterrupt:
        for number in STOP_SIGNALS:
            signal.raise_signal(number)
        Path(f"{path}.saved").write_text("")
        raise


def wait_in_processes(folder: str) -> None:
    """Run four tasks, two at a time, that never end."""
    try:
        with stoppable():
            tasks = [(f"{folder}/{i}",) for i in range(4)]
            run_in_processes(wait_for_interrupt, tasks, 2)
    except Stopped as exc:
        sys.exit(exc.exit_code)


@pytest.fixture
def running(tmp_path: Path) -> Running:
    """Two tasks at work in a process group of their own."""
    code = (
        "from tests.test_training.test_fitting.test_parallel import wait_in_processes; "
        f"wait_in_processes({str(tmp_path)!r})"
    )
    started = Running(code, tmp_path)
    started.until(lambda: len(list(tmp_path.glob("*.began"))) == 2)
    return started


def test_every_task_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{i}") for i in range(3)]

    run_in_processes(touch, [(path,) for path in paths], workers=2)

    assert all(Path(path).read_text() == "done" for path in paths)


def test_a_failing_task_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(MemberFailedError, match="exit code 7"):
        run_in_processes(fail, [(str(tmp_path / "x"),)], workers=2)


@pytest.mark.parametrize("to_group", [True, False], ids=["group", "parent"])
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_lets_running_tasks_save_and_starts_no_more(
    running: Running, tmp_path: Path, number: signal.Signals, to_group: bool
) -> None:
    workers = running.workers()

    assert running.signal(number, to_group=to_group) == 128 + number

    names = sorted(path.name for path in tmp_path.glob("[0-9]*"))
    assert names == ["0.began", "0.saved", "1.began", "1.saved"]
    assert running.output == ""
    assert not still_there(workers)


def test_tasks_end_with_a_parent_that_is_killed(running: Running, tmp_path: Path) -> None:
    workers = running.workers()

    running.signal(signal.SIGKILL, to_group=False)

    assert len(workers) >= 2
    assert not still_there(workers)
    assert not list(tmp_path.glob("*.saved"))


def test_a_worker_that_is_killed_ends_the_run_and_is_no_error_of_its_own(
    tmp_path: Path,
) -> None:
    with pytest.raises(MemberFailedError, match="ended by SIGKILL; the kernel does that if memory"):
        run_in_processes(kill_itself, [(str(tmp_path),)], workers=2)
    with pytest.raises(MemberFailedError, match="stopped by a signal that this one did not get"):
        run_in_processes(interrupt_itself, [(str(tmp_path),)], workers=2)


def kill_itself(path: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt_itself(path: str) -> None:
    signal.raise_signal(signal.SIGINT)
