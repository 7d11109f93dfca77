"""Lines of a check, and what all stages use: the bundled model, kernels, and a device."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from models.backends.fused import CudaKernels, Fused
from models.checkpoint import Checkpoint, load_checkpoint
from models.prediction import Array, Prediction
from service.engine.launch_rows import probe_rows
from service.settings import PRETRAINED

OUT = Path(os.environ.get("OUT", f"{tempfile.gettempdir()}/gpu-out"))
ROWS = (1, 64, 256, 1024, 4096)
STEPS = 16


def passed(what: str, *, is_good: bool, **facts: object) -> bool:
    """Print a PASS or FAIL line; return which."""
    _line("PASS" if is_good else "FAIL", what, facts)
    return is_good


def info(what: str, **facts: object) -> None:
    """Print a line that judges nothing."""
    _line("INFO", what, facts)


def _line(word: str, what: str, facts: dict[str, object]) -> None:
    print(f"{word} {what}" + "".join(f" {name}={fact}" for name, fact in facts.items()), flush=True)


def has_gpu() -> bool:
    """Return whether PyTorch sees a GPU."""
    return torch.cuda.is_available()


def bundled(members: int | None = None) -> Checkpoint:
    """Return the bundled checkpoint with so many members, or all."""
    return load_checkpoint(PRETRAINED, members=members)


def device(stack: ExitStack) -> torch.device:
    """Return the GPU; without one, the CPU with NVIDIA's driver played until the stack ends."""
    if has_gpu():
        return torch.device("cuda", torch.cuda.current_device())
    import pytest

    from tests.test_models.test_backends.driver import Driver

    patch = stack.enter_context(pytest.MonkeyPatch.context())
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    driver = Driver("c++", Path(folder))
    driver.reset()
    driver.stand_in(patch)
    return torch.device("cpu")


def fused(
    checkpoint: Checkpoint,
    where: torch.device,
    kernels: Callable[[], CudaKernels] | None = None,
) -> Fused:
    """Return the fused kernels of a checkpoint."""
    ensemble = checkpoint.ensemble.to(where).eval().requires_grad_(False)
    return Fused(ensemble, where, kernels)


def rows_of(checkpoint: Checkpoint, rows: int, steps: int = STEPS) -> tuple[Array, Array]:
    """Return states [rows, S] and actions [rows, steps, A] from the trained ranges."""
    return probe_rows(rows, steps, checkpoint.spec, checkpoint.limits)


def rolled_out(backend: Fused, states: Array, actions: Array) -> Prediction:
    """Return a prediction, its memory filled with NaN before: every number must be written."""
    prediction = backend.blank(len(states), actions.shape[1], states.shape[1])
    if prediction.block is not None:
        prediction.block[:] = np.nan
    backend.compute(states, actions, prediction)
    return prediction
