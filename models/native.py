"""An ensemble's steps as machine code for a CPU: `native.cpp`, compiled once a machine.

Eager, a step is hundreds of small calls from Python, each dearer than its work for a few rows, and
libraries pack a layer's weights anew at every call. Compiling takes seconds and needs a C++
compiler; whoever cannot have it steps eagerly. The two agree to a few units in the last place, not
in bits.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.ensemble import WorldModelEnsemble
from models.geometry import CONTACT_SCALE_M, GAP_LIMIT_M
from models.kinematics import MOST_SIN, SLOWEST_MPS
from models.prediction import Prediction
from models.world_model import WorldModel

SOURCE = Path(__file__).with_name("native.cpp")
INCLUDED = SOURCE.with_name("steps.h")
COMPILERS = ("c++", "g++", "clang++")
_OPTIONS = ("-O3", "-std=c++17", "-shared", "-fPIC")
_LONGEST_S = 300
_PANEL = 32
_ACTIVATIONS = {"relu": 1, "elu": 2, "tanh": 3}

Floats = NDArray[np.float32]


class NotCompiledError(Exception):
    """The machine code cannot be had; the message says why."""


def library_file(folder: Path) -> Path:
    """Return where the library is kept: named by its source and by what this processor can do."""
    return named_library(folder, f"native {platform.machine()} {processor()}")


def named_library(folder: Path, target: str) -> Path:
    """Return where the library for a target is kept, whatever the target is called."""
    texts = [path.read_text() for path in (SOURCE, INCLUDED)]
    digest = hashlib.sha256("\n".join([*texts, *_OPTIONS, target]).encode()).hexdigest()
    return folder / f"steps-{digest[:16]}.so"


def compile_library(folder: Path) -> Path:
    """Return the library's file, which is made if it is not there.

    Args:
        folder: Where it is kept; made if missing.

    Raises:
        NotCompiledError: There is no compiler, no place to write, or it failed.
    """
    return compiled(library_file(folder), "native")


def compiled(path: Path, march: str) -> Path:
    """Return a library's file, which is compiled for what `-march` calls so if it is not there.

    Raises:
        NotCompiledError: As for `compile_library`.
    """
    if path.exists():
        return path
    folder = path.parent
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        raise NotCompiledError(f"there is no C++ compiler ({', '.join(COMPILERS)})")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / path.name
            command = [compiler, *_OPTIONS, f"-march={march}", "-o", str(made), str(SOURCE)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_LONGEST_S)
            made.replace(path)
    except subprocess.CalledProcessError as exc:
        raise NotCompiledError(f"{compiler} failed: {exc.stderr.strip()[:300]}") from exc
    except subprocess.TimeoutExpired as exc:
        raise NotCompiledError(f"{compiler} took more than {_LONGEST_S} s") from exc
    except OSError as exc:
        raise NotCompiledError(f"cannot write into {folder}: {exc.strerror}") from exc
    return path


class NativeSteps:
    """Machine code with the members' present weights.

    Args:
        library: File of `compile_library`.
        ensemble: On the CPU.
        threads: Among which the rows of a call are divided.

    Raises:
        NotCompiledError: The file cannot be used.
    """

    def __init__(self, library: Path, ensemble: WorldModelEnsemble, threads: int = 1) -> None:
        try:
            self._call = ctypes.CDLL(str(library)).world_model_steps
        except (OSError, AttributeError) as exc:
            raise NotCompiledError(f"{library} cannot be loaded: {exc}") from exc
        self._call.restype = _INT
        self._call.argtypes = [_POINTER, _POINTER, *[_INT] * 5]
        members = list(ensemble.members)
        self.member_count, self.state_dim = len(members), members[0].state_dim
        self._pool = ThreadPoolExecutor(threads, "steps") if threads > 1 else None
        self._threads = threads
        self._kept: list[Any] = []  # what the structures point to
        self._model = self._packed(members)
        self._address = ctypes.addressof(self._model)

    def take(self, rows: RowsUnderway, begin: int, end: int, watched: int = -1) -> int:
        """Take steps of all rows; see `world_model_steps` in native.cpp.

        Args:
            rows: All but the first steps go on with what those before have left there.
            begin: First step.
            end: The step after the last one.
            watched: File descriptor; when it is readable, no further step is begun. None if -1.

        Returns:
            The step that comes next.
        """
        count = rows.count
        if self._pool is None or count < self._threads * _FEWEST_ROWS:
            return self._take(rows, begin, end, 0, count, watched)
        bounds = [count * k // self._threads for k in range(self._threads + 1)]
        shares = list(itertools.pairwise(bounds))
        parts = [
            self._pool.submit(self._take, rows, begin, end, first, last, watched)
            for first, last in shares
        ]
        reached = [part.result() for part in parts]
        # They look at different moments; those behind catch up.
        for (first, last), step in zip(shares, reached, strict=True):
            if step < max(reached):
                self._take(rows, step, max(reached), first, last, -1)
        return max(reached)

    def _take(
        self, rows: RowsUnderway, begin: int, end: int, first: int, last: int, watched: int
    ) -> int:
        # ctypes lets go of the interpreter for the whole call.
        step: int = self._call(
            self._address, rows.address, begin, end, first, last - first, watched
        )
        return step

    def _packed(self, members: Sequence[WorldModel]) -> _Model:
        first = members[0]
        packed = [self._packed_member(member) for member in members]
        geometry, kinematics = first.geometry, first.kinematics
        model = _Model(
            members=len(members),
            state_dim=first.state_dim,
            action_dim=first.action_dim,
            depth=len(first.hidden_dims),
            latent_dim=first.latent_dim,
            is_residual=first.residual,
            has_geometry=geometry is not None,
            has_kinematics=kinematics is not None,
            member=ctypes.cast(self._keep((_Member * len(packed))(*packed)), ctypes.c_void_p),
            gate_always=self._floats(first.gate_always),
            gate_if_present=self._floats(first.gate_if_present),
            gate_presence=self._ints(first.gate_presence_index.tolist()),
            gap_limit_m=GAP_LIMIT_M,
            contact_scale_m=CONTACT_SCALE_M,
            slowest_mps=SLOWEST_MPS,
            most_sin=MOST_SIN,
        )
        if geometry is not None:
            slots, columns = geometry.slot_count, geometry.columns.tolist()
            model.slots, model.edges = slots, len(columns) - 4 * slots
            presence, dx, dy, heading = (columns[i * slots : (i + 1) * slots] for i in range(4))
            unused = [0] * (3 * slots)
            model.slot_columns = self._ints([*dx, *dy, *heading, *unused, *presence])
            model.edge_columns = self._ints(columns[4 * slots :])
            model.half_length_m, model.half_width_m = geometry.half_length_m, geometry.half_width_m
        if kinematics is not None:
            columns = kinematics.columns.tolist()
            model.ego_columns, model.slot_columns = self._ints(columns[:6]), self._ints(columns[6:])
            model.action_columns = self._ints(kinematics.action_columns.tolist())
            model.dt_s = kinematics.dt_s
            for name in _CAR:
                setattr(model, name, getattr(kinematics.car, name))
        return model

    def _packed_member(self, member: WorldModel) -> _Member:
        layers = [self._packed_layer(*layer) for layer in _layers(member)]
        return _Member(
            layers=ctypes.cast(self._keep((_Layer * len(layers))(*layers)), ctypes.c_void_p),
            state_mean=self._floats(member.state_mean),
            state_scale=self._floats(member.state_scale),
            delta_scale=self._floats(member.delta_scale),
            reward_mean=member.reward_mean.item(),
            reward_scale=member.reward_scale.item(),
            done_scale=member.done_scale.item(),
            done_shift=member.done_shift.item(),
        )

    def _packed_layer(self, layer: nn.Linear, activation: int) -> _Layer:
        """Lay columns side by side in panels; missing ones are zero."""
        outputs, inputs = layer.weight.shape
        panels = -(-outputs // _PANEL)
        weights = np.zeros((panels * _PANEL, inputs), np.float32)
        weights[:outputs] = layer.weight.detach().numpy()
        biases = np.zeros(panels * _PANEL, np.float32)
        biases[:outputs] = layer.bias.detach().numpy()
        by_panel = weights.reshape(panels, _PANEL, inputs).swapaxes(1, 2)
        return _Layer(inputs, outputs, activation, self._floats(by_panel), self._floats(biases))

    def _floats(self, values: torch.Tensor | Floats) -> int:
        array = np.ascontiguousarray(values, np.float32)
        return int(self._keep(array).ctypes.data)

    def _ints(self, values: list[int]) -> int:
        return int(self._keep(np.array(values, np.int32)).ctypes.data)

    def _keep(self, thing: Any) -> Any:
        self._kept.append(thing)
        return thing


class RowsUnderway:
    """Rows that take steps: where they start, what is done, and where predictions go.

    Args:
        steps: Who takes them.
        states: [B, S].
        actions: [B, H, A].
        prediction: Of B rows over H steps; written, but for `is_finite`.
    """

    def __init__(
        self, steps: NativeSteps, states: Floats, actions: Floats, prediction: Prediction
    ) -> None:
        self.count, horizon, _ = actions.shape
        size = states.itemsize
        if states.strides[1] != size or states.dtype != np.float32:
            states = np.ascontiguousarray(states, np.float32)
        actions = np.ascontiguousarray(actions, np.float32)
        carried = np.empty(steps.member_count * self.count * (steps.state_dim + 1), np.float32)
        written = (
            prediction.states, prediction.rewards, prediction.dones, prediction.uncertainty
        )  # fmt: skip
        arrays = (states, actions, carried, *written)
        self._kept = arrays
        self._rows = _Rows(self.count, horizon, states.strides[0] // size, *map(_address, arrays))
        self.address = ctypes.addressof(self._rows)


def _address(array: Any) -> int:
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))
    except (TypeError, ValueError, BufferError):  # read-only, or not in one piece
        return int(array.ctypes.data)  # takes thrice as long


_CAR = (
    "length_m",
    "full_throttle_mps2",
    "full_brake_mps2",
    "max_speed_mps",
    "grip_mps2",
    "max_steering_rad",
)
_FEWEST_ROWS = 16
"""Fewer are not worth another thread."""

_INT, _FLOAT, _POINTER = ctypes.c_int32, ctypes.c_float, ctypes.c_void_p


def _fields(names: str, kind: Any) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


# The structures of native.cpp, field by field.


class _Layer(ctypes.Structure):
    _fields_ = _fields("inputs outputs activation", _INT) + _fields("weights biases", _POINTER)


class _Member(ctypes.Structure):
    _fields_ = _fields("layers state_mean state_scale delta_scale", _POINTER) + _fields(
        "reward_mean reward_scale done_scale done_shift", _FLOAT
    )


class _Model(ctypes.Structure):
    _fields_ = (
        _fields("members state_dim action_dim depth latent_dim", _INT)
        + _fields("is_residual has_geometry has_kinematics slots edges", _INT)
        + _fields("member gate_always gate_if_present gate_presence", _POINTER)
        + _fields("slot_columns edge_columns ego_columns action_columns", _POINTER)
        + _fields("half_length_m half_width_m gap_limit_m contact_scale_m dt_s", _FLOAT)
        + _fields(" ".join(_CAR), _FLOAT)
        + _fields("slowest_mps most_sin", _FLOAT)
    )


class _Rows(ctypes.Structure):
    _fields_ = (
        _fields("rows horizon", _INT)
        + _fields("start_stride", ctypes.c_int64)
        + _fields("starts actions carried states rewards dones uncertainty", _POINTER)
    )


def _layers(member: WorldModel) -> Iterator[tuple[nn.Linear, int]]:
    """Yield a member's layers in the order of native.cpp, each with its activation."""
    act = _ACTIVATIONS[member.activation]
    parts = (member.encoder, member.dynamics, member.decoder, member.reward_head, member.done_head)
    for part in parts:
        linear = [layer for layer in part.modules() if isinstance(layer, nn.Linear)]
        is_head = part in (member.reward_head, member.done_head)
        for k, layer in enumerate(linear):
            is_last = k == len(linear) - 1
            is_plain = part is member.decoder or (is_head and is_last)
            yield layer, 0 if is_plain else act


def processor() -> str:
    """Return what tells kinds of processors apart as far as the kernel knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
