"""Machine code that is carried to other machines."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models.backends import cpu_levels as levels
from models.backends import native
from models.backends.backend import NotCompiledError
from models.backends.code_cache import seal
from models.backends.cpu_levels import LEVELS, compile_levels, usable_library
from models.backends.native import (
    COMPILERS,
    Native,
    library_file,
    named_library,
)
from tests.test_models.test_backends.test_native import (
    LAYOUTS,
    MODELS,
    close,
    ensemble_of,
    rolled_out,
    rows_for,
)

EPYC_9004 = f"flags : fpu sse2 {LEVELS['x86-64-v4']} avx512_vnni"
CORE_12TH = f"flags : fpu sse2 {LEVELS['x86-64-v3']} avx_vnni"
PLAIN_VM = "flags : fpu sse2 avx"


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as an image brings it, made by a real compiler."""
    if platform.machine() != "x86_64" or not any(shutil.which(name) for name in COMPILERS):
        pytest.skip("needs a C++ compiler for x86-64")
    folder = tmp_path_factory.mktemp("levels")
    assert {path.parent for path in compile_levels(folder)} == {folder}
    return folder


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def swapped(path: Path) -> None:
    """Put another level's library in a library's place, as a copy by hand would."""
    other = next(found for found in path.parent.iterdir() if found != path)
    path.write_bytes(other.read_bytes())


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image's folder, with libraries that are whole and hold nothing."""
    for level in LEVELS:
        path = named_library(tmp_path, level)
        path.touch()
        seal(path, path.name)
    return tmp_path


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize(
    ("flags", "level"),
    [(EPYC_9004, "x86-64-v4"), (CORE_12TH, "x86-64-v3")],
    ids=["AVX-512", "AVX2"],
)
def test_without_a_compiler_the_best_level_that_the_machine_can_run_is_taken(
    image: Path, monkeypatch: pytest.MonkeyPatch, flags: str, level: str
) -> None:
    monkeypatch.setattr(native, "processor", lambda: flags)
    monkeypatch.setattr(levels, "processor", lambda: flags)

    assert usable_library(image) == named_library(image, level)


@pytest.mark.usefixtures("no_compiler")
def test_a_level_that_is_not_there_is_passed_over(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(levels, "processor", lambda: EPYC_9004)
    named_library(image, "x86-64-v4").unlink()

    assert usable_library(image) == named_library(image, "x86-64-v3")


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("break_it", [lambda path: path.write_bytes(b""), cut_short, swapped])
def test_a_level_that_is_broken_is_passed_over_and_named(
    image: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    break_it: Callable[[Path], object],
) -> None:
    monkeypatch.setattr(levels, "processor", lambda: EPYC_9004)
    best = named_library(image, "x86-64-v4")
    break_it(best)

    assert usable_library(image) == named_library(image, "x86-64-v3")
    assert f"{best} is damaged or cut short" in caplog.text


@pytest.mark.usefixtures("no_compiler")
def test_what_the_machine_cannot_run_is_not_taken(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(levels, "processor", lambda: PLAIN_VM)

    with pytest.raises(NotCompiledError, match="no C\\+\\+ compiler"):
        usable_library(image)


def test_a_library_for_this_very_machine_goes_first(carried: Path) -> None:
    own = usable_library(carried)

    assert own == library_file(carried)
    own.unlink()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_level_says_what_the_model_says(carried: Path, level: str, name: str) -> None:
    if not set(native.processor().split()).issuperset(LEVELS[level].split()):
        pytest.skip(f"this processor cannot run {level}")
    ensemble = ensemble_of(MODELS[name])
    states, actions = rows_for(name, 19, 4)

    seen = rolled_out(Native(named_library(carried, level), ensemble), states, actions)

    truth = ensemble.rollout(torch.from_numpy(states), torch.from_numpy(actions))
    close(seen.states, truth.states, rtol=2e-5, atol=2e-4)
    close(seen.dones, truth.dones, rtol=2e-3, atol=1e-6)
