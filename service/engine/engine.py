"""Rows in, rows out, on one device. The only file of the service that imports torch.

Rows are laid into launch shapes that were warmed and verified at start: in each of them a row's
answer has the same bits, whatever shares the launch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import structlog
import torch

from models.backends.backend import Compiled, Eager, Graphs, Way
from models.backends.cpus import usable_cpus
from models.backends.fused import FusedRollouts
from models.backends.graphs import NativeRollout, Rollout, WholeRollout
from models.backends.native import NativeSteps, NotCompiledError
from models.checkpoint import Checkpoint
from service.costs import Costs
from service.engine.device_memory import DeviceMemory
from service.engine.launch_rows import ROW_TILE, launch_shapes, probe_rows
from service.engine.parts import Progress
from service.engine.warmup import Trial
from service.errors import StartupError
from service.interface import Array, ModelInfo, Prediction

log = structlog.get_logger()

_LONGEST_STEP_S = 0.008
"""A CPU's launch shapes end where a step takes longer: no launch would be made of them."""


class MemoryReader(Protocol):
    """Where device-wide memory figures come from."""

    def start(self) -> None:
        """Connect; raise OSError if impossible."""

    def read(self) -> Mapping[str, int]:
        """Return bytes by kind."""

    def utilization(self) -> float | None:
        """Return the share of time in which the device computes; None if unknown."""

    def close(self) -> None:
        """Disconnect."""


