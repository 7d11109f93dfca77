"""Machine code that is broken, or that others may have written, is never loaded."""

from __future__ import annotations

import ctypes
import os
import platform
import pwd
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.backends import native
from models.backends.backend import NotCompiledError
from models.backends.code_cache import fault_of, seal, trusted_folder
from models.backends.cpu_levels import LEVELS, compile_levels, usable_library
from models.backends.native import Native, compile_library, library_file
from service.engine import Engine
from service.server import prepared_library
from service.settings import Settings
from tests.test_models.test_backends.test_native import MODELS, ensemble_of
from tests.test_service.test_engine.test_engine import checkpoint

ANOTHER_USER = 54321
CODE = b"\x7fELF machine code"


@pytest.fixture
def compiled_as(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Stand in for the compiler; what it has made."""
    made: list[Path] = []

    def write(command: list[str], **_: Any) -> None:
        made.append(Path(command[command.index("-o") + 1]))
        made[-1].write_bytes(CODE + str(len(made)).encode())

    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(subprocess, "run", write)
    return made


@pytest.fixture
def folder(tmp_path: Path, compiled_as: list[Path]) -> Path:
    """A cache with this machine's library in it."""
    folder = tmp_path / "cache"
    compile_library(folder)
    compiled_as.clear()
    return folder


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a path belong to somebody else than root and this process's user."""
    if os.geteuid() == 0:
        os.chown(path, ANOTHER_USER, -1, follow_symlinks=False)
    else:
        us = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: us + 1)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def cut_by_one(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def without_seal(path: Path) -> None:
    path.write_bytes(CODE)


def zeroed(path: Path) -> None:
    """As after a power failure: the length is right, the blocks were never written."""
    path.write_bytes(bytes(path.stat().st_size))


def lengthened(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def linked(path: Path) -> None:
    """A link, even to a sound library."""
    path.rename(path.with_name("elsewhere.so"))
    path.symlink_to(path.with_name("elsewhere.so"))


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.so")


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def opened_to_the_group(path: Path) -> None:
    path.chmod(0o664)


def opened_to_all(path: Path) -> None:
    path.chmod(0o646)


BREAKAGES = [
    (emptied, "damaged or cut short (0 bytes)"),
    (cut_in_half, "damaged or cut short"),
    (cut_by_one, "damaged or cut short"),
    (without_seal, "damaged or cut short"),
    (zeroed, "damaged or cut short"),
    (lengthened, "damaged or cut short"),
    (linked, "symbolic link"),
    (dangling, "symbolic link"),
    (piped, "not a plain file"),
    (opened_to_the_group, "may be written by others"),
    (opened_to_all, "may be written by others"),
]
each_breakage = pytest.mark.parametrize(
    ("break_it", "reason"), BREAKAGES, ids=[breakage.__name__ for breakage, _ in BREAKAGES]
)


@each_breakage
def test_a_broken_library_is_compiled_anew_and_the_log_says_why(
    folder: Path,
    compiled_as: list[Path],
    caplog: pytest.LogCaptureFixture,
    break_it: Callable[[Path], None],
    reason: str,
) -> None:
    path = library_file(folder)
    break_it(path)

    assert compile_library(folder) == path

    assert len(compiled_as) == 1
    assert not path.is_symlink()
    assert fault_of(path) is None
    assert f"compiled anew: {path}" in caplog.text
    assert reason in caplog.text
    assert compile_library(folder) == path
    assert len(compiled_as) == 1


@each_breakage
def test_a_broken_library_is_not_loaded_where_there_is_no_compiler(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    break_it: Callable[[Path], None],
    reason: str,
) -> None:
    path = library_file(folder)
    break_it(path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("it was loaded"))

    with pytest.raises(NotCompiledError) as refused:
        usable_library(folder)
    assert str(path) in str(refused.value)
    assert reason in str(refused.value)
    assert "no C++ compiler" in str(refused.value)
    with pytest.raises(NotCompiledError, match="cannot be loaded") as refused:
        Native(path, ensemble_of(MODELS["plain"]))
    assert reason in str(refused.value)


def test_somebody_elses_library_is_compiled_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    path = library_file(folder)
    give_away(path, monkeypatch)

    compile_library(folder)

    assert f"{path} belongs to user {ANOTHER_USER}" in caplog.text
    assert path.stat().st_uid == os.geteuid()


@given(st.binary(max_size=300), st.data())
def test_every_cut_and_every_changed_byte_is_noticed(content: bytes, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "steps.so"
        path.write_bytes(content)
        seal(path, path.name)
        assert fault_of(path) is None
        whole = path.read_bytes()
        assert whole.startswith(content)
        place = data.draw(st.integers(0, len(whole) - 1))

        path.write_bytes(whole[:place])
        assert fault_of(path) is not None
        changed = bytearray(whole)
        changed[place] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(changed)
        assert fault_of(path) is not None


def test_a_real_library_that_is_cut_short_ends_no_process(library: Path, tmp_path: Path) -> None:
    """What it did: the dynamic linker maps pages behind the file's end, and SIGBUS kills."""
    cut = tmp_path / library.name
    cut.write_bytes(library.read_bytes()[:4096])
    code = f"""
from pathlib import Path
from models.backends.backend import NotCompiledError
from models.backends.native import Native
try:
    Native(Path({str(cut)!r}), None)
except NotCompiledError as exc:
    print(exc)
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )

    assert ended.returncode == 0, ended.stderr
    assert "cut short (4096 bytes)" in ended.stdout


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o1777, 0o730])
def test_a_folder_that_others_may_write_is_not_trusted(folder: Path, mode: int) -> None:
    folder.chmod(mode)

    with pytest.raises(NotCompiledError, match=rf"^{folder} is not trusted: others may write"):
        usable_library(folder)


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o770])
def test_a_folder_below_one_that_others_may_write_is_not_trusted(folder: Path, mode: int) -> None:
    folder.parent.chmod(mode)

    with pytest.raises(NotCompiledError, match=rf"not trusted: {folder.parent}: others may write"):
        usable_library(folder)


@pytest.mark.parametrize("mode", [0o1777, 0o1775, 0o755, 0o700])
def test_a_folder_below_one_like_tmp_is_trusted(folder: Path, mode: int) -> None:
    folder.parent.chmod(mode)

    assert usable_library(folder) == library_file(folder)


@pytest.mark.parametrize("is_parent", [False, True])
def test_a_folder_of_somebody_else_is_not_trusted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, is_parent: bool
) -> None:
    give_away(folder.parent if is_parent else folder, monkeypatch)

    with pytest.raises(NotCompiledError, match=r"is not trusted: .*belongs to user"):
        usable_library(folder)


def test_a_folder_that_is_not_trusted_is_written_by_nobody(
    tmp_path: Path, compiled_as: list[Path]
) -> None:
    tmp_path.chmod(0o777)

    with pytest.raises(NotCompiledError, match="not trusted"):
        compile_levels(tmp_path / "cache")

    assert compiled_as == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_others_made_meanwhile_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled_as: list[Path]
) -> None:
    """In a folder like /tmp somebody may be quicker."""

    def meanwhile(folder: Path) -> None:
        folder.mkdir()
        folder.chmod(0o777)

    monkeypatch.setattr(native, "make_folder", meanwhile)

    with pytest.raises(NotCompiledError, match="others may write"):
        compile_library(tmp_path / "cache")
    assert compiled_as == []


def test_a_link_to_a_folder_is_judged_by_where_it_leads(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert usable_library(tmp_path / "link") == library_file(folder)

    folder.chmod(0o777)
    with pytest.raises(NotCompiledError, match=rf"^{folder} is not trusted"):
        usable_library(tmp_path / "link")


def test_links_in_a_circle_are_refused(tmp_path: Path, compiled_as: list[Path]) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")

    with pytest.raises(NotCompiledError):
        usable_library(tmp_path / "a")


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022])
def test_what_is_made_under_any_umask_is_trusted_and_readable(
    tmp_path: Path, compiled_as: list[Path], umask: int
) -> None:
    before = os.umask(umask)
    try:
        path = compile_library(tmp_path / "a" / "b" / "cache")
    finally:
        os.umask(before)

    assert trusted_folder(path.parent) == path.parent
    assert path.stat().st_mode & 0o777 == 0o644
    assert path.parent.stat().st_mode & 0o777 == 0o755
    assert list(path.parent.iterdir()) == [path]


def test_two_starts_at_once_do_not_break_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both compile, to different bytes, and end in the opposite order."""
    both_compile = threading.Barrier(2, timeout=20)
    first_is_done = threading.Event()
    found: dict[str, Path] = {}

    def compile_slowly(command: list[str], **_: Any) -> None:
        name = threading.current_thread().name
        Path(command[command.index("-o") + 1]).write_bytes(CODE + name.encode())
        both_compile.wait()
        if name == "second":
            assert first_is_done.wait(20)

    def start() -> None:
        name = threading.current_thread().name
        found[name] = compile_library(tmp_path)
        assert fault_of(found[name]) is None
        if name == "first":
            first_is_done.set()

    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(subprocess, "run", compile_slowly)
    threads = [threading.Thread(target=start, name=name) for name in ("first", "second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert found == dict.fromkeys(("first", "second"), library_file(tmp_path))
    assert list(tmp_path.iterdir()) == [library_file(tmp_path)]


def test_a_start_that_is_interrupted_leaves_no_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(command: list[str], **_: Any) -> None:
        Path(command[command.index("-o") + 1]).write_bytes(CODE[:3])
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(subprocess, "run", interrupted)

    with pytest.raises(KeyboardInterrupt):
        compile_library(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.usefixtures("no_home")
def test_without_a_home_the_start_says_so_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    engine = Engine(
        checkpoint(), device="cpu", threads=1, library=lambda: prepared_library(Settings())
    )
    engine.start()
    device = engine.describe().device
    engine.close()

    assert device == "cpu (eager)"
    logged = capsys.readouterr().out
    assert "no machine code" in logged
    assert "none is known for user" in logged
    assert "WORLD_MODEL_CACHE_DIR" in logged


def test_a_cache_that_cannot_be_written_is_a_sentence_and_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled_as: list[Path]
) -> None:
    def read_only(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)

    with pytest.raises(NotCompiledError, match=r"cannot write into .*: Read-only file system"):
        prepared_library(Settings(cache_dir=tmp_path / "cache"))


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that any user reaches, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_an_unknown_user_uses_what_root_prepared_and_cannot_change_it(
    compiler: str, shared_folder: Path
) -> None:
    """As in the image: made by root, run by somebody without name, home or compiler."""
    if os.geteuid() != 0 or platform.machine() != "x86_64":
        pytest.skip("only root can run something as another user")
    prepared = compile_levels(shared_folder / "steps")
    able = set(native.processor().split())
    usable = [path for path, needed in zip(prepared, LEVELS.values(), strict=True)
              if able.issuperset(needed.split())]  # fmt: skip
    if not usable:
        pytest.skip("this processor can run no level")
    code = f"""
import os
from service.settings import Settings
from service.server import prepared_library
os.setgroups([])
os.setgid({ANOTHER_USER})
os.setuid({ANOTHER_USER})
print(prepared_library(Settings()))
"""

    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "/nowhere", "WORLD_MODEL_CACHE_DIR": str(shared_folder / "steps")},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    if "PermissionError" in ended.stderr:
        pytest.skip("another user cannot read this checkout")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == str(usable[0])
