from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training.fitting.parallel import MemberFailedError, run_in_processes


def touch(path: str) -> None:
    Path(path).write_text("done")


def fail(path: str) -> None:
    raise SystemExit(7)


def wait_for_interrupt(path: str) -> None:
    """Say that it began; on Ctrl-C say that it saved."""
    try:
        Path(f"{path}.began").write_text("")
        time.sleep(60)
    except KeyboardInterrupt:
        Path(f"{path}.saved").write_text("")
        raise


def test_every_task_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{i}") for i in range(3)]

    run_in_processes(touch, [(path,) for path in paths], workers=2)

    assert all(Path(path).read_text() == "done" for path in paths)


def test_a_failing_task_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(MemberFailedError, match="exit code 7"):
        run_in_processes(fail, [(str(tmp_path / "x"),)], workers=2)


def test_interrupting_the_parent_lets_running_tasks_save_and_starts_no_more(
    tmp_path: Path,
) -> None:
    code = (
        # A shell has its background jobs ignore interrupts, and their children, too.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from tests.test_training.test_fitting.test_parallel import wait_for_interrupt\n"
        "from training.fitting.parallel import run_in_processes\n"
        "if __name__ == '__main__':\n"
        f"    run_in_processes(wait_for_interrupt, [({str(tmp_path)!r} + f'/{{i}}',)"
        " for i in range(4)], 2)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[3], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*.began"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)

    os.kill(parent.pid, signal.SIGINT)
    parent.wait(120)

    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["0.began", "0.saved", "1.began", "1.saved"]
