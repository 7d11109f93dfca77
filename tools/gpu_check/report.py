"""Lines of a check, and what all stages use: the bundled model, kernels, and a device."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from models.backends.fused import MOST_ERROR, CudaKernels, Fused, relative_error
from models.checkpoint import Checkpoint, load_checkpoint
from models.prediction import Array, Prediction
from service.engine.launch_rows import probe_rows
from service.settings import PRETRAINED

OUT = Path(os.environ.get("OUT", f"{tempfile.gettempdir()}/gpu-out"))
ROWS = (1, 64, 256, 1024, 4096)
STEPS = 16
MIB = 2**20
_MOST_GAP_MIB = 1024
"""What the driver keeps for itself counts for one of NVML and nvidia-smi only."""

_failed: list[str] = []


def passed(what: str, *, is_good: bool, **facts: object) -> bool:
    """Print a PASS or FAIL line; return which. `exit_code` knows of it."""
    _line("PASS" if is_good else "FAIL", what, facts)
    if not is_good:
        _failed.append(what)
    return is_good


def exit_code() -> int:
    """Return 1 if something has failed in this process, else 0."""
    return 1 if _failed else 0


def info(what: str, **facts: object) -> None:
    """Print a line that judges nothing."""
    _line("INFO", what, facts)


def _line(word: str, what: str, facts: dict[str, object]) -> None:
    print(f"{word} {what}" + "".join(f" {name}={fact}" for name, fact in facts.items()), flush=True)


def has_gpu() -> bool:
    """Return whether PyTorch sees a GPU."""
    return torch.cuda.is_available()


def service_command(name: str) -> list[str]:
    """Return what starts the service on a device; without a GPU, one that the tests play."""
    is_played = name == "cuda" and not has_gpu()
    module = "tests.fakes.played_gpu" if is_played else "service"
    return [sys.executable, "-m", module, "serve", "--device", name]


def compare_with_smi(what: str, used: float) -> None:
    """Compare bytes in use on the device with what nvidia-smi says."""
    if not has_gpu() and shutil.which("nvidia-smi") is None:
        info(f"{what}: no GPU and no nvidia-smi")
        return
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True)
        gap = abs(used / MIB - float(done.stdout.split()[0]))
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError) as exc:
        passed(what, is_good=False, error=repr(exc))
        return
    passed(what, is_good=used > 0 and gap < _MOST_GAP_MIB, gap_mib=round(gap, 1))


def compare_answers(what: str, seen: Mapping[str, Array], truth: Mapping[str, Array]) -> None:
    """Compare numbers by name, [B, ...] each, in the norm as the engine does at its start."""
    shapes, expected = ({name: x.shape for name, x in of.items()} for of in (seen, truth))
    if not truth or shapes != expected:
        passed(what, is_good=False, error=f"{shapes} in place of {expected}")
        return
    errors = {name: relative_error(seen[name], truth[name]) for name in truth}
    worst = max(errors, key=lambda name: errors[name])
    is_good = all(error <= MOST_ERROR for error in errors.values())
    passed(what, is_good=is_good, worst=repr(worst), error=f"{errors[worst]:.1e}")


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
