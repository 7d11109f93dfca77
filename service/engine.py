"""Rows in, rows out, on one device. The only file of the service that imports torch.

Rows are laid into launch shapes that were warmed and verified at start: in each of them a row's
answer has the same bits, whatever shares the launch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import numpy as np
import structlog
import torch

from models.checkpoint import Checkpoint
from service.errors import StartupError
from service.interface import Array, ModelInfo, Prediction
from service.shapes import LAUNCH_WORK, MAX_LAUNCH_ROWS, ROW_TILE, launch_shapes, probe_rows
from service.vram import DeviceMemory

log = structlog.get_logger()

_PROBE_STEPS = 2


class MemoryReader(Protocol):
    """Where device-wide memory figures come from."""

    def start(self) -> None:
        """Connect; raise OSError if impossible."""

    def read(self) -> Mapping[str, int]:
        """Return bytes by kind."""

    def close(self) -> None:
        """Disconnect."""


class Engine:
    """A checkpoint on a device.

    `start`, `rollout`, `canary` and `close` are called from one thread at a time.

    Args:
        checkpoint: Loaded on the CPU.
        device: "auto", "cpu" or "cuda".
        threads: CPU threads of a forward pass; 0: two if that leaves a core to HTTP, else one.
        launch_work: Most rows x steps of a launch; 0: what suits the device.
        vram_budget_bytes: Most memory the allocator may take on a GPU.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "auto",
        threads: int = 0,
        launch_work: int = 0,
        vram_budget_bytes: int = 4 * 2**30,
    ) -> None:
        self._checkpoint = checkpoint
        self._wanted_device = device
        self._threads = threads
        self._wanted_work = launch_work
        self._vram_budget = vram_budget_bytes
        self._device = torch.device("cpu")
        self._device_memory: MemoryReader | None = None
        self._count_error: Callable[[str], None] = lambda kind: None
        self.shapes: list[int] = []
        self.load_s = 0.0

    @property
    def launch_work(self) -> int:
        """Most rows x steps that a launch should hold on this device."""
        return self._wanted_work or LAUNCH_WORK[self._device.type]

    def start(self) -> None:
        """Move the weights to the device, then warm and verify every launch shape.

        Raises:
            StartupError: The device is missing, or the model does not run on it.
        """
        started = time.perf_counter()
        torch.set_num_threads(self._threads or min(2, max(1, (os.cpu_count() or 1) - 1)))
        # IEEE float32 everywhere: TF32 would keep 10 bits of mantissa, and answers would differ
        # from the CPU's in the third digit.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        self._device = _pick_device(self._wanted_device)
        try:
            self._checkpoint.ensemble.to(self._device).eval().requires_grad_(False)
            if self._device.type == "cuda":
                self._start_cuda()
            self.shapes = self._verified_shapes()
        except (RuntimeError, ValueError) as exc:
            raise StartupError(f"the model does not run on {self._device}: {exc}") from exc
        self.load_s = time.perf_counter() - started

    def close(self) -> None:
        """Give the device's memory back."""
        if self._device_memory is not None:
            self._device_memory.close()
            self._device_memory = None
        if self._device.type == "cuda":
            self._checkpoint.ensemble.to("cpu")
            torch.cuda.empty_cache()

    def report_errors_to(self, count: Callable[[str], None]) -> None:
        """Have errors that the engine survives counted by kind."""
        self._count_error = count

    def describe(self) -> ModelInfo:
        """Return what clients may know about the model."""
        checkpoint = self._checkpoint
        is_cuda = self._device.type == "cuda"
        return ModelInfo(
            name=checkpoint.name,
            version=checkpoint.version,
            device=torch.cuda.get_device_name(self._device) if is_cuda else "cpu",
            members=checkpoint.member_count,
            spec=checkpoint.spec,
            limits=checkpoint.limits,
            metrics=checkpoint.metrics,
        )

    def rollout(self, states: Array, actions: Array) -> Prediction:
        """Predict B rows over H steps.

        A row's bits depend on the checkpoint and the device only. Rows that do not fit the
        device's memory together are computed in halves.

        Args:
            states: [B, S].
            actions: [B, H, A].

        Raises:
            RuntimeError: The device failed, or not even the smallest launch fits its memory.
        """
        parts = [
            part
            for start in range(0, len(states), self.shapes[-1])
            for part in self._fitting(
                states[start : start + self.shapes[-1]], actions[start : start + self.shapes[-1]]
            )
        ]
        return parts[0] if len(parts) == 1 else _concatenated(parts)

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

    def _start_cuda(self) -> None:
        properties = torch.cuda.get_device_properties(self._device)
        share = min(1.0, self._vram_budget / properties.total_memory)
        torch.cuda.set_per_process_memory_fraction(share, self._device)
        memory = DeviceMemory(str(properties.uuid))
        try:
            memory.start()
        except OSError as exc:
            log.warning("device memory unknown", error=str(exc))
        else:
            self._device_memory = memory

    def _fitting(self, states: Array, actions: Array) -> Iterator[Prediction]:
        """Launch, in halves of halves if memory does not suffice for more."""
        try:
            part = self._launch(states, actions)
        except torch.OutOfMemoryError:
            self._count_error("out_of_memory")
            if len(states) <= self.shapes[0]:
                raise
        else:
            yield part
            return
        # Outside the handler: the traceback it held kept the failed launch's tensors alive.
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning("launch split", kind="out_of_memory", rows=len(states))
        half = -(-len(states) // (2 * ROW_TILE)) * ROW_TILE
        yield from self._fitting(states[:half], actions[:half])
        yield from self._fitting(states[half:], actions[half:])

    def _launch(self, states: Array, actions: Array) -> Prediction:
        """Pad to the next launch shape, compute, and cut the padding off."""
        rows = len(states)
        shape = next(shape for shape in self.shapes if shape >= rows)
        state_rows = self._to_device(states, shape)
        action_rows = self._to_device(actions, shape)
        with torch.inference_mode():
            result = self._checkpoint.ensemble.rollout(state_rows, action_rows)
            batch, horizon = shape, actions.shape[1]
            flat = torch.cat(
                [
                    result.states.reshape(batch, -1),
                    result.rewards,
                    result.dones,
                    result.uncertainty.unsqueeze(-1),
                ],
                dim=-1,
            )
            # The one copy out of the device, and the one sync.
            out: Array = flat.cpu().numpy()[:rows]
        states_end = (horizon + 1) * states.shape[1]
        return Prediction(
            states=out[:, :states_end].reshape(rows, horizon + 1, states.shape[1]),
            rewards=out[:, states_end : states_end + horizon],
            dones=out[:, states_end + horizon : -1],
            uncertainty=out[:, -1],
        )

    def _to_device(self, rows: Array, shape: int) -> torch.Tensor:
        """Return the rows on the device, zeros after them up to `shape` rows."""
        is_cuda = self._device.type == "cuda"
        # Torch's own memory, not NumPy's: matrix kernels may round by how memory is aligned.
        padded = torch.zeros((shape, *rows.shape[1:]), pin_memory=is_cuda)
        padded.numpy()[: len(rows)] = rows
        return padded.to(self._device, non_blocking=is_cuda)

    def _verified_shapes(self) -> list[int]:
        """Warm each launch shape; keep those in which a row has the bits of the smallest one.

        Every shape is filled with the same few rows, turned by one place from tile to tile: bits
        may depend neither on the shape nor on the place in it.
        """
        candidates = launch_shapes(self._device.type, min(self.launch_work, MAX_LAUNCH_ROWS))
        rows = probe_rows(
            candidates[0], _PROBE_STEPS, self._checkpoint.spec, self._checkpoint.limits
        )
        first = self._probed(candidates[0], *rows, turn=0)
        if self._probed(candidates[0], *rows, turn=1) != first:
            log.warning("rows are not reproducible", reason="bits depend on the place in a launch")
            return [shape for shape in candidates if self._probed(shape, *rows, turn=0)]
        kept = [candidates[0]]
        for shape in candidates[1:]:
            if self._probed(shape, *rows, turn=1) <= first:
                kept.append(shape)
            else:
                log.warning("launch shape dropped", rows=shape, reason="a row's bits differ")
        return kept

    def _probed(
        self, shape: int, states: Array, actions: Array, *, turn: int
    ) -> set[tuple[int, bytes]]:
        """Fill a shape with rows; return which bits each of them got."""
        places = np.arange(shape)
        which = (places + turn * (1 + places // len(states))) % len(states)
        self.shapes = [shape]
        seen = self._launch(states[which], actions[which])
        numbers = np.column_stack(
            [seen.states.reshape(shape, -1), seen.rewards, seen.dones, seen.uncertainty]
        )
        return {(int(row), numbers[place].tobytes()) for place, row in enumerate(which)}


def _pick_device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise StartupError("the setting WORLD_MODEL_DEVICE is cuda, but no CUDA device is usable")
    is_cuda = wanted != "cpu" and torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if is_cuda else torch.device("cpu")


def _concatenated(parts: list[Prediction]) -> Prediction:
    return Prediction(
        np.concatenate([part.states for part in parts]),
        np.concatenate([part.rewards for part in parts]),
        np.concatenate([part.dones for part in parts]),
        np.concatenate([part.uncertainty for part in parts]),
    )
