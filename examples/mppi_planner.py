"""Plan with the served world model: model predictive path integral control over HTTP.

    world-model serve &
    python -m examples.mppi_planner --out runs/planner.json

One `/rollout` request asks what becomes of K candidate sequences from the present state. Each is
valued by its expected return, its crash probability, the disagreement of the members, and what its
last state promises; the plan is their average under softmax weights (MPPI: Williams, Aldrich,
Theodorou 2017, "Model predictive path integral control: from theory to parallel computation"). Its
first actions are executed, then the rest is planned anew.

With `--confirm N` one member of the ensemble is asked about all candidates, and all members about
the N that it values most. One of five members takes a fifth of the work; but it does not see where
members disagree, and what it undervalues is never confirmed. Its returns are off by about the same
for all candidates from one state, so they are good for an order only. See docs/planning.md.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from examples.driving import Action, MakePolicy, Policy, compare, write_document
from examples.outlook import value
from examples.scene import sight_of
from examples.spec import HIGHWAY, known_spec
from models.spec import Spec
from training.simulation.simulator import Simulation
from world_model_client import Client

NAME = "MPPI planner"
CANDIDATES = 64
HORIZON = 16
EXECUTED = 2
"""Actions of a plan that are driven before the next plan."""

STEER_NOISE = (0.03, 0.4)
"""Standard deviation of a sequence's steering: log-uniform between these, since some gaps ask for
a touch and some for a swerve."""
PEDAL_NOISE = 0.7
SMOOTHNESS = 0.8
"""Correlation of a sequence's noise from one step to the next."""
TEMPERATURE = 0.1
"""Candidates whose values differ by less share the plan; in units of one step's reward."""
UNCERTAINTY_COST = 1.0
"""Of disagreement by one standard deviation of the training states."""

OUTPUTS = ("returns", "crash_probability", "uncertainty", "final_state")
FIXED = 3
"""Candidates that are not noise: the first ones, which are always confirmed."""

Floats = NDArray[np.floating[Any]]


class Planner:
    """Plans for one episode; each plan starts from what is left of the one before.

    Args:
        client: Of the service; may be shared by planners in several threads.
        rng: Source of candidates.
        spec: Of the states.
        count: Candidates of a plan, K.
        confirmed: How many of them all members answer for, after one member has for all of them;
            None: all members answer for all.
    """

    def __init__(
        self,
        client: Client,
        rng: np.random.Generator,
        spec: Spec = HIGHWAY,
        count: int = CANDIDATES,
        confirmed: int | None = None,
    ) -> None:
        self.client = client
        self.spec = spec
        self.rng = rng
        self.count = count
        self.confirmed = confirmed
        self.plan: Floats = np.zeros((HORIZON, 2))
        self.steps = 0

    def action(self, state: Floats) -> Action:
        """Return the action [3] for a state [S], the next one of a sequence of states.

        Raises:
            ServiceError: The service refused or failed.
            UnreachableError: No answer came.
        """
        if self.steps % EXECUTED == 0:
            candidates = self.draw()
            if self.confirmed is not None:
                in_order = np.argsort(-self.screened(state, candidates), kind="stable")
                candidates = candidates[in_order[: self.confirmed]]
            self.plan = average(candidates, self.values(state, candidates))
        action = to_actions(self.plan[0])
        self.plan = np.concatenate([self.plan[1:], self.plan[-1:]])
        self.steps += 1
        return action

    def values(self, state: Floats, candidates: Floats, members: int | None = None) -> Floats:
        """Return what candidates [K, H, 2] are worth [K], by the first members; None: by all."""
        actions = to_actions(candidates)
        answer = self.client.rollout(state, actions, outputs=OUTPUTS, members=members)
        return worth(answer, self.spec)

    def screened(self, state: Floats, candidates: Floats) -> Floats:
        """Return what one member values candidates [K, H, 2] at [K]; fixed ones come first."""
        values = self.values(state, candidates, members=1)
        values[:FIXED] = np.inf
        return values

    def draw(self) -> Floats:
        """Return candidates [K, H, 2], steer and pedal in [-1, 1], around the plan so far.

        The first are the plan itself, and the plan's steering under full brake and full throttle.
        """
        noise = self.rng.normal(size=(self.count, HORIZON, 2))
        for step in range(1, HORIZON):  # stays of variance 1
            noise[:, step] *= np.sqrt(1 - SMOOTHNESS**2)
            noise[:, step] += SMOOTHNESS * noise[:, step - 1]
        low, high = np.log(STEER_NOISE)
        steer = np.exp(self.rng.uniform(low, high, size=(self.count, 1)))
        scale = np.stack([steer, np.full_like(steer, PEDAL_NOISE)], axis=-1)  # [K, 1, 2]
        candidates = self.plan + scale * noise
        candidates[:FIXED] = self.plan
        candidates[1, :, 1], candidates[2, :, 1] = -1.0, 1.0
        return np.asarray(candidates.clip(-1, 1))


