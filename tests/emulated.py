"""A GPU's kernels computed by a CPU, thread after thread."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np

_GUARD, _UNTOUCHED = 64, 12345.0
_ALIGNMENT = 64


class Emulated:
    """Both kernels on a CPU, their shared memory watched.

    Args:
        library: Compiled from `fused.cu`.
        shared: Bytes of shared memory.

    Attributes:
        is_backward: Whether the last thread goes first.
    """

    def __init__(self, library: Path, shared: int) -> None:
        self.is_backward = False
        self._call = ctypes.CDLL(str(library)).world_model_emulate
        self._numbers = shared // 4
        self._shared = np.empty(self._numbers + 2 * _GUARD, np.float32)

    def __call__(
        self, model: int, members: int, memory: Sequence[int], rows: int, horizon: int
    ) -> None:
        self._shared[:] = np.nan  # as a GPU's: of whatever value
        first = _GUARD - self._shared.ctypes.data % _ALIGNMENT // 4
        guards = self._shared[:first], self._shared[first + self._numbers :]
        for guard in guards:
            guard[:] = _UNTOUCHED
        addresses = [model, *memory, self._shared.ctypes.data + 4 * first]
        pointers = [ctypes.c_void_p(x) for x in addresses]
        self._call(*pointers[:-1], rows, horizon, pointers[-1], self.is_backward)
        for guard in guards:
            assert (guard == _UNTOUCHED).all(), "a block wrote beside its memory"

    def wait(self) -> None:
        """Nothing is under way."""
