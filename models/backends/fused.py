"""Two kernels on a GPU: `csrc/fused.cu`, compiled at start.

As PyTorch calls them, a step's operations are hundreds of kernels, each of which takes longer to
start than to compute. Here all steps of a rollout are one kernel, and combining its members is
another.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.backends.backend import NotCompiledError, WholeRollout
from models.backends.memory import host_memory
from models.backends.packing import DEFINITIONS, PANEL, definitions, pack
from models.network.ensemble import EnsembleRollout, WorldModelEnsemble
from models.prediction import Array, Prediction

SOURCE = Path(__file__).parent / "csrc" / "fused.cu"
HEADER = SOURCE.with_name("steps.h")
TILE_ROWS, LARGE_TILE_ROWS = 16, 32
THREADS, LARGE_THREADS, COMBINE_THREADS = 256, 128, 256
"""Of a block with a tile of each size; of one that combines members."""
TRACE_EXTRAS = 3
"""Columns of the trace after the state's."""
NUMBERS = ("states", "rewards", "dones", "uncertainty")
INPUTS_AHEAD = 16
"""So many inputs of a layer, at most, are read beyond its last one: a warp reads whole stages."""

GPU_DEFINITIONS = DEFINITIONS + definitions(
    (),
    {
        "TILE_ROWS": TILE_ROWS,
        "LARGE_TILE_ROWS": LARGE_TILE_ROWS,
        "THREADS": THREADS,
        "LARGE_THREADS": LARGE_THREADS,
        "COMBINE_THREADS": COMBINE_THREADS,
        "TRACE_EXTRAS": TRACE_EXTRAS,
        "INPUTS_AHEAD": INPUTS_AHEAD,
    },
)

MOST_ERROR = 1e-4
"""Relative, in the norm over rows and steps."""

_ROWS_LEFT_OUT = 7
"""Most rows that a comparison leaves out: fewer than a tile has."""


