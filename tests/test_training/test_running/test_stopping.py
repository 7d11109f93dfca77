from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.test_training.interrupted import Running, still_there
from training.running.stopping import STOP_SIGNALS, Stopped, stoppable, uninterrupted


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_stops_the_block_and_its_number_is_in_the_exit_code(
    number: signal.Signals,
) -> None:
    before = signal.getsignal(number)

    with pytest.raises(Stopped, match=number.name) as stopped, stoppable():
        signal.raise_signal(number)

    assert stopped.value.exit_code == 128 + number
    assert signal.getsignal(number) is before


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_same_signal_twice_at_once_is_one() -> None:
    done = []

    @stoppable()
    def work() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)  # from the terminal, and from a parent
            done.append("tidied up")

    with pytest.raises(Stopped):
        work()
    assert done == ["tidied up"]


def test_a_signal_waits_until_an_uninterrupted_block_is_over() -> None:
    done = []

    @stoppable()
    def work() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGTERM)
            done.append("inside")
        done.append("after")

    with pytest.raises(Stopped):
        work()
    assert done == ["inside"]


def test_other_threads_may_use_uninterrupted_blocks() -> None:
    done = []

    def work() -> None:
        with uninterrupted():
            done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done


def test_a_second_signal_ends_a_command_that_does_not_stop(tmp_path: Path) -> None:
    code = (
        "from tests.test_training.test_running.test_stopping import stop_never; "
        f"stop_never({str(tmp_path)!r})"
    )
    running = Running(code, tmp_path)
    running.until((tmp_path / "began").exists)
    running.process.send_signal(signal.SIGINT)
    running.until((tmp_path / "stopping").exists)

    assert running.signal(signal.SIGINT, to_group=False) == 130
    assert running.output == "Stopped at once, by a second signal.\n"


def stop_never(folder: str) -> None:
    """Take longer than a minute to stop, as a task that cannot be interrupted."""
    with stoppable():
        try:
            Path(folder, "began").touch()
            threading.Event().wait(60)
        finally:
            threading.Event().wait(1.1)
            Path(folder, "stopping").touch()
            threading.Event().wait(60)


def start_watcher(path: str) -> None:
    """Start a process that watches its input, and live for a minute."""
    watcher = (
        "from training.running.stopping import end_with_stdin; import pathlib, time; "
        f"end_with_stdin(); pathlib.Path({path!r}).touch(); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", watcher], stdin=subprocess.PIPE):
        threading.Event().wait(60)


def test_a_process_that_watches_its_input_ends_with_whoever_holds_it(tmp_path: Path) -> None:
    began = tmp_path / "began"
    code = (
        "from tests.test_training.test_running.test_stopping import start_watcher; "
        f"start_watcher({str(began)!r})"
    )
    running = Running(code, tmp_path)
    running.until(began.exists)
    workers = running.workers()

    running.signal(signal.SIGKILL, to_group=False)

    assert len(workers) == 1
    assert not still_there(workers)
