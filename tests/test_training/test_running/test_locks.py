from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.test_training.interrupted import Running
from training.running.locks import HOLDER, FolderLockedError, locked


def hold(folder: str) -> None:
    """Hold a folder for a minute."""
    with locked(Path(folder), "training"):
        time.sleep(60)


def test_a_second_command_says_who_holds_the_folder_until_its_end(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code = f"from tests.test_training.test_running.test_locks import hold; hold({str(folder)!r})"
    running = Running(code, tmp_path)
    running.until(lambda: (folder / HOLDER).exists() and (folder / HOLDER).read_text())

    with pytest.raises(FolderLockedError) as refused, locked(folder, "training"):
        pass
    message = str(refused.value)
    assert message.startswith(f"{folder} is being written by another command: training, ")
    assert f"process {running.process.pid} on {socket.gethostname()}, since 20" in message

    running.signal(signal.SIGKILL, to_group=False)
    assert (folder / HOLDER).exists()  # nobody could tidy up
    with locked(folder, "evaluating"):
        assert json.loads((folder / HOLDER).read_text())["pid"] == os.getpid()
    assert not (folder / HOLDER).exists()


def test_a_lock_is_dropped_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path, "training"):
        raise ZeroDivisionError
    with locked(tmp_path, "training"):
        pass


@pytest.mark.parametrize("note", ["", "[]", '"x"', '{"pid": 3}'])
def test_a_lock_whose_holder_is_not_known_refuses_all_the_same(tmp_path: Path, note: str) -> None:
    with locked(tmp_path, "training"):
        (tmp_path / HOLDER).write_text(note)
        with (
            pytest.raises(FolderLockedError, match=r"written by another command$"),
            locked(tmp_path, "training"),
        ):
            pass
