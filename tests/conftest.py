"""Settings and fixtures of all tests."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models import fused
from models.native import COMPILERS, compile_library
from tests.emulated import Emulated

# Small products gain nothing from threads, and threads of several tests' servers fight for cores.
torch.set_num_threads(1)


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
def kernels(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Emulated]:
    """From the shared memory of a block to the GPU's kernels, computed by a CPU."""
    made = tmp_path_factory.mktemp("fused") / "fused.so"
    options = ["-O2", "-std=c++17", "-shared", "-fPIC", "-Wall", "-Werror"]
    command = [compiler, *options, "-o", str(made), "-x", "c++", str(fused.SOURCE)]
    subprocess.run(command, check=True)
    return lambda shared: Emulated(made, shared)
