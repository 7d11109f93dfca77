"""Machine code for a CPU: `csrc/native.cpp`, compiled once per machine.

In PyTorch a step is hundreds of small calls from Python, each of which costs more than its work for
a few rows, and libraries pack a layer's weights anew at every call. Compiling takes seconds and
needs a C++ compiler; without one, `eager` computes.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from models.backends.backend import NotCompiledError
from models.backends.code_cache import fault_of, make_folder, seal, trusted_folder
from models.backends.packing import DEFINITIONS, Bytes, definitions, pack
from models.network.ensemble import WorldModelEnsemble
from models.network.world_model import WorldModel
from models.prediction import Array, Prediction

SOURCE = Path(__file__).parent / "csrc" / "native.cpp"
INCLUDED = SOURCE.with_name("steps.h")
COMPILERS = ("c++", "g++", "clang++")

_INT, _POINTER = ctypes.c_int32, ctypes.c_void_p


class _Rows(ctypes.Structure):
    """What native.cpp calls `Rows`."""

    _fields_ = [
        ("rows", _INT),
        ("horizon", _INT),
        ("start_stride", ctypes.c_int64),
        *((name, _POINTER) for name in ["starts", "actions", "carried", "states"]),
        *((name, _POINTER) for name in ["rewards", "dones", "uncertainty"]),
    ]


_OPTIONS = ("-O3", "-std=c++17", "-shared", "-fPIC", *DEFINITIONS, *definitions([_Rows], {}))
_FORMAT = "sealed"
"""Of the file; another one has another name, so that old files are not taken for broken ones."""

_LONGEST_S = 300
_ALIGNMENT = 64

log = logging.getLogger(__name__)


def library_file(folder: Path) -> Path:
    """Return where the library is kept: named by its source and by what this processor can do."""
    return named_library(folder, f"native {platform.machine()} {processor()}")


def named_library(folder: Path, target: str) -> Path:
    """Return where the library for a target is kept, whatever the target is called."""
    texts = [path.read_text() for path in (SOURCE, INCLUDED)]
    digest = hashlib.sha256("\n".join([*texts, *_OPTIONS, _FORMAT, target]).encode()).hexdigest()
    return folder / f"steps-{digest[:16]}.so"


def compile_library(folder: Path) -> Path:
    """Return the library's file, which is made if it is not there.

    Args:
        folder: Where it is kept; made if missing.

    Raises:
        NotCompiledError: There is no compiler, no place to write that is trusted, or it failed.
    """
    return compile_cpu(library_file(folder), "native")


def compile_cpu(path: Path, march: str) -> Path:
    """Return a library's file, which is compiled for what `-march` calls so if need be.

    Need is if it is not there, or must not be loaded: cut short, damaged, a link, somebody else's.

    Raises:
        NotCompiledError: As for `compile_library`.
    """
    folder = checked_folder(path.parent)
    path = folder / path.name
    fault = fault_of(path)
    if fault is None:
        return path
    is_there = os.path.lexists(path)
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        broken = f"{path} {fault}, and " if is_there else ""
        raise NotCompiledError(f"{broken}there is no C++ compiler ({', '.join(COMPILERS)})")
    try:
        make_folder(folder)
        # Between the first look and making it, others may have made one in a folder like /tmp.
        with tempfile.TemporaryDirectory(dir=checked_folder(folder)) as scratch:
            made = Path(scratch) / path.name
            command = [compiler, *_OPTIONS, f"-march={march}", "-o", str(made), str(SOURCE)]
            _run(command)
            seal(made, path.name)
            made.replace(path)
    except subprocess.CalledProcessError as exc:
        raise NotCompiledError(f"{compiler} failed: {exc.stderr.strip()[:300]}") from exc
    except subprocess.TimeoutExpired as exc:
        raise NotCompiledError(f"{compiler} took more than {_LONGEST_S} s") from exc
    except OSError as exc:
        raise NotCompiledError(f"cannot write into {folder}: {exc.strerror}") from exc
    if is_there:
        log.warning("machine code compiled anew: %s %s", path, fault)
    return path


def _run(command: Sequence[str]) -> None:
    subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        errors="replace",  # compilers write messages in the encoding of the locale
        timeout=_LONGEST_S,
    )


def checked_folder(folder: Path) -> Path:
    """Return a folder for machine code without links on its path; it may be missing.

    Raises:
        NotCompiledError: Others may write there, or it cannot be looked at.
    """
    try:
        return trusted_folder(folder)
    except OSError as exc:
        raise NotCompiledError(f"{exc.filename or folder} {exc.strerror}") from exc


class Native:
    """The `Backend` of a CPU: machine code with the members' present weights.

    Args:
        library: File of `compile_library`.
        ensemble: On the CPU.
        threads: Among which the rows of a call are divided.

    Attributes:
        models: Addresses of what steps.h calls `Model`, of the first 1, 2, ... members.
        state_dim: S.

    Raises:
        NotCompiledError: The file cannot be used.
    """

    label = ""
    is_padded = False
    blank = staticmethod(Prediction.blank)

    def __init__(self, library: Path, ensemble: WorldModelEnsemble, threads: int = 1) -> None:
        fault = fault_of(library)
        if fault is not None:
            raise NotCompiledError(f"{library} cannot be loaded: it {fault}")
        try:
            self._call = ctypes.CDLL(str(library)).world_model_steps
        except (OSError, AttributeError) as exc:
            raise NotCompiledError(f"{library} cannot be loaded: {exc}") from exc
        self._call.restype = _INT
        self._call.argtypes = [_POINTER, _POINTER, *[_INT] * 5]
        members = list(ensemble.members)
        self.state_dim = members[0].state_dim
        self._pool = ThreadPoolExecutor(threads, "steps") if threads > 1 else None
        self._threads = threads
        self._weights, self.models = _placed(members)

    def start(
        self,
        states: Array,
        actions: Array,
        launch_rows: int,
        prediction: Prediction,
        members: int | None = None,
    ) -> NativeRollout:
        """Return a rollout of which no step is taken yet; see `Backend`."""
        return NativeRollout(self, states, actions, prediction, members or len(self.models))

    def take(
        self, rollout: NativeRollout, begin: int, end: int, stop_when_readable: int | None
    ) -> int:
        """Take steps of all rows; see `world_model_steps` in native.cpp.

        Args:
            rollout: All but the first steps go on with what those before have left there.
            begin: First step.
            end: The step after the last one.
            stop_when_readable: File descriptor; when it is readable, no further step is begun.

        Returns:
            The step that comes next.
        """
        count, watched = rollout.rows, -1 if stop_when_readable is None else stop_when_readable
        if self._pool is None or count < self._threads * _FEWEST_ROWS:
            return self._take(rollout, begin, end, 0, count, watched)
        bounds = [count * k // self._threads for k in range(self._threads + 1)]
        shares = list(itertools.pairwise(bounds))
        parts = [
            self._pool.submit(self._take, rollout, begin, end, first, last, watched)
            for first, last in shares
        ]
        reached = [part.result() for part in parts]
        # They look at different moments; those behind catch up.
        for (first, last), step in zip(shares, reached, strict=True):
            if step < max(reached):
                self._take(rollout, step, max(reached), first, last, -1)
        return max(reached)

    def _take(
        self, rollout: NativeRollout, begin: int, end: int, first: int, last: int, watched: int
    ) -> int:
        # ctypes releases the interpreter's lock for the whole call.
        step: int = self._call(
            rollout.model, rollout.address, begin, end, first, last - first, watched
        )
        return step


def _placed(members: Sequence[WorldModel]) -> tuple[Bytes, list[int]]:
    """Return members' weights where they lie, and addresses in them: see `pack`."""
    size = len(pack(members, 0)[0])
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % _ALIGNMENT
    block = memory[first : first + size]
    block[:], places = pack(members, block.ctypes.data)
    return block, [block.ctypes.data + place for place in places]


