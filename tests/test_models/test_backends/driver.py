"""NVIDIA's driver as `driver.cpp` plays it: a GPU's kernels on a CPU, through NVIDIA's bindings."""

from __future__ import annotations

import ctypes
import functools
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from models.backends import fused

_SOURCE = Path(__file__).with_name("driver.cpp")
_NAME = "libcuda.so.1"
_WAVEFRONTS = ("loads", "stores", "copies", "lines")
"""In the order of `Wavefronts::Kind`."""


class Driver:
    """Compiled and loaded, so that the bindings find it when they look for NVIDIA's.

    Args:
        compiler: Of C++.
        folder: Where it is put.
    """

    def __init__(self, compiler: str, folder: Path) -> None:
        made = folder / "driver.so"
        # As fast as this processor can; sums and products are fused where the source says so.
        options = ["-O2", "-march=native", "-ffp-contract=off"]
        options += ["-std=c++17", "-shared", "-fPIC", "-Wall", "-Werror"]
        options += fused.GPU_DEFINITIONS
        named = [f"-Wl,-soname,{_NAME}", "-I", str(fused.SOURCE.parent), "-o", str(made)]
        subprocess.run([compiler, *options, *named, str(_SOURCE)], check=True)
        self._library = ctypes.CDLL(str(made))
        self._library.driver_counted.restype = ctypes.c_longlong
        self._compiled = functools.cache(fused.compile_gpu)
        self._properties = SimpleNamespace(
            multi_processor_count=2, total_memory=16 * 2**30, uuid="played"
        )

    def reset(self) -> None:
        """Be an RTX A4000 that has nothing to complain of."""
        self.shared_bytes(99 * 1024)
        self.launch_error(0)
        self.thread_order(is_backward=False)
        self.multiprocessors(2)

    def stand_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Answer what is asked of a GPU; compile for it once."""
        stream = SimpleNamespace(cuda_stream=0, synchronize=lambda: None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: self._properties)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
        monkeypatch.setattr(fused, "compile_gpu", self._compiled)

    def shared_bytes(self, most: int) -> None:
        """Have so much shared memory for a block at most."""
        ctypes.c_uint.in_dll(self._library, "driver_most_shared").value = most

    def multiprocessors(self, count: int) -> None:
        """Have so many; they decide which kernel computes some rows."""
        self._properties.multi_processor_count = count

    def launch_error(self, code: int) -> None:
        """Refuse launches, unless the code is 0."""
        ctypes.c_int.in_dll(self._library, "driver_launch_error").value = code

    def thread_order(self, *, is_backward: bool) -> None:
        """Compute a block's threads from the first to the last, or the other way."""
        self._library.driver_go_backward(is_backward)

    def wavefronts(self, compute: Callable[[], object]) -> dict[str, int]:
        """Return how many `wavefronts.h` counts while something is computed, by kind."""
        self._library.driver_count(True)
        compute()
        self._library.driver_count(False)
        return {name: self._library.driver_counted(i) for i, name in enumerate(_WAVEFRONTS)}
