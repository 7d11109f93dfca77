"""Is the GPU's path right?

Each stage is a process of its own: one that breaks its CUDA context cannot hide the others.

    python -m tools.gpu_check.device environment|numbers|bits|shapes|memory|dead
"""

from __future__ import annotations

import copy
import importlib.metadata
import os
import shutil
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import torch

from models.backends.backend import NotCompiledError
from models.backends.fused import LARGE_TILE_ROWS, NUMBERS, Fused, compared, compile_gpu
from models.checkpoint import Checkpoint
from service.engine import Engine
from service.engine.device_memory import DeviceMemory
from service.errors import StartupError
from service.settings import Settings
from tools.gpu_check.report import (
    MIB,
    OUT,
    ROWS,
    STEPS,
    bundled,
    compare_answers,
    compare_with_smi,
    device,
    exit_code,
    fused,
    has_gpu,
    info,
    passed,
    rolled_out,
    rows_of,
)

_PACKAGES = "torch numpy cuda-bindings nvidia-cuda-nvrtc nvidia-ml-py fastapi pydantic uvicorn"
_TOOLS = ("c++", "nvcc", "ncu", "compute-sanitizer", "nvidia-smi")
_A4000_MULTIPROCESSORS, _A4000_SHARED_BYTES = 48, 99 * 1024
"""Of an RTX A4000, the latter for a block."""


def _nowhere() -> Path:
    """Stand for the CPU's machine code, which a GPU does not need."""
    return Path("/nowhere")


def environment() -> None:
    """What is there: packages, compilers, NVRTC, and NVML beside nvidia-smi."""
    for name in _PACKAGES.split():
        with suppress(importlib.metadata.PackageNotFoundError):
            print(f"  {name} {importlib.metadata.version(name)}")
    print("  " + ", ".join(f"{name}: {shutil.which(name)}" for name in _TOOLS))
    passed("torch sees a GPU", is_good=has_gpu(), torch=torch.__version__)
    major, minor = torch.cuda.get_device_capability() if has_gpu() else (8, 6)
    started = time.perf_counter()
    binary = compile_gpu(f"sm_{major}{minor}")
    seconds = round(time.perf_counter() - started, 2)
    passed("NVRTC compiles fused.cu", is_good=binary[:4] == b"\x7fELF", seconds=seconds)
    if has_gpu():
        compare_memory()


def compare_memory() -> None:
    """What NVML says of the device, beside nvidia-smi."""
    properties = torch.cuda.get_device_properties(0)
    print(f"  {properties.name}, {properties.multi_processor_count} multiprocessors")
    torch.ones(1, device="cuda")
    memory = DeviceMemory(str(properties.uuid))
    memory.start()
    seen = memory.read()
    passed("NVML finds the device by CUDA's UUID", is_good=bool(seen), uuid=properties.uuid, **seen)
    compare_with_smi("memory by NVML is nvidia-smi's", seen.get("device_used", 0))


def numbers() -> None:
    """Values beside a float64 model on the CPU, and the bits of both kernels."""
    sizes = ((1, 16), (17, 16), (300, 16), (4096, 16), (64, 64)) if has_gpu() else ((1, 2), (17, 2))
    with ExitStack() as stack:
        where, checkpoint = device(stack), bundled()
        exact = copy.deepcopy(checkpoint.ensemble).double().cpu()
        backend = fused(checkpoint, where)
        for rows, steps in sizes:
            states, actions = rows_of(checkpoint, rows, steps)
            seen = rolled_out(backend, states, actions)
            given = torch.from_numpy(states), torch.from_numpy(actions)
            with torch.inference_mode():
                truth = exact.rollout(*(x.double() for x in given))
            pairs = compared(seen, truth)
            compare_answers(
                f"numbers {rows}x{steps}",
                {name: pair[0] for name, pair in pairs.items()},
                {name: pair[1] for name, pair in pairs.items()},
            )
        _compare_as_at_start(backend, checkpoint.spec.state_dim)
        _compare_as_on_an_a4000(backend, checkpoint)