class Engine:
    """A checkpoint on a device.

    `start`, `begin`, `rollout`, `canary`, `close` and the methods of what `begin` returns are
    called from one thread at a time.

    Args:
        checkpoint: Loaded on the CPU.
        device: "auto", "cpu" or "cuda".
        threads: CPU threads of a forward pass; 0: two if that leaves a core to HTTP, else one.
        vram_budget_bytes: Most memory the allocator may take on a GPU.
        library: Returns the file of the CPU's machine code, or raises NotCompiledError; None:
            PyTorch computes everything, on a GPU too.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "auto",
        threads: int = 0,
        vram_budget_bytes: int = 4 * 2**30,
        library: Callable[[], Path] | None = None,
    ) -> None:
        self._checkpoint = checkpoint
        self._wanted_device = device
        self._threads = threads
        self._vram_budget = vram_budget_bytes
        self._library = library
        self._device = torch.device("cpu")
        self._device_memory: MemoryReader | None = None
        self._count_error: Callable[[str], None] = lambda kind: None
        self._way: Way
        self.costs = Costs((ROW_TILE,), (0.0,))
        self._is_cpu = True
        self.load_s = 0.0

    @property
    def is_quick_to_call(self) -> bool:
        """Whether a short call may be made on the event loop: it computes and never waits."""
        return self._is_cpu

    @property
    def shapes(self) -> tuple[int, ...]:
        """Row counts that launches are padded to, ascending."""
        return self.costs.rows

    def start(self) -> None:
        """Move the weights to the device, then warm, verify and time every launch shape.

        Raises:
            StartupError: The device is missing, or the model does not run on it.
        """
        started = time.perf_counter()
        threads = self._threads or min(2, max(1, usable_cpus() - 1))
        torch.set_num_threads(threads)
        # IEEE float32 everywhere: TF32 would keep 10 bits of mantissa, and answers would differ
        # from the CPU's in the third digit.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        self._device = _pick_device(self._wanted_device)
        try:
            self._is_cpu = self._device.type == "cpu"
            self._checkpoint.ensemble.to(self._device).eval().requires_grad_(False)
            if self._device.type == "cuda":
                self._start_cuda()
                self._way = self._gpu_way()
            else:
                self._way = self._cpu_way(threads)
            self.costs = self._tried_costs()
        except (RuntimeError, ValueError) as exc:
            raise StartupError(f"the model does not run on {self._device}: {exc}") from exc
        self.load_s = time.perf_counter() - started

    def close(self) -> None:
        """Give the device's memory back."""
        if self._device_memory is not None:
            self._device_memory.close()
            self._device_memory = None
        if self._device.type == "cuda":
            del self._way
            self._checkpoint.ensemble.to("cpu")
            torch.cuda.empty_cache()

    def report_errors_to(self, count: Callable[[str], None]) -> None:
        """Have errors that the engine survives counted by kind."""
        self._count_error = count

    def describe(self) -> ModelInfo:
        """Return what clients may know about the model."""
        checkpoint = self._checkpoint
        device = "cpu"
        if self._device.type == "cuda":
            device = torch.cuda.get_device_name(self._device)
        if self._way.label:
            device = f"{device} ({self._way.label})"
        return ModelInfo(
            name=checkpoint.name,
            version=checkpoint.version,
            device=device,
            members=checkpoint.member_count,
            spec=checkpoint.spec,
            limits=checkpoint.limits,
            metrics=checkpoint.metrics,
            guarantee=checkpoint.calibration.guarantee,
        )

    def begin(self, states: Array, actions: Array, part_rows: int) -> Progress:
        """Take rows; nothing is computed yet.

        Args:
            states: [B, S].
            actions: [B, H, A].
            part_rows: Rows that take their steps together, before the next ones do; at most those
                of the biggest shape.
        """
        return Progress(self, states, actions, min(part_rows, self.shapes[-1]))

    def rollout(self, states: Array, actions: Array) -> Prediction:
        """Predict B rows over H steps in one go.

        A row's bits depend on the checkpoint and the device only. Rows that do not fit the
        device's memory together are computed in halves.

        Raises:
            RuntimeError: The device failed, or not even the smallest launch fits its memory.
        """
        progress = self.begin(states, actions, self.shapes[-1])
        while not progress.is_complete:
            progress.advance(actions.shape[1])
        return progress.result()

    def canary(self) -> None:
        """Make the smallest forward pass.

        Raises:
            RuntimeError: It failed, or its result is not finite.
        """
        states, actions = probe_rows(1, 1, self._checkpoint.spec, self._checkpoint.limits)
        if not np.isfinite(self.rollout(states, actions).states).all():
            raise RuntimeError("the canary's prediction is not finite")

    def vram(self) -> Mapping[str, int] | None:
        """Return bytes of device memory by kind; None without a GPU."""
        if self._device.type != "cuda":
            return None
        return {
            "allocated": torch.cuda.memory_allocated(self._device),
            "reserved": torch.cuda.memory_reserved(self._device),
            "peak": torch.cuda.max_memory_allocated(self._device),
            "budget": self._vram_budget,
            **(self._device_memory.read() if self._device_memory is not None else {}),
        }

    def utilization(self) -> float | None:
        """Return the share of time in which a GPU computes, for others too; None if unknown."""
        return self._device_memory.utilization() if self._device_memory is not None else None

    def _start_cuda(self) -> None:
        properties = torch.cuda.get_device_properties(self._device)
        self._vram_budget = min(self._vram_budget, properties.total_memory)
        share = self._vram_budget / properties.total_memory
        torch.cuda.set_per_process_memory_fraction(share, self._device)
        memory = DeviceMemory(str(properties.uuid))
        try:
            memory.start()
        except OSError as exc:
            log.warning("device memory unknown", error=str(exc))
        else:
            self._device_memory = memory

    def _cpu_way(self, threads: int) -> Way:
        """Return machine code if it can be had, else PyTorch."""
        ensemble = self._checkpoint.ensemble
        if self._library is not None:
            try:
                steps = NativeSteps(self._library(), ensemble, threads)
                return Compiled(partial(NativeRollout, steps))
            except NotCompiledError as exc:
                log.warning("no machine code: steps are eager, many times slower", reason=str(exc))
        return Eager(ensemble)

    def _gpu_way(self) -> Way:
        """Return fused kernels if they can be had and say what the model says, else PyTorch."""
        checkpoint = self._checkpoint
        if self._library is not None:
            try:
                rollouts = FusedRollouts(checkpoint.ensemble, self._device)
                rollouts.check(*probe_rows(64, 4, checkpoint.spec, checkpoint.limits))
                return Compiled(partial(WholeRollout, rollouts), rollouts.blank)
            except NotCompiledError as exc:
                log.warning("no fused kernels: steps are graphs, slower", reason=str(exc))
        return Graphs(checkpoint.ensemble)

    def blank(self, rows: int, horizon: int, state_dim: int) -> Prediction:
        """Return a prediction to be written, where the device writes best."""
        return self._way.blank(rows, horizon, state_dim)

    def launch(self, states: Array, actions: Array, prediction: Prediction) -> Rollout:
        """Begin a rollout of as many rows as fit the biggest shape."""
        shape = next(shape for shape in self.shapes if shape >= len(states))
        return self._way.begin(states, actions, shape, prediction)

    def fits(self, compute: Callable[[], None]) -> bool:
        """Compute something; tell whether the device's memory sufficed."""
        try:
            compute()
        except torch.OutOfMemoryError:
            return False
        return True

    def free_memory(self, rows: int) -> None:
        """Make room after a launch of so many rows did not fit.

        Not while its error is handled: the traceback keeps its tensors alive.

        Raises:
            RuntimeError: It was the smallest one.
        """
        self._count_error("out_of_memory")
        if rows <= self.shapes[0]:
            raise RuntimeError("not even the smallest launch fits the device's memory")
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning("launch split", kind="out_of_memory", rows=rows)

    def _tried_costs(self) -> Costs:
        """Warm, verify and time the launch shapes."""

        def rollout(shape: int, states: Array, actions: Array) -> Prediction:
            self.costs = Costs((shape,), (0.0,))
            return self.rollout(states, actions)

        is_cpu = self._device.type == "cpu"
        shapes = launch_shapes(self._device.type, is_any=not self._way.is_padded)
        trial = Trial(rollout, self._checkpoint.spec, self._checkpoint.limits)
        return trial.costs(shapes, _LONGEST_STEP_S if is_cpu else math.inf, is_divisible=is_cpu)


def _pick_device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise StartupError("the setting WORLD_MODEL_DEVICE is cuda, but no CUDA device is usable")
    is_cuda = wanted != "cpu" and torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if is_cuda else torch.device("cpu")
