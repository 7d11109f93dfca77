"""Train a driving policy inside the world model, then let it drive in the simulator.

    python -m examples.imagined_policy --out runs/policy.json

The policy is a small network from state to action. Its weights follow the gradient of what the
model imagines: from recorded states, policy and model alternate for a horizon of steps, and the
value of the sequence is differentiated back through all of them (as the actor of Hafner et al.
2020, "Dream to control"; the last state is valued by `outlook`, so there is no critic). The
simulator gives the start states and, at the end, the score; none of its rewards is used to train.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softsign
from tqdm import tqdm

from examples.driving import Action, MakePolicy, Policy, compare, recorded_states, write_document
from examples.outlook import crash_probability, expected_return, neighbours, value
from examples.scene import sight_of
from examples.spec import HIGHWAY, known_spec
from models.checkpoint import Checkpoint, load_checkpoint
from models.highway import NEIGHBOUR_COUNT
from models.network.world_model import WorldModel
from models.spec import Spec
from training.simulation.simulator import Simulation

NAME = "imagined policy"
HORIZON = 16
BATCH = 128
WIDTH = 128
LEARNING_RATE = 2e-3
HELD_OUT = 10
"""One in so many start episodes is not trained on: the history is about those."""
LOOKS = 40
"""Entries of the history after its first, at most."""


class DrivingPolicy(nn.Module):
    """State to action: an MLP whose outputs are squashed to a steer and a pedal.

    Args:
        model: A member of the world model; its normalisers serve the policy.
        spec: Of its states.
    """

    state_mean: Tensor
    state_scale: Tensor

    def __init__(self, model: WorldModel, spec: Spec = HIGHWAY) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("state_mean", model.state_mean.clone())
        self.register_buffer("state_scale", model.state_scale.clone())
        self.net = nn.Sequential(
            nn.Linear(model.state_mean.numel() + 3 * NEIGHBOUR_COUNT, WIDTH),
            nn.ELU(),
            nn.Linear(WIDTH, WIDTH),
            nn.ELU(),
            nn.Linear(WIDTH, 2),
        )
        # Starts near coasting straight ahead: tanh has no gradient far from 0.
        for x in self.net[-1].parameters():
            nn.init.normal_(x, std=0.01)

    def forward(self, state: Tensor) -> Tensor:
        """Return actions [B, 3] for states [B, S]: steer, and throttle or brake, never both."""
        around = neighbours(state, self.spec)
        dx, dy, speed = around.dx, around.dy, around.speed
        # Positions vary by tens of metres, but a lane is 4 m wide: near cars in finer units.
        near = torch.cat([softsign(dx / 10), softsign(dy / 3), (speed - state[:, :1]) / 10], dim=-1)
        normalised = (state - self.state_mean) / self.state_scale
        outputs = torch.tanh(self.net(torch.cat([normalised, near], dim=-1)))
        steer, pedal = outputs.unbind(-1)
        return torch.stack([steer, pedal.clamp_min(0), (-pedal).clamp_min(0)], dim=-1)


def imagine(
    model: WorldModel,
    policy: Callable[[Tensor], Tensor],
    state: Tensor,
    spec: Spec = HIGHWAY,
) -> dict[str, Tensor]:
    """Let a policy drive inside a model; differentiable in the policy's weights.

    Args:
        model: A member of the world model.
        policy: States [B, S] to actions [B, 3].
        state: [B, S].
        spec: Of the states.

    Returns:
        [B] each: `value`, what training maximises; `returns`, the expected sum of the model's
        rewards; `crash_probability` within the horizon.
    """
    rewards, dones = [], []
    for _ in range(HORIZON):
        state, reward, logit = model.predict(state, policy(state))
        rewards.append(reward)
        dones.append(torch.sigmoid(model.done_scale * logit + model.done_shift))
    hazards = torch.cat(dones, dim=-1)
    returns = expected_return(torch.cat(rewards, dim=-1), hazards)
    crash = crash_probability(hazards)
    worth = value(returns, crash, state, spec)
    return {"value": worth, "returns": returns, "crash_probability": crash}


def train(
    checkpoint: Checkpoint, starts: list[Tensor], updates: int, seed: int = 0
) -> tuple[DrivingPolicy, list[dict[str, float]]]:
    """Train a policy by gradients through imagined sequences, each update in a random member.

    Args:
        checkpoint: The world model; it stays as it is.
        starts: States [T, S] by episode; at least two episodes.
        updates: Steps of the optimiser.
        seed: Of weights and batches.

    Returns:
        The policy; what the members' mean expects of it from held-out start states, from before
        the first update to after the last.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    held_out = torch.cat(starts[::HELD_OUT])[::HELD_OUT]  # neighbouring frames are nearly the same
    states = torch.cat([x for i, x in enumerate(starts) if i % HELD_OUT])
    members, spec = list(checkpoint.ensemble.members), checkpoint.spec
    policy = DrivingPolicy(members[0], spec)
    optimiser = torch.optim.Adam(policy.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    history = [{"update": 0.0} | expectation(members, policy, held_out)]
    for update in tqdm(range(1, updates + 1), desc="training", unit="update"):
        rows = torch.from_numpy(rng.integers(len(states), size=BATCH))
        member = members[int(rng.integers(len(members)))]
        loss = -imagine(member, policy, states[rows], spec)["value"].mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        if update % max(1, updates // LOOKS) == 0:
            history.append({"update": float(update)} | expectation(members, policy, held_out))
    return policy, history


@torch.no_grad()
def expectation(
    members: list[WorldModel], policy: DrivingPolicy, states: Tensor
) -> dict[str, float]:
    """Return the means of what `imagine` returns, over members and states [B, S]."""
    imagined = [imagine(member, policy, states, policy.spec) for member in members]
    return {name: float(torch.stack([x[name] for x in imagined]).mean()) for name in imagined[0]}


def as_driver(policy: DrivingPolicy) -> MakePolicy:
    """Return a trained policy as one that drives in the simulator."""

    def make(world: Simulation) -> Policy:
        see = sight_of(policy.spec)

        @torch.no_grad()
        def act(world: Simulation) -> Action:
            return np.asarray(policy(torch.from_numpy(see(world))[None])[0])

        return act

    return make


@click.command()
@click.option(
    "--checkpoint",
    default="models/pretrained",
    show_default=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)
@click.option("--starts", default=150, show_default=True, type=click.IntRange(min=2))
@click.option("--updates", default=600, show_default=True, type=click.IntRange(min=1))
@click.option("--episodes", default=100, show_default=True, type=click.IntRange(min=1))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Write JSON here.")
def main(checkpoint: Path, starts: int, updates: int, episodes: int, out: Path) -> None:
    """Train a policy in a model's imagination, then drive unseen episodes with it."""
    torch.set_num_threads(1)  # products this small gain nothing from threads
    model = load_checkpoint(checkpoint)
    spec = known_spec([feature.name for feature in model.spec.state])
    start = time.perf_counter()
    policy, history = train(
        model, [torch.from_numpy(x) for x in recorded_states(starts, spec)], updates
    )
    scores = compare(NAME, as_driver(policy), episodes, spec=spec)
    document = {
        "model_version": model.version,
        "starts": starts,
        "updates": updates,
        "batch": BATCH,
        "seconds": time.perf_counter() - start,
        "history": history,
        "scores": scores,
    }
    write_document(out, document)


if __name__ == "__main__":
    main()
