"""Settings and fixtures of all tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from models.native import COMPILERS, compile_library

# Small products gain nothing from threads, and threads of several tests' servers fight for cores.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CPU's machine code, freshly compiled."""
    if not any(shutil.which(name) for name in COMPILERS):
        pytest.skip("needs a C++ compiler")
    return compile_library(tmp_path_factory.mktemp("native"))