def _compare_as_on_an_a4000(backend: Fused, checkpoint: Checkpoint) -> None:
    """Let the kernels be chosen as on an RTX A4000, and compare the bits of both."""
    kernels = backend._kernels
    small, large = kernels.shared_bytes
    # Without room for the large kernel, this device would compare the small one with itself.
    fits = kernels._large is not None and max(small, large) <= _A4000_SHARED_BYTES
    passed("both kernels fit an A4000's shared memory", is_good=fits, small=small, large=large)
    own, steps = kernels.multiprocessors, STEPS if has_gpu() else 2
    # The fewest rows that this device computes by the large kernel, and one row less.
    first = LARGE_TILE_ROWS * (-(-_A4000_MULTIPROCESSORS // checkpoint.member_count) - 1) + 1
    for rows in (first - 1, first, *((2 * first + 5, 4096) if has_gpu() else ())):
        states, actions = rows_of(checkpoint, rows, steps)
        kernels.multiprocessors = _A4000_MULTIPROCESSORS
        seen = rolled_out(backend, states, actions)
        kernels.multiprocessors = sys.maxsize  # never enough tiles for the large kernel
        truth = rolled_out(backend, states, actions)
        kernels.multiprocessors = own
        differ = [name for name in NUMBERS if _bits(seen, name) != _bits(truth, name)]
        what = f"bits by the kernels of an A4000, {rows} rows"
        passed(what, is_good=not differ, large=rows >= first, differ=differ)


def _compare_as_at_start(backend: Fused, state_dim: int) -> None:
    """Make the comparison that the engine makes at its start."""
    checkpoint = bundled()
    for rows in (8, backend.busy_rows):
        try:
            backend.check(*rows_of(checkpoint, rows))
            passed(f"comparison at start, {rows} rows", is_good=True, features=state_dim)
        except (NotCompiledError, RuntimeError) as exc:
            passed(f"comparison at start, {rows} rows", is_good=False, error=exc)


def bits() -> None:
    """The same bits in any company, place and repetition, with all multiprocessors busy."""
    rows, steps, rounds = (4096, 16, 60) if has_gpu() else (70, 2, 2)
    rng = np.random.default_rng(1)
    with ExitStack() as stack:
        checkpoint = bundled()
        backend = fused(checkpoint, device(stack))
        states, actions = rows_of(checkpoint, rows, steps)
        whole = rolled_out(backend, states, actions)
        repeated = company = 0
        for _ in range(rounds):
            again = rolled_out(backend, states, actions)
            repeated += any(_bits(again, name) != _bits(whole, name) for name in NUMBERS)
            # From a row to all: each of the kernels, and rows from one's tiles in the other's.
            count = int(np.exp(rng.uniform(0, np.log(rows))))
            order = rng.permutation(rows)[:count]
            part = rolled_out(backend, states[order], actions[order])
            company += any(
                getattr(part, name).tobytes() != getattr(whole, name)[order].tobytes()
                for name in NUMBERS
            )
    passed("bits repeat", is_good=repeated == 0, rounds=rounds, differ=repeated)
    passed("bits in any company and place", is_good=company == 0, rounds=rounds, differ=company)


def _bits(prediction: object, name: str) -> bytes:
    numbers: bytes = getattr(prediction, name).tobytes()
    return numbers


def shapes() -> None:
    """Which launches the engine keeps at its start, and how many rows the service gives one."""
    if not has_gpu():
        info("launch shapes: no GPU")
        return
    longest_s = Settings().preempt_after_s
    for name, library, most_s in (("fused", _nowhere, 2.5), ("graphs", None, 2.5)):
        engine = Engine(bundled(), device="cuda", library=library)
        engine.start()
        costs = engine.costs
        wanted = 4 if name == "graphs" else 30
        kept = len(costs.launch_rows)
        passed(
            f"{name}: launch shapes kept", is_good=kept >= wanted, kept=kept, seconds=engine.load_s
        )
        step_s = dict(zip(costs.launch_rows, costs.step_s, strict=True))
        shown = {rows: round(16e3 * step_s[rows], 3) for rows in (8, *ROWS) if rows in step_s}
        print(f"  {name}: ms of 16 steps by rows: {shown}")
        for horizon in (1, 16, 32, 64):
            rows = costs.most_rows(longest_s, horizon)
            launches = -(-4096 // rows)
            cost = launches * costs.launch_s(rows, horizon)
            whole = costs.launch_s(4096, horizon)
            facts = {"rows_a_launch": rows, "launches": launches, "ms": round(1e3 * cost, 2)}
            is_good = cost < most_s * whole
            passed(f"{name}: 4096 rows x {horizon}", is_good=is_good, **facts, whole_ms=1e3 * whole)
        engine.close()


def memory() -> None:
    """Launches that do not fit the budget are split, with the same answers; and small budgets."""
    if not has_gpu():
        info("memory: no GPU")
        return
    first: dict[str, bytes] = {}
    for mib in (64, 96, 128, 256, 4096):
        checkpoint = bundled()
        engine = Engine(checkpoint, device="cuda", vram_budget_bytes=mib * MIB, library=_nowhere)
        counted: list[str] = []
        engine.report_errors_to(counted.append)
        what = f"budget {mib} MiB"
        try:
            engine.start()
            states, actions = rows_of(checkpoint, 4096, 64)
            seen = engine.rollout(states, actions)
            alone = engine.rollout(states[4000:4001], actions[4000:4001])
            is_same = all(
                getattr(seen, name)[4000:4001].tobytes() == getattr(alone, name).tobytes()
                for name in NUMBERS
            )
            vram = dict(engine.vram() or {})
            whole = {name: _bits(seen, name) for name in NUMBERS}
            first = first or whole
            is_good = (
                is_same
                and whole == first
                and bool(np.isfinite(seen.states).all())
                and 0 < vram["allocated"] <= vram["peak"]
                and vram["reserved"] <= vram["budget"] == mib * MIB
            )
            usage = {name: number >> 20 for name, number in vram.items()}
            most = engine.costs.launch_rows[-1]
            passed(what, is_good=is_good, splits=len(counted), most_rows=most, mib=usage)
        except (RuntimeError, StartupError) as exc:
            passed(what, is_good=False, error=f"{type(exc).__name__}: {str(exc)[:150]}")
        engine.close()
        del engine
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1.0)


def dead() -> None:
    """After an illegal access nothing may claim to work: later calls raise, and close ends."""
    if not has_gpu():
        info("dead context: no GPU")
        return
    engine = Engine(bundled(1), device="cuda", library=_nowhere)
    engine.start()
    engine.canary()
    backend = engine._backend
    if not isinstance(backend, Fused):
        passed("dead context: fused kernels are served", is_good=False)
        engine.close()
        return
    try:
        backend._kernels(backend._models[0], 1, [16] * 7, 64, 4)
        backend._kernels.wait()
        passed("an illegal access is noticed", is_good=False)
    except RuntimeError as exc:
        passed("an illegal access is noticed", is_good=True, error=type(exc).__name__)
    failed = 0
    for _ in range(3):
        try:
            engine.canary()
        except RuntimeError:
            failed += 1
    passed("canaries fail from then on", is_good=failed == 3, failed=failed)
    passed("the engine knows that its device is lost", is_good=engine.is_lost)
    started = time.perf_counter()
    try:
        engine.close()
        passed("close tolerates it", is_good=True, seconds=round(time.perf_counter() - started, 2))
    except RuntimeError as exc:
        passed("close tolerates it", is_good=False, error=type(exc).__name__)
    sys.stdout.flush()
    os._exit(exit_code())  # tensors of a dead context would end the process by a signal


STAGES = {stage.__name__: stage for stage in (environment, numbers, bits, shapes, memory, dead)}


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    STAGES[sys.argv[1]]()
    sys.exit(exit_code())
