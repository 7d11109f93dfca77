"""One state, many futures: action sequences tried out in copies of the simulator.

Recorded driving shows one future of each state. A planner or a monitor asks about others; here
their true outcomes are found by driving copies of the same simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.spec import Spec
from training.dataset.features import HEADING
from training.dataset.windows import Windows
from training.evaluation.bootstrap import draw_counts, percentile_interval, ratio_draws
from training.evaluation.metrics import Risk
from training.fitting.parallel import run_in_processes
from training.simulation.behaviours import BEHAVIOURS, draw_sequence, make_behaviour
from training.simulation.bicycle import DT_S
from training.simulation.fleets import DEFAULT_FLEET
from training.simulation.roads import ENVIRONMENTS
from training.simulation.simulator import HIGHWAY, MAX_STEPS, Simulation, draw_episode
from training.simulation.slots import slot_features, whole_turns
from training.simulation.states import encoder_of

FIRST_SEED = 8_000_000
"""Seeds of the branched episodes count up from here; no data set uses such small ones."""

SEQUENCES = 20
NEAR_END_S = 1.2
_STATES_PER_TASK = 60
_SEEDS_PER_TASK = 100_000

_STEERS = (-0.6, 0.0, 0.6)
_PEDALS = ((0.0, 1.0), (0.0, 0.5), (0.0, 0.0), (1.0, 0.0))
_DRAWN = ("evasive", "smooth")


@dataclass(frozen=True)
class Moment:
    """A state of a simulated drive that can be reached again.

    Attributes:
        seed: Of the simulation.
        environment: Of the simulation.
        behaviour: Of the driver.
        actions: [t, 3] that lead there, t >= 1.
        fleet: Of the simulation.
    """

    seed: int
    environment: str
    behaviour: str
    actions: NDArray[np.float32]
    fleet: str = DEFAULT_FLEET

    def simulate(self) -> Simulation:
        """Return the simulation at this moment."""
        world = Simulation(self.seed, self.environment, fleet=self.fleet)
        for action in self.actions:
            world.step(action)
        return world


def draw_moment(
    seed: int, environments: dict[str, float], *, near_end: bool, fleet: str = DEFAULT_FLEET
) -> Moment | None:
    """Drive an episode and choose a moment of it.

    Args:
        seed: Of the episode and the choice.
        environments: Share of each environment.
        near_end: Whether to choose among the last `NEAR_END_S` before a crash or leaving the
            road; else any moment.
        fleet: One of `fleets.FLEETS`.

    Returns:
        None if the episode has no such moment.
    """
    environment, behaviour = draw_episode(seed, environments)
    world = Simulation(seed, environment, fleet=fleet)
    driver = make_behaviour(behaviour, world.rng.spawn(1)[0], world.pace)
    actions: list[NDArray[np.float32]] = []
    while len(actions) < MAX_STEPS and not world.cause:
        actions.append(driver.action(world.ego))
        world.step(actions[-1])
    last = len(actions) - 1  # the state before the last step
    first = max(1, len(actions) - round(NEAR_END_S / DT_S)) if near_end else 1
    if (near_end and not world.cause) or last < first:
        return None
    steps = int(np.random.default_rng([seed, 2]).integers(first, last + 1))
    return Moment(seed, environment, behaviour, np.array(actions[:steps]), fleet)


def draw_sequences(rng: np.random.Generator, horizon: int) -> NDArray[np.float32]:
    """Return what may be tried: [SEQUENCES, horizon, 3].

    Every pedal with every steer held, then drawn swerves and smooth noise.
    """
    held = [
        np.tile(np.array([steer, *pedals], np.float32), (horizon, 1))
        for pedals in _PEDALS
        for steer in _STEERS
    ]
    each = (SEQUENCES - len(held)) // len(_DRAWN)
    drawn = [draw_sequence(kind, rng, horizon) for kind in _DRAWN for _ in range(each)]
    return np.stack([*held, *drawn])


def branch(moment: Moment, number: int, horizon: int, spec: Spec = HIGHWAY) -> Windows:
    """Return the windows that follow a moment under each of `draw_sequences`.

    Args:
        moment: Where they start.
        number: Stands for the moment in the windows' `episode`.
        horizon: H.
        spec: Of the states.
    """
    world = moment.simulate()
    sequences = draw_sequences(np.random.default_rng([moment.seed, 3]), horizon)
    futures = [_drive(world.copy(), actions, spec) for actions in sequences]
    states, rewards, terminated, valid = (np.stack(part) for part in zip(*futures, strict=True))
    count = len(sequences)
    return Windows(
        states=states,
        actions=sequences,
        rewards=rewards,
        terminated=terminated,
        valid=valid,
        episode=np.full(count, number, np.int64),
        environment=np.full(count, ENVIRONMENTS.index(moment.environment), np.uint8),
        behaviour=np.full(count, BEHAVIOURS.index(moment.behaviour), np.uint8),
        start_step=np.full(count, len(moment.actions), np.int64),
    )


def _drive(world: Simulation, actions: NDArray[np.float32], spec: Spec) -> tuple[NDArray[Any], ...]:
    """Return states [H+1, S], rewards, terminated and valid [H] of one future."""
    horizon = len(actions)
    frames, features = [world.poses_before, world.poses], [world.features]
    rewards = np.zeros(horizon, np.float32)
    terminated, valid = np.zeros((2, horizon), bool)
    for k, action in enumerate(actions):
        rewards[k], cause = world.step(action)
        frames.append(world.poses)
        features.append(world.features)
        terminated[k], valid[k] = cause > 0, True
        if cause:
            break
    states = _tracked(world.sizes, np.stack(frames), np.array(features, np.float32), spec)
    missing = horizon + 1 - len(states)
    return np.pad(states, ((0, missing), (0, 0)), mode="edge"), rewards, terminated, valid


def _tracked(
    sizes: NDArray[np.float64],
    frames: NDArray[np.float64],
    features: NDArray[np.float32],
    spec: Spec,
) -> NDArray[np.float32]:
    """Return states [T, S] with one road user per slot, as `features.tracked_states` does.

    Args:
        sizes: [1 + others, 2] length and width, the ego first.
        frames: [1 + T, 1 + others, 4], one before the first state, the ego first.
        features: [T, 6] of the ego.
        spec: Of the states.
    """
    encoder, count = encoder_of(spec), len(features)
    missing = max(0, encoder.slot_count + 1 - len(sizes))
    present = np.pad(np.ones((1, len(sizes) - 1)), ((0, 0), (0, missing)))
    others = np.pad(frames[:, 1:], ((0, 0), (0, missing), (0, 0)))
    own, theirs = sizes[:1], np.pad(sizes[1:], ((0, missing), (0, 0)))
    columns, near = encoder.choose(frames[1:2, 0], own, others[1:2], theirs[None], present)
    slots = slot_features(frames[1:, 0], others[1:, columns[0]], others[:-1, columns[0]], near)
    slots[..., HEADING] -= whole_turns(slots[:1, :, HEADING]) * slots[..., 0]
    chosen = np.repeat(theirs[columns], count, axis=0)
    return encoder.encode(features, np.repeat(own, count, axis=0), slots, chosen)


def make_branches(
    folder: Path,
    states: int,
    horizon: int,
    environments: dict[str, float],
    *,
    spec: Spec = HIGHWAY,
    fleet: str = DEFAULT_FLEET,
    workers: int = 2,
    on_share: Callable[[float], object] = lambda share: None,
) -> Windows:
    """Return `SEQUENCES` windows from each of some states of fresh drives.

    Half of the states are shortly before the end of a drive that terminates. The result depends on
    the arguments alone, not on the number of workers.

    Args:
        folder: Working folder; another call with the same arguments goes on from what is there.
        states: Their number; 2 at least.
        horizon: H.
        environments: Share of each environment.
        spec: Of the states.
        fleet: One of `fleets.FLEETS`.
        workers: Processes.
        on_share: Called with the share that is done, now and then.
    """
    sizes = [min(_STATES_PER_TASK, states - i) for i in range(0, states, _STATES_PER_TASK)]
    folders = [folder / str(i) for i in range(len(sizes))]
    rest = horizon, environments, spec, fleet
    tasks = [(folders[i], i, size, *rest) for i, size in enumerate(sizes)]

    def tick() -> None:
        on_share(sum(path.exists() for path in folders) / len(folders))

    run_in_processes(write_branches, tasks, min(workers, len(tasks)), tick)
    return Windows.joined([Windows.open(path) for path in folders])


def write_branches(
    folder: Path,
    task: int,
    states: int,
    horizon: int,
    environments: dict[str, float],
    spec: Spec = HIGHWAY,
    fleet: str = DEFAULT_FLEET,
) -> None:
    """Branch from some states and save the windows; the task of one process.

    Nothing to do if that was done before.

    Args:
        folder: Where.
        task: Which; decides the seeds.
        states: Number of states.
        horizon: H.
        environments: Share of each environment.
        spec: Of the states.
        fleet: One of `fleets.FLEETS`.
    """
    if folder.exists():
        return
    seed = FIRST_SEED + task * _SEEDS_PER_TASK
    parts: list[Windows] = []
    while len(parts) < states:
        moment = draw_moment(seed, environments, near_end=len(parts) % 2 == 0, fleet=fleet)
        if moment is not None:
            parts.append(branch(moment, task * _STATES_PER_TASK + len(parts), horizon, spec))
        seed += 1
    partial = folder.with_suffix(".partial")
    Windows.joined(parts).save(partial)
    partial.rename(folder)


def choice_scores(risks: Mapping[str, Risk], branches: Windows, draws: int) -> dict[str, Any]:
    """Return how often the sequence that a method finds safest really survives.

    Only states count from which some sequences survive and some do not. Where a method finds
    several equally safe, it gets their mean.

    Args:
        risks: By method.
        branches: What `make_branches` returned.
        draws: Resamples of states for the intervals.

    Returns:
        The number of states; by method, and for a `random` choice, the share that survives and
        its interval.
    """
    states, index = np.unique(branches.episode, return_inverse=True)
    ended = np.bincount(index, branches.ends, len(states))
    size = np.bincount(index, minlength=len(states))
    is_choice = (ended > 0) & (ended < size)
    ones = np.ones(int(is_choice.sum()))
    counts = draw_counts(len(ones), draws)

    def survival(score: NDArray[np.floating[Any]]) -> dict[str, Any]:
        lowest = np.full(len(states), np.inf)
        np.minimum.at(lowest, index, score)
        is_best = score == lowest[index]
        alive = np.bincount(index, is_best & ~branches.ends, len(states))
        share = (alive / np.bincount(index, is_best, len(states)))[is_choice]
        value, drawn = ratio_draws(share, ones, counts)
        return {"survives": value, "interval": list(percentile_interval(drawn))}

    methods = {name: survival(risk.score) for name, risk in risks.items()}
    methods["random"] = survival(np.zeros(len(branches)))
    return {"states": len(states), "states_with_a_choice": len(ones), "methods": methods}