def average(candidates: Floats, values: Floats) -> Floats:
    """Return the mean [H, 2] of candidates [K, H, 2], weighted by exp(value / temperature)."""
    weights = np.exp((values - values.max()) / TEMPERATURE)
    return np.asarray(np.tensordot(weights / weights.sum(), candidates, axes=1))


def to_actions(controls: Floats) -> Action:
    """Return actions [..., 3] for steer and pedal [..., 2], throttle if positive, else brake."""
    steer, pedal = controls[..., 0], controls[..., 1]
    return np.stack([steer, pedal.clip(0, 1), (-pedal).clip(0, 1)], axis=-1).astype(np.float32)


def worth(answer: dict[str, Any], spec: Spec = HIGHWAY) -> Floats:
    """Return what candidates [K] are worth, from the service's answer with `OUTPUTS`.

    One member has no uncertainty: its answer is None, and costs nothing.
    """
    returns, crash, uncertainty, final = (
        torch.tensor(0.0 if answer[name] is None else answer[name], dtype=torch.float64)
        for name in OUTPUTS
    )
    return np.asarray(value(returns, crash, final, spec) - UNCERTAINTY_COST * uncertainty)


def planner(
    client: Client, spec: Spec = HIGHWAY, count: int = CANDIDATES, confirmed: int | None = None
) -> MakePolicy:
    """Return the planner as a policy, which sees states of a spec; see `Planner`."""

    def make(world: Simulation) -> Policy:
        mind = Planner(client, world.rng.spawn(1)[0], spec, count, confirmed)
        see = sight_of(spec)
        return lambda world: mind.action(see(world))

    return make


@click.command()
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The service.")
@click.option("--episodes", default=60, show_default=True, type=click.IntRange(min=1))
@click.option("--at-once", default=4, show_default=True, help="Episodes; the service batches them.")
@click.option(
    "--candidates",
    default=CANDIDATES,
    show_default=True,
    type=click.IntRange(min=FIXED),
    help="Of a plan.",
)
@click.option(
    "--confirm",
    type=click.IntRange(min=FIXED),
    help="Have one member answer for all candidates, and all members for so many of the best.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Write JSON here.")
def main(
    url: str, episodes: int, at_once: int, candidates: int, confirm: int | None, out: Path
) -> None:
    """Drive unseen episodes with the planner, and with recorded behaviours to compare."""
    torch.set_num_threads(1)  # products this small gain nothing from threads
    with Client(url, timeout_s=60.0) as client:
        model = client.model()
        spec = known_spec([feature["name"] for feature in model["features"]["state"]])
        start = time.perf_counter()
        policy = planner(client, spec, candidates, confirm)
        scores = compare(NAME, policy, episodes, at_once=at_once, spec=spec)
    document = {
        "model_version": model["version"],
        "candidates": candidates,
        "confirmed": confirm,
        "seconds": time.perf_counter() - start,
        "scores": scores,
    }
    write_document(out, document)


if __name__ == "__main__":
    main()
