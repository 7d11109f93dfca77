"""Three methods to evaluate an ensemble at once: a loop over members, vmap, batched products.

    python -m benchmarks.ensemble

Prints medians of a 16-step rollout and of one step, one thread, methods interleaved. The loop and
vmap use the public tools only; the third is what `WorldModelEnsemble` does.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state

import models
from benchmarks.machine import describe_machine
from models.checkpoint import load_checkpoint
from models.network.ensemble import WorldModelEnsemble
from models.network.rows import pad_rows
from models.network.unroll import unroll

ROWS = (1, 16, 64, 256)
HORIZONS = (1, 16)
REPETITIONS = 9

Rollout = Callable[[Tensor, Tensor], Tensor]


def methods(ensemble: WorldModelEnsemble) -> dict[str, Rollout]:
    """Return the methods by name; each returns the members' states."""
    members = list(ensemble.members)
    parameters, buffers = stack_module_state(members)

    def loop(states: Tensor, actions: Tensor) -> Tensor:
        return torch.stack([member.rollout(states, actions)[0] for member in members])

    def one_step(
        weights: dict[str, Tensor], own: dict[str, Tensor], state: Tensor, action: Tensor
    ) -> Any:
        return functional_call(members[0], (weights, own), (state, action))

    together = torch.vmap(one_step)

    def vmapped(states: Tensor, actions: Tensor) -> Tensor:
        states, actions = pad_rows(states), pad_rows(actions, dim=-3)
        return unroll(
            lambda state, action: together(parameters, buffers, state, action),
            states.expand(len(members), *states.shape),
            actions.expand(len(members), *actions.shape),
        )[0]

    def batched(states: Tensor, actions: Tensor) -> Tensor:
        return ensemble.rollout_members(pad_rows(states), pad_rows(actions, dim=-3))[0]

    return {"loop": loop, "vmap": vmapped, "batched": batched}


@torch.inference_mode()
def measure(ensemble: WorldModelEnsemble) -> dict[tuple[int, int], dict[str, float]]:
    """Return medians in seconds by (horizon, rows) and method; answers are compared first."""
    table = {}
    for horizon in HORIZONS:
        for rows in ROWS:
            states = torch.randn(rows, 34).abs()
            actions = torch.rand(rows, horizon, 3)
            candidates = methods(ensemble)
            expected = candidates["loop"](states, actions)
            for rollout in candidates.values():
                torch.testing.assert_close(
                    rollout(states, actions)[:, :rows],
                    expected,
                    rtol=1e-3,
                    atol=1e-2,
                )
            times: dict[str, list[float]] = {name: [] for name in candidates}
            for _ in range(REPETITIONS):
                for name, rollout in candidates.items():
                    start = time.perf_counter()
                    rollout(states, actions)
                    times[name].append(time.perf_counter() - start)
            table[horizon, rows] = {name: statistics.median(x) for name, x in times.items()}
    return table


def main() -> None:
    """Print a Markdown table."""
    torch.set_num_threads(1)
    ensemble = load_checkpoint(Path(models.__file__).parent / "pretrained").ensemble
    print(f"Ensemble of {ensemble.member_count}, one thread. {describe_machine()}\n")
    print("| steps | rows | loop ms | vmap ms | batched ms | loop / batched |")
    print("|---|---|---|---|---|---|")
    for (horizon, rows), medians in measure(ensemble).items():
        loop, vmap, batched = (1e3 * medians[name] for name in ("loop", "vmap", "batched"))
        print(
            f"| {horizon} | {rows} | {loop:.2f} | {vmap:.2f} | {batched:.2f} "
            f"| {loop / batched:.2f} |"
        )


if __name__ == "__main__":
    main()
