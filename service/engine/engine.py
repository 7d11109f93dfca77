"""A checkpoint on a device: rows in, predictions out.

Rows are computed in launches whose row counts were warmed and verified at start: in each of them a
row's answer has the same bits, whatever shares the launch.
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import structlog
import torch

from models.attribution.integrated import attribute
from models.attribution.scene import Known
from models.backends.backend import Backend, NotCompiledError
from models.backends.cpus import usable_cpus
from models.backends.eager import Eager
from models.backends.fused import Fused
from models.backends.graphs import Graphs
from models.backends.memory import is_out_of_memory
from models.backends.native import Native
from models.checkpoint import Checkpoint
from models.network.rows import ROW_TILE
from service.engine.context import context_works, keep
from service.engine.device_memory import DeviceMemory
from service.engine.launch_rows import launch_row_counts, probe_rows
from service.engine.parts import Parts
from service.engine.warmup import WarmUp
from service.errors import StartupError
from service.interface import Array, Costs, ModelInfo, Pieces, Prediction

log = structlog.get_logger()

_COMPARED_STEPS = 16
_LONGEST_STEP_S = 0.008
"""A CPU's launches end at the row count whose step takes longer: none would be bigger."""


class Engine:
    """A checkpoint on a device.

    `start`, `begin`, `rollout`, `explain`, `canary`, `close` and what `begin` and `explain` return
    are called from one thread at a time.

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
        self._explained = checkpoint.ensemble  # on the CPU, whatever the device
        self._wanted_device = device
        self._threads = threads
        self._vram_budget = vram_budget_bytes
        self._library = library
        self._device = torch.device("cpu")
        self._device_memory: DeviceMemory | None = None
        self._count_error: Callable[[str], None] = lambda kind: None
        self._backend: Backend
        self.costs = Costs((ROW_TILE,), (0.0,))
        self._answer_digest = ""
        self._is_cpu = True
        self.load_s = 0.0
        self.is_lost = False

    @property
    def is_quick_to_call(self) -> bool:
        """Whether a short call may be made on the event loop: it computes and never waits."""
        return self._is_cpu

    def start(self) -> None:
        """Move the weights to the device, then warm, verify and time the launches.

        Raises:
            StartupError: The device is missing, or the model does not run on it.
        """
        started = time.perf_counter()
        threads = self._threads = self._threads or min(2, max(1, usable_cpus() - 1))
        torch.set_num_threads(threads)
        # IEEE float32 everywhere: TF32 would keep 10 bits of mantissa, and answers would differ
        # from the CPU's in the third digit.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        self._device = _pick_device(self._wanted_device)
        try:
            self._is_cpu = self._device.type == "cpu"
            if not self._is_cpu:
                copied = copy.deepcopy(self._checkpoint.ensemble)
                self._explained = copied.eval().requires_grad_(False)
            self._checkpoint.ensemble.to(self._device).eval().requires_grad_(False)
            if self._device.type == "cuda":
                self._start_cuda()
                self._backend = self._gpu_backend()
            else:
                self._backend = self._cpu_backend(threads)
            self.costs = self._measured_costs()
            self._answer_digest = self._digest()
        except (RuntimeError, ValueError, MemoryError) as exc:
            reason = str(exc) or type(exc).__name__
            raise StartupError(f"the model does not run on {self._device}: {reason}") from exc
        self.load_s = time.perf_counter() - started

    def close(self) -> None:
        """Give the device's memory back; a lost device's stays, also beyond this engine's life."""
        if self._device_memory is not None:
            self._device_memory.close()
            self._device_memory = None
        if self._device.type != "cuda":
            return
        if self.is_lost or not context_works():
            self.is_lost = True
            keep(self)
            log.warning("device memory not given back", error="the device is lost")
            return
        try:
            self.__dict__.pop("_backend", None)
            self._checkpoint.ensemble.to("cpu")
            torch.cuda.empty_cache()
        except RuntimeError as exc:
            log.warning("device memory not given back", error=str(exc).splitlines()[0])

    def report_errors_to(self, count: Callable[[str], None]) -> None:
        """Set what counts errors that the engine survives, by kind."""
        self._count_error = count

    def describe(self) -> ModelInfo:
        """Return what clients may know about the model."""
        checkpoint = self._checkpoint
        device = "cpu"
        if self._device.type == "cuda":
            device = torch.cuda.get_device_name(self._device)
        if self._backend.label:
            device = f"{device} ({self._backend.label})"
        return ModelInfo(
            name=checkpoint.name,
            version=checkpoint.version,
            device=device,
            members=checkpoint.member_count,
            spec=checkpoint.spec,
            limits=checkpoint.limits,
            metrics=checkpoint.metrics,
            guarantee=checkpoint.guarantee,
            refused=checkpoint.refused,
            held_members=checkpoint.held_members,
            answer_digest=self._answer_digest,
        )

    def begin(
        self, states: Array, actions: Array, part_rows: int, members: int | None = None
    ) -> Parts:
        """Take rows; nothing is computed yet.

        Args:
            states: [B, S].
            actions: [B, H, A].
            part_rows: Rows that take their steps together, before the next ones do; at most those
                of the biggest launch.
            members: How many compute, the first ones, fewer than are loaded; None: all.
        """
        launch_rows = self.costs.of(members).launch_rows
        part_rows = min(part_rows, launch_rows[-1])
        return Parts(
            self._backend, launch_rows, states, actions, part_rows, self._count_error, members
        )

    def rollout(self, states: Array, actions: Array, members: int | None = None) -> Prediction:
        """Predict B rows over H steps in one go.

        A row's bits depend on the checkpoint, the members and the device only. Rows that do not
        fit the device's memory together are computed in halves.

        Args:
            states: [B, S].
            actions: [B, H, A].
            members: As for `begin`.

        Raises:
            RuntimeError: The device failed, or not even the smallest launch fits its memory.
        """
        return self.begin(states, actions, self.costs.launch_rows[-1], members).run()

    def explain(self, state: Array, actions: Array, members: int | None = None) -> Pieces:
        """Attribute the crash probability of a sequence to its features, in PyTorch on the CPU.

        On a CPU whatever the device: pieces of a few rows gain nothing by a GPU, whose launches
        they would hold up.

        Args:
            state: [S].
            actions: [H, A].
            members: As for `begin`.
        """
        torch.set_num_threads(self._threads)  # see `canary`
        step = self._explained.step(members)
        spec, limits = self._checkpoint.spec, self._checkpoint.limits
        mean, spread = (
            x.mean(0)[0].numpy() for x in (step.stacked.state_mean, step.stacked.state_scale)
        )
        known = Known(limits.state_low, limits.state_high, mean, spread)
        return attribute(step, spec, known, state, actions)

    def canary(self) -> None:
        """Make the smallest forward pass, the first one on the thread that will call the engine.

        Raises:
            RuntimeError: It failed, or its result is not finite.
        """
        # OpenMP keeps the number for each thread that calls it: another one would take all cores.
        torch.set_num_threads(self._threads)
        states, actions = probe_rows(1, 1, self._checkpoint.spec, self._checkpoint.limits)
        try:
            is_finite = np.isfinite(self.rollout(states, actions).states).all()
        except RuntimeError:
            self.is_lost = self._device.type == "cuda" and not context_works()
            raise
        if not is_finite:
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

    def _cpu_backend(self, threads: int) -> Backend:
        """Return machine code if it can be had, else PyTorch."""
        ensemble = self._checkpoint.ensemble
        if self._library is not None:
            try:
                return Native(self._library(), ensemble, threads)
            except NotCompiledError as exc:
                log.warning("no machine code: steps are eager, many times slower", reason=str(exc))
        return Eager(ensemble)

    def _gpu_backend(self) -> Backend:
        """Return fused kernels if they can be had and agree with the model, else PyTorch."""
        checkpoint = self._checkpoint
        if self._library is not None:
            try:
                fused = Fused(checkpoint.ensemble, self._device)
                self._compare(fused)
                return fused
            except NotCompiledError as exc:
                log.warning("no fused kernels: steps are graphs, slower", reason=str(exc))
        return Graphs(checkpoint.ensemble)

    def _compare(self, fused: Fused) -> None:
        """Compare with the model: few rows and many, a kernel each, on all multiprocessors.

        Raises:
            NotCompiledError: The two differ.
            RuntimeError, MemoryError: Not even few rows fit the memory, or the device failed.
        """
        ranges = self._checkpoint.spec, self._checkpoint.limits
        fused.check(*probe_rows(ROW_TILE, _COMPARED_STEPS, *ranges))
        fused.check(*probe_rows(ROW_TILE, _COMPARED_STEPS, *ranges), members=1)
        rows = fused.busy_rows
        while rows > ROW_TILE:
            try:
                fused.check(*probe_rows(rows, _COMPARED_STEPS, *ranges))
                return
            except (RuntimeError, MemoryError) as exc:
                if not is_out_of_memory(exc):
                    raise
                log.info("fewer rows compared", kind="out_of_memory", rows=rows)
            torch.cuda.empty_cache()
            rows //= 2

    def _digest(self) -> str:
        """Return a digest of the answers to fixed questions, for `ModelInfo`."""
        ranges = self._checkpoint.spec, self._checkpoint.limits
        answer = self.rollout(*probe_rows(ROW_TILE, _COMPARED_STEPS, *ranges))
        digest = hashlib.sha256()
        for array in (answer.states, answer.rewards, answer.dones, answer.uncertainty):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    def _measured_costs(self) -> Costs:
        """Warm, verify and time the launches."""
        checkpoint, kind = self._checkpoint, self._device.type
        warm_up = WarmUp(self._backend, checkpoint.spec, checkpoint.limits, self._count_error)
        is_padded = self._backend.is_padded
        costs = warm_up.costs(
            launch_row_counts(kind, is_padded=is_padded),
            _LONGEST_STEP_S if kind == "cpu" else math.inf,
            is_divisible=kind == "cpu",
        )
        fewer = warm_up.costs_of_fewer(costs, checkpoint.member_count, is_padded=is_padded)
        return replace(costs, fewer=fewer)


def _pick_device(wanted: str) -> torch.device:
    """Return the GPU if it is wanted and usable, else the CPU.

    Raises:
        StartupError: Only a GPU is wanted, and none is usable.
    """
    if wanted == "cpu":
        return torch.device("cpu")
    # PyTorch only warns of what is wrong with a device or its driver, once a process: not asked
    # twice.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        is_usable = torch.cuda.is_available()
    if is_usable:
        try:
            return torch.device("cuda", torch.cuda.current_device())
        except RuntimeError as exc:
            raise StartupError(f"the CUDA device is not usable: {_in_short(exc)}") from exc
    reason = "; ".join(_in_short(warning.message) for warning in caught)
    if wanted == "cuda":
        raise StartupError(
            "the setting WORLD_MODEL_DEVICE is cuda, but no CUDA device is usable"
            + (f": {reason}" if reason else "")
        )
    if reason:
        log.warning("no GPU used", reason=reason)
    return torch.device("cpu")


def _in_short(trouble: Warning | Exception | str) -> str:
    """Return what PyTorch says in one line, without the place in its source."""
    return " ".join(str(trouble).partition("(Triggered internally")[0].split())