class NativeRollout:
    """A rollout that machine code computes, and can leave between steps.

    Args:
        backend: Takes the steps.
        states: [B, S].
        actions: [B, H, A].
        prediction: Of B rows over H steps; written, but for `is_finite`.
        members: How many compute, the first ones.

    Attributes:
        rows: B.
        model: Address of the `Model` of these members.
        address: Of what native.cpp calls `Rows`.
    """

    def __init__(
        self,
        backend: Native,
        states: Array,
        actions: Array,
        prediction: Prediction,
        members: int,
    ) -> None:
        self.rows, self._horizon, _ = actions.shape
        self.model = backend.models[members - 1]
        size = states.itemsize
        if states.strides[1] != size or states.dtype != np.float32:
            states = np.ascontiguousarray(states, np.float32)
        actions = np.ascontiguousarray(actions, np.float32)
        carried = np.empty(members * self.rows * (backend.state_dim + 1), np.float32)
        written = (
            prediction.states, prediction.rewards, prediction.dones, prediction.uncertainty
        )  # fmt: skip
        arrays = (states, actions, carried, *written)
        self._kept = arrays
        addresses = map(_address, arrays)
        self._struct = _Rows(self.rows, self._horizon, states.strides[0] // size, *addresses)
        self.address = ctypes.addressof(self._struct)
        self._backend = backend
        self._taken = 0

    @property
    def is_complete(self) -> bool:
        """Whether all steps are taken."""
        return bool(self._taken == self._horizon)

    def advance(self, steps: int, stop_when_readable: int | None = None) -> int:
        """Take up to `steps` more steps, at least one; return how many. See `Rollout`."""
        taken = self._taken
        end = min(taken + steps, self._horizon)
        self._taken = self._backend.take(self, taken, end, stop_when_readable)
        return self._taken - taken


def _address(array: Any) -> int:
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))
    except (TypeError, ValueError, BufferError):  # read-only, or not in one piece
        return int(array.ctypes.data)  # takes three times as long


_FEWEST_ROWS = 16
"""Fewer are not worth another thread."""


def processor() -> str:
    """Return what distinguishes kinds of processors, as far as the kernel shows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
