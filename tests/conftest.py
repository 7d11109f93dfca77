"""Settings and fixtures of all tests."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from hypothesis import settings

from models.backends.native import COMPILERS, compile_library
from tests.test_models.test_backends.driver import Driver

# Small products gain nothing from threads, and threads of several tests' servers fight for cores.
torch.set_num_threads(1)
# On a busy machine any example may take long.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


def lacks(what: str) -> NoReturn:
    """Skip, as a tool is not here; where all must run (`.ci/run`), fail."""
    if os.environ.get("TESTS_MUST_RUN"):
        pytest.fail(what)
    pytest.skip(what)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with slow tests first.

    Files are given to the workers whole: a slow one left for last would be run by one worker while
    the others have nothing to do.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def compiler() -> str:
    """A C++ compiler."""
    found = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs a C++ compiler")
    return found


@pytest.fixture(scope="session")
def library(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CPU's machine code, freshly compiled."""
    return compile_library(tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="session")
def loaded_driver(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """NVIDIA's driver, played by this CPU."""
    pytest.importorskip("cuda.bindings.driver")
    if torch.cuda.is_available():
        pytest.skip("NVIDIA's own driver is loaded")
    return Driver(compiler, tmp_path_factory.mktemp("driver"))


@pytest.fixture
def driver(loaded_driver: Driver, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """The same, with what PyTorch asks a GPU."""
    loaded_driver.reset()
    loaded_driver.stand_in(monkeypatch)
    return loaded_driver
