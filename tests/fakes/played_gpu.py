"""The command of the service on a GPU that this CPU plays, as a process of its own.

    python -m tests.fakes.played_gpu serve --device cuda

Command, engine, the kernels' source and NVIDIA's bindings are the real ones. SIGUSR1 breaks the
context, as an illegal access does: every call of CUDA fails from then on.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pynvml
import pytest
import torch

from models.backends import fused
from models.backends.fused import CudaKernels, Fused
from models.backends.native import COMPILERS
from models.network.ensemble import WorldModelEnsemble
from service.cli import main
from service.engine import engine, launch_rows
from tests.test_models.test_backends.driver import Driver

NAME = "played GPU"
USED, TOTAL = 3 * 2**30, 16 * 2**30
_MEMORY = {"memory_allocated": 2**20, "memory_reserved": 2**21, "max_memory_allocated": 2**20}
_MOST_ROWS = 32
"""Of a launch: a CPU takes long for more."""
_ILLEGAL_ADDRESS = 700

_is_broken = False


class Played(Fused):
    """Fused kernels of a device whose memory is the CPU's."""

    def __init__(self, ensemble: WorldModelEnsemble, device: torch.device) -> None:
        super().__init__(ensemble, torch.device("cpu"))

    def __del__(self) -> None:
        if _is_broken:
            os.abort()  # as PyTorch does, when tensors of a broken context are freed


def synchronise(*_: object) -> None:
    """Wait for the device.

    Raises:
        RuntimeError: Its context is broken.
    """
    if _is_broken:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def stand_in(patch: pytest.MonkeyPatch) -> Driver:
    """Answer what is asked of PyTorch, NVML and the driver; return the latter."""
    compiler = next(path for name in COMPILERS if (path := shutil.which(name)))
    with tempfile.TemporaryDirectory() as folder:  # what is loaded stays
        driver = Driver(compiler, Path(folder))
    driver.reset()
    driver.stand_in(patch)
    answers: Mapping[str, Callable[..., object]] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: NAME,
        "set_per_process_memory_fraction": lambda *_: None,
        "synchronize": synchronise,
        "empty_cache": synchronise,
        **{name: lambda *_, size=size: size for name, size in _MEMORY.items()},
    }
    for name, answer in answers.items():
        patch.setattr(torch.cuda, name, answer)
    memory = pynvml.c_nvmlMemory_t(total=TOTAL, used=USED)
    told: Mapping[str, Callable[..., object]] = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
        "nvmlDeviceGetMemoryInfo": lambda handle: memory,
        "nvmlDeviceGetUtilizationRates": lambda handle: pynvml.c_nvmlUtilization_t(50, 7),
    }
    for name, answer in told.items():
        patch.setattr(pynvml, name, answer)
    patch.setattr(WorldModelEnsemble, "to", lambda ensemble, device: ensemble)
    patch.setattr(CudaKernels, "wait", synchronise)
    patch.setattr(fused, "compile_gpu", lambda architecture: b"\x7fELF")
    patch.setattr(engine, "Fused", Played)
    patch.setattr(launch_rows, "MAX_CUDA_ROWS", _MOST_ROWS)
    return driver


def serve() -> None:
    """Run the command."""
    driver = stand_in(pytest.MonkeyPatch())

    def break_context(*_: object) -> None:
        global _is_broken
        _is_broken = True
        driver.launch_error(_ILLEGAL_ADDRESS)

    signal.signal(signal.SIGUSR1, break_context)
    main()


if __name__ == "__main__":
    serve()
