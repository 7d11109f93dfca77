"""What simulations have in common, whatever simulator they are of."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.highway import highway_spec
from models.spec import Spec
from training.simulation.behaviours import Car
from training.simulation.slots import slot_features, whole_turns
from training.simulation.states import encoder_of

CAUSES = ("none", "crash", "off_road")

HIGHWAY = highway_spec()

PROVOKED_S = 2.5
"""A crash so soon after the other one began a sudden manoeuvre counts as provoked by it."""


def reward_of(features: list[float], cause: int) -> float:
    """Return the reward of the step that led to a state.

    -1 if the step ended in a crash or off the road, else
    0.6 clip(speed / 30 m/s, 0, 1) + 0.4 (1 - min(|lane offset| / 2 m, 1)), hence in [-1, 1].
    """
    if cause:
        return -1.0
    return 0.6 * min(max(features[0] / 30, 0), 1) + float(lane_reward(features[1]))


def lane_reward(offset: float | NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the part of rewards that depends on lane offsets [...], in m."""
    return np.asarray(0.4 * (1 - np.minimum(np.abs(offset) / 2, 1)), np.float64)


class World:
    """An ego among others on a road, driven step by step.

    Attributes:
        environment: Name of the road.
        rng: Source of everything random; spawn from it what must depend on the seed alone.
        ego: The vehicle we drive, as its driver knows it.
        pace: Usual speed of this traffic, m/s.
        poses: [1 + others, 4] x, y, heading, speed now, the ego first.
        poses_before: The same one step ago; equal to `poses` before the first step.
        present: [1 + others] whether each one is there.
        sizes: [1 + others, 2] length and width of everybody, m.
        kinds: [1 + others] index into `fleets.KINDS`.
        features: The six ego features now.
        cause: Index into `CAUSES`: why it is over, 0 while it goes on.
        is_cut: Whether it cannot go on, though nothing happened.
        is_provoked: Whether it ended in a crash with somebody who had begun a sudden manoeuvre
            within `PROVOKED_S`.
    """

    environment: str
    rng: np.random.Generator
    ego: Car
    pace: float
    poses: NDArray[np.float64]
    poses_before: NDArray[np.float64]
    present: NDArray[np.bool_]
    sizes: NDArray[np.float64]
    kinds: NDArray[np.int64]
    features: list[float]
    cause: int = 0
    is_cut: bool = False
    is_provoked: bool = False

    def __init__(self) -> None:
        self._encoder = encoder_of(HIGHWAY)

    def step(self, action: NDArray[Any]) -> tuple[float, int]:
        """Drive one step.

        Args:
            action: [3] steer, throttle, brake.

        Returns:
            The reward, and the cause if it is over (an index into `CAUSES`, 0 if not).
        """
        raise NotImplementedError

    def state(self, spec: Spec = HIGHWAY) -> NDArray[np.float32]:
        """Return the state [S] of a spec as a perfect tracker delivers it now.

        Args:
            spec: A layout of `models.highway` or `models.road_users`. One without sizes gets the
                true centres, whatever size everybody has.
        """
        # Looked for only if it is another spec: to hash one takes as long as to write its state.
        encoder = self._encoder if self._encoder.spec is spec else encoder_of(spec)
        self._encoder = encoder
        ego, sizes = self.poses[:1], self.sizes[None]
        # Columns for all slots even where there are fewer others.
        missing = max(0, encoder.slot_count - (len(self.poses) - 1))
        present = np.pad(self.present[None, 1:].astype(float), ((0, 0), (0, missing)))
        others, before, theirs = (
            np.pad(x, ((0, 0), (0, missing), (0, 0)))
            for x in (self.poses[None, 1:], self.poses_before[None, 1:], sizes[:, 1:])
        )
        columns, near = encoder.choose(ego, sizes[:, 0], others, theirs, present)
        slots = slot_features(ego, others[:, columns[0]], before[:, columns[0]], near)
        slots[..., 3] -= whole_turns(slots[..., 3])
        features = np.array([self.features], np.float32)
        state: NDArray[np.float32] = encoder.encode(
            features, sizes[:, 0], slots, theirs[:, columns[0]]
        )[0]
        return state
