"""The engine on a GPU: 16-step rollouts beside eager calls, graphs, Inductor, and the fp32 roof.

    python -m benchmarks.gpu

Medians of the whole call, interleaved. The engine's time includes the copies in and out; its
kernels alone, eager calls and the graphs find their inputs on the device and leave their answers
there. "Inductor" is PyTorch's compiler, a step compiled and 16 of them replayed as a graph; as it
compiles for long, it is measured for the whole ensemble and two sizes. The roof is what a big fp32
product reaches on the same device; the share is the kernels'.
Without a GPU there is nothing to measure.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.machine import describe_machine
from models.backends.fused import CudaKernels, Fused
from models.checkpoint import load_checkpoint
from models.network.ensemble import WorldModelEnsemble
from service.engine import Engine
from service.interface import Array
from service.server import loaded_engine
from service.settings import Settings

ROWS = (1, 64, 256, 1024, 4096)
INDUCTOR_ROWS = (256, 4096)
STEPS = 16
REPETITIONS = 21
_ROOF_SIZE = 8192

COLUMNS = ("engine", "kernels", "eager", "graph")

Call = Callable[[], object]


def rollout_flop(ensemble: WorldModelEnsemble, rows: int, steps: int) -> int:
    """Return the multiplications and additions of a rollout's matrix products."""
    layers = [layer for layer in ensemble.modules() if isinstance(layer, nn.Linear)]
    return 2 * rows * steps * sum(layer.weight.numel() for layer in layers)


class Repeated(CudaKernels):
    """Kernels that can be queued again, without the copies around them.

    Attributes:
        owner: Whose memory they compute in, which must stay.
    """

    owner: Fused

    def __call__(
        self, model: int, members: int, memory: Sequence[int], rows: int, horizon: int
    ) -> None:
        """Queue them, and remember with what."""
        self._last = model, members, memory, rows, horizon
        super().__call__(*self._last)

    def again(self) -> None:
        """Queue them as the last time."""
        super().__call__(*self._last)


def candidates(engine: Engine, ensemble: WorldModelEnsemble, rows: int) -> dict[str, Call]:
    """Return calls that compute a rollout of so many rows, by name."""
    states, actions = _inputs(ensemble, rows)
    on_device = [torch.from_numpy(x).cuda() for x in (states, actions)]
    kernels: list[Repeated] = []

    def repeated() -> Repeated:
        kernels.append(Repeated())
        return kernels[-1]

    @torch.inference_mode()
    def eager() -> None:
        ensemble.rollout(*on_device)

    fused = Fused(ensemble, on_device[0].device, repeated)
    fused.compute(states, actions, fused.blank(rows, STEPS, states.shape[1]))
    kernels[0].owner = fused
    return {
        "engine": lambda: engine.rollout(states, actions),
        "kernels": kernels[0].again,
        "eager": eager,
        "graph": _captured(eager),
    }


def measure_inductor() -> Iterator[list[str]]:
    """Yield rows and milliseconds of the whole ensemble's rollouts by PyTorch's compiler."""
    ensemble = load_checkpoint(Settings().checkpoint).ensemble.cuda().eval()
    for rows in INDUCTOR_ROWS:
        on_device = [torch.from_numpy(x).cuda() for x in _inputs(ensemble, rows)]
        call = _captured(_compiled(ensemble, *on_device))
        yield [str(rows), f"{1e3 * _interleaved({'inductor': call})['inductor']:.3f}"]


def _compiled(ensemble: WorldModelEnsemble, states: Tensor, actions: Tensor) -> Call:
    """Return a rollout whose step PyTorch's compiler has compiled."""
    step = ensemble.step()
    compiled = torch.compile(step.__call__, dynamic=False)
    by_step = actions.swapaxes(0, 1).contiguous()
    start = [x.contiguous() for x in step.start(states)]

    @torch.inference_mode()
    def roll_out() -> None:
        carry = start
        for action in by_step:
            *carry, _ = compiled(*carry, action)

    return roll_out


def measure(members: int, roof: float) -> Iterator[list[str]]:
    """Yield the table's rows for so many members of the bundled ensemble.

    Args:
        members: How many to load.
        roof: FLOP/s that a product reaches.
    """
    settings = Settings(device="cuda", members=members)
    engine = loaded_engine(settings)
    engine.start()
    ensemble = load_checkpoint(settings.checkpoint, members=members).ensemble.cuda().eval()
    try:
        for rows in ROWS:
            calls = candidates(engine, ensemble, rows)
            medians = _interleaved(calls)
            reached = rollout_flop(ensemble, rows, STEPS) / medians["kernels"]
            times = [f"{1e3 * medians[name]:.3f}" for name in COLUMNS]
            yield [str(members), str(rows), *times, f"{reached / roof:.1%}"]
    finally:
        engine.close()


def fp32_roof() -> float:
    """Return the FLOP/s of a big product in IEEE float32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    left, right = (torch.randn(_ROOF_SIZE, _ROOF_SIZE, device="cuda") for _ in range(2))
    seconds = _interleaved({"product": lambda: torch.mm(left, right)})["product"]
    return 2 * _ROOF_SIZE**3 / seconds


def _interleaved(candidates: dict[str, Call]) -> dict[str, float]:
    """Return median seconds by name, the device idle before and after each call."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for repetition in range(REPETITIONS + 3):
        for name, call in candidates.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            torch.cuda.synchronize()
            if repetition >= 3:  # the first ones warm up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(x) for name, x in times.items()}


def _captured(call: Call) -> Call:
    """Return a call that replays what another one launches."""
    for _ in range(3):  # what is allocated once must not be allocated while capturing
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def _inputs(ensemble: WorldModelEnsemble, rows: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    member = next(ensemble.members)
    states = rng.normal(size=(rows, member.state_dim)).astype(np.float32)
    return states, rng.random((rows, STEPS, member.action_dim)).astype(np.float32)


def main() -> None:
    """Print a Markdown table, or that there is no GPU."""
    if not torch.cuda.is_available():
        print("Not measured: no GPU here.")
        return
    roof = fp32_roof()
    print(f"{STEPS} steps. {describe_machine()}. fp32 product: {1e-12 * roof:.1f} TFLOP/s\n")
    print(f"| members | rows | {' ms | '.join(COLUMNS)} ms | share of the roof |")
    print("|---" * (len(COLUMNS) + 3) + "|")
    for members in (1, 5):
        for row in measure(members, roof):
            print("| " + " | ".join(row) + " |", flush=True)
    print("\n| rows, all members | Inductor ms |\n|---|---|")
    for row in measure_inductor():
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