class Fused:
    """The `Backend` of a GPU: one copy in, two kernels, one copy out, one wait.

    Its memory is fixed and grows: one rollout at a time.

    Args:
        ensemble: Its present weights are taken.
        device: Where the kernels compute.
        kernels: Makes what computes there.

    Raises:
        NotCompiledError: The kernels cannot be had there.
    """

    label = ""
    is_padded = False

    def __init__(
        self,
        ensemble: WorldModelEnsemble,
        device: torch.device,
        kernels: Callable[[], CudaKernels] | None = None,
    ) -> None:
        members = list(ensemble.members)
        self._ensemble = ensemble
        self._device = device
        self._kernels = (kernels or CudaKernels)()
        self._members, self._state_dim = len(members), members[0].state_dim
        size = len(pack(members, 0)[0])
        ahead = INPUTS_AHEAD * PANEL * np.dtype(np.float32).itemsize
        self._weights = torch.zeros(size + ahead, dtype=torch.uint8, device=device)
        block, places = pack(members, self._weights.data_ptr())
        self._weights[:size].copy_(torch.from_numpy(block.copy()))
        self._models = [self._weights.data_ptr() + place for place in places]
        self._kernels.reserve(self._models[-1], torch.zeros(2, dtype=torch.int32, device=device))
        on_device = partial(torch.empty, device=device)
        self._inputs = _GrowingBuffer(on_device)
        self._trace = _GrowingBuffer(on_device)
        self._outputs = _GrowingBuffer(on_device)
        self._on_host = partial(host_memory, is_pinned=device.type == "cuda")
        self._host = _GrowingBuffer(self._on_host)

    def blank(self, rows: int, horizon: int, state_dim: int) -> Prediction:
        """Return a prediction to be written, where the device can write it itself."""
        return Prediction.blank(rows, horizon, state_dim, self._pinned)

    def start(
        self,
        states: Array,
        actions: Array,
        launch_rows: int,
        prediction: Prediction,
        members: int | None = None,
    ) -> WholeRollout:
        """Return a rollout of which no step is taken yet; see `Backend`."""
        compute = partial(self.compute, members=members)
        return WholeRollout(compute, states, actions, prediction)

    def compute(
        self,
        states: Array,
        actions: Array,
        prediction: Prediction,
        members: int | None = None,
    ) -> None:
        """Take all steps.

        Args:
            states: [B, S].
            actions: [B, H, A].
            prediction: Written, but for `is_finite`.
            members: How many compute, the first ones; None: all.
        """
        members = members or self._members
        rows, horizon, _ = actions.shape
        starts = states.size
        numbers = starts + actions.size
        host = self._host.numbers(numbers)
        host.numpy()[:starts] = states.reshape(-1)
        host.numpy()[starts:] = actions.reshape(-1)
        inputs = self._inputs.numbers(numbers)
        inputs.copy_(host, non_blocking=True)
        columns = self._state_dim + TRACE_EXTRAS
        trace = self._trace.numbers(members * horizon * rows * columns)
        sizes = [x.size for x in _arrays(prediction)]
        outputs = self._outputs.numbers(sum(sizes))
        memory = [inputs, inputs[starts:], trace, *torch.split(outputs, sizes)]
        addresses = [x.data_ptr() for x in memory]
        self._kernels(self._models[members - 1], members, addresses, rows, horizon)
        self._fetch(outputs, prediction)

    @property
    def busy_rows(self) -> int:
        """Rows by which every multiprocessor gets two blocks."""
        return LARGE_TILE_ROWS * -(-2 * self._kernels.multiprocessors // self._members)

    def check(self, states: Array, actions: Array, members: int | None = None) -> None:
        """Compare with the ensemble in PyTorch.

        Args:
            states: [B, S].
            actions: [B, H, A].
            members: How many compute, the first ones; None: all.

        Raises:
            NotCompiledError: The two differ.
        """
        seen = self.blank(len(states), actions.shape[1], states.shape[1])
        self.compute(states, actions, seen, members)
        with torch.inference_mode():
            inputs = (torch.from_numpy(x).to(self._device) for x in (states, actions))
            truth = self._ensemble.rollout(*inputs, members=members)
        for name, (numbers, expected) in compared(seen, truth).items():
            error = relative_error(numbers, expected)
            if not error <= MOST_ERROR:
                raise NotCompiledError(
                    f"the GPU's {name} differ from the model's: by {error:.1e} in the norm, "
                    f"{MOST_ERROR:.0e} is allowed"
                )

    def _fetch(self, outputs: Tensor, prediction: Prediction) -> None:
        """Copy outputs back, and wait for them: the one sync of a rollout."""
        if prediction.block is not None:
            torch.from_numpy(prediction.block).copy_(outputs, non_blocking=True)
            self._kernels.wait()
            return
        host = self._host.numbers(len(outputs))
        host.copy_(outputs, non_blocking=True)
        self._kernels.wait()
        first = 0
        for array in _arrays(prediction):
            array[:] = host.numpy()[first : first + array.size].reshape(array.shape)
            first += array.size

    def _pinned(self, numbers: int) -> Array:
        block: Array = self._on_host(numbers).numpy()
        return block


def compared(seen: Prediction, truth: EnsembleRollout) -> dict[str, tuple[Array, Array]]:
    """Return what is compared, [B, ...] each: every feature by itself, and hazards by magnitude.

    Small hazards would hide behind big ones, so their logarithms count too.
    """
    given = {name: getattr(truth, name).cpu().numpy() for name in NUMBERS}
    pairs = {
        f"state feature {i}": (seen.states[:, 1:, i], given["states"][:, 1:, i])
        for i in range(seen.states.shape[2])
    }
    pairs |= {name: (getattr(seen, name), given[name]) for name in NUMBERS if name != "states"}
    tiny = np.finfo(np.float32).tiny
    pairs["logarithms of dones"] = np.log(seen.dones + tiny), np.log(given["dones"] + tiny)
    return pairs


def relative_error(seen: Array, truth: Array) -> float:
    """Return the norm of the error over that of the truth, the worst few rows left out.

    Where a car comes or goes, the last bit decides, and a row may rightly become another.

    Args:
        seen: [B, ...].
        truth: The same shape.
    """
    rows = len(truth)
    is_same = (seen == truth) | (np.isnan(seen) & np.isnan(truth))
    with np.errstate(invalid="ignore"):
        squares = np.where(is_same, 0.0, np.square(seen.astype(np.float64) - truth))
    errors = squares.reshape(rows, -1).sum(1)
    errors[np.isnan(errors)] = np.inf
    kept = np.sort(errors)[: rows - min(_ROWS_LEFT_OUT, rows // 128)]
    # One infinite number must not make all other errors small.
    scale = float(np.linalg.norm(truth[np.isfinite(truth)].astype(np.float64)))
    return float(np.sqrt(kept.sum())) / (scale or 1.0)


def _arrays(prediction: Prediction) -> tuple[Array, ...]:
    """Return a prediction's arrays in the order of its block."""
    return prediction.states, prediction.rewards, prediction.dones, prediction.uncertainty


class _GrowingBuffer:
    """Memory that grows to the most numbers that were ever needed at once.

    Args:
        take: Returns memory for as many numbers.
    """

    def __init__(self, take: Callable[[int], Tensor]) -> None:
        self._take = take
        self._memory = take(0)

    def numbers(self, count: int) -> Tensor:
        """Return memory for `count` numbers, of whatever value."""
        if count > len(self._memory):
            self._memory = self._take(0)  # first give back, then take
            self._memory = self._take(count)
        return self._memory[:count]


class CudaKernels:
    """Both kernels on the current CUDA device, in PyTorch's current stream.

    Attributes:
        multiprocessors: Of the device.
        shared_bytes: Shared memory of a block, with a tile of each size.

    Raises:
        NotCompiledError: NVIDIA's compiler or its Python bindings are missing, or the device does
            not take the code.
    """

    def __init__(self) -> None:
        major, minor = torch.cuda.get_device_capability()
        self.multiprocessors = torch.cuda.get_device_properties().multi_processor_count
        binary = compile_gpu(f"sm_{major}{minor}")
        from cuda.bindings import driver

        self._driver = driver
        self.shared_bytes = 0, 0
        torch.cuda.synchronize()  # makes the context
        try:
            module = _good(driver.cuModuleLoadData(binary))
            self._rollout = _good(driver.cuModuleGetFunction(module, b"world_model_rollout"))
            self._large = _good(driver.cuModuleGetFunction(module, b"world_model_rollout_large"))
            self._combine = _good(driver.cuModuleGetFunction(module, b"world_model_combine"))
            self._needed = _good(driver.cuModuleGetFunction(module, b"world_model_shared_bytes"))
        except RuntimeError as exc:
            raise NotCompiledError(f"the GPU does not take {SOURCE.name}: {exc}") from exc

    def reserve(self, model: int, answer: Tensor) -> None:
        """Reserve the shared memory that a block needs; the code itself knows how much.

        Args:
            model: Address of the packed model.
            answer: [2], int32, on the device; written.

        Raises:
            NotCompiledError: A block needs more than the device has.
        """
        try:
            self._launch(self._needed, (1, 1), 1, 0, (model, answer.data_ptr()), ())
            small, large = answer.tolist()
            self.shared_bytes = small, large
            self._reserve(self._rollout, small)
        except RuntimeError as exc:
            raise NotCompiledError(f"the GPU does not take {SOURCE.name}: {exc}") from exc
        try:
            self._reserve(self._large, large)
        except RuntimeError:
            self._large = None  # layers too wide for this device's shared memory

    def __call__(
        self, model: int, members: int, memory: Sequence[int], rows: int, horizon: int
    ) -> None:
        """Queue both kernels.

        Args:
            model: Address of the packed model of these members.
            members: How many compute.
            memory: Addresses of starts, actions, trace, states, rewards, dones, uncertainty.
            rows: B.
            horizon: H.

        Raises:
            RuntimeError: The device refuses.
        """
        starts, actions, trace, *_, uncertainty = memory
        sizes = rows, horizon
        inputs = model, starts, actions, trace, uncertainty
        # A large tile reads each weight for twice the rows, if there are enough for all
        # multiprocessors. Both kernels compute a row alike, to the bit.
        tiles = -(-rows // LARGE_TILE_ROWS)
        is_large = self._large is not None and tiles * members >= self.multiprocessors
        kernel, tile_rows, threads = self._rollout, TILE_ROWS, THREADS
        if is_large:
            kernel, tile_rows, threads = self._large, LARGE_TILE_ROWS, LARGE_THREADS
        tiles, blocks = -(-rows // tile_rows), -(-rows // COMBINE_THREADS)
        shared = self.shared_bytes[is_large]
        self._launch(kernel, (tiles, members), threads, shared, inputs, sizes)
        combined = model, starts, *memory[2:]
        self._launch(self._combine, (blocks, horizon), COMBINE_THREADS, 0, combined, sizes)

    def wait(self) -> None:
        """Return when all that was queued is computed and copied."""
        torch.cuda.current_stream().synchronize()

    def _reserve(self, kernel: Any, shared_bytes: int) -> None:
        attributes = self._driver.CUfunction_attribute
        most = attributes.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        _good(self._driver.cuFuncSetAttribute(kernel, most, shared_bytes))

    def _launch(
        self,
        kernel: Any,
        blocks: tuple[int, int],
        threads: int,
        shared: int,
        addresses: Sequence[int],
        sizes: Sequence[int],
    ) -> None:
        kinds = [ctypes.c_void_p] * len(addresses) + [ctypes.c_int] * len(sizes)
        stream = torch.cuda.current_stream().cuda_stream
        arguments = (*addresses, *sizes), tuple(kinds)
        launch = self._driver.cuLaunchKernel
        _good(launch(kernel, *blocks, 1, threads, 1, 1, shared, stream, arguments, 0))


def compile_gpu(architecture: str) -> bytes:
    """Return the kernels' machine code.

    Args:
        architecture: As NVIDIA calls it: "sm_86" or so.

    Raises:
        NotCompiledError: NVIDIA's compiler or its Python bindings are missing, or it refuses.
    """
    try:
        from cuda.bindings import nvrtc

        source, header = SOURCE.read_bytes(), HEADER.read_bytes()
        name, included = SOURCE.name.encode(), HEADER.name.encode()
        program = _good(nvrtc.nvrtcCreateProgram(source, name, 1, [header], [included]))
    except (ImportError, RuntimeError) as exc:
        raise NotCompiledError(f"NVIDIA's compiler is not at hand: {exc}") from exc
    # Multiplications and additions are fused where the source says so, and nowhere else.
    options = [b"--std=c++17", b"--fmad=false", f"--gpu-architecture={architecture}".encode()]
    options += [definition.encode() for definition in GPU_DEFINITIONS]
    try:
        _good(nvrtc.nvrtcCompileProgram(program, len(options), options))
    except RuntimeError as exc:
        log = b" " * _good(nvrtc.nvrtcGetProgramLogSize(program))
        nvrtc.nvrtcGetProgramLog(program, log)
        reason = log.decode(errors="replace").strip("\0 \n")[:300]
        raise NotCompiledError(f"NVIDIA's compiler refuses {architecture}: {reason}") from exc
    binary = b" " * _good(nvrtc.nvrtcGetCUBINSize(program))
    _good(nvrtc.nvrtcGetCUBIN(program, binary))
    nvrtc.nvrtcDestroyProgram(program)
    return bytes(binary)


def _good(answer: tuple[Any, ...]) -> Any:
    """Return what a call of CUDA returns beside its error.

    Raises:
        RuntimeError: It has one.
    """
    error, *values = answer
    if error.value:
        raise RuntimeError(error.name)  # an engine knows CUDA_ERROR_OUT_OF_MEMORY by its words
    return values[0] if values else None
