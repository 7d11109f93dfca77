"""What a monitor sees of a drive: the truth, or what a tracker reports of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.spec import Spec
from training.dataset.trackers import Moment, Trackers, Tracking, typical_sizes
from training.simulation.fleets import KINDS
from training.simulation.simulator import HIGHWAY, MAX_STEPS
from training.simulation.slots import reported_features
from training.simulation.states import encoder_of
from training.simulation.worlds import World

See = Callable[[World], NDArray[np.floating[Any]]]
"""Returns the state [S] of now; called once at the start of a drive and once after each step."""


@dataclass(frozen=True)
class TrueSight:
    """Sees what is true, rates within what a tracker would report.

    Attributes:
        spec: Of the states.
    """

    spec: Spec = HIGHWAY

    def __call__(self, world: World) -> NDArray[np.float32]:
        """Return the state [S] of now."""
        state: NDArray[np.float32] = encoder_of(self.spec).clipped_rates(world.state(self.spec))
        return state


class TrackedSight:
    """Sees what the tracker of a drive reports: late, noisy, at times of nobody or somebody else.

    Places, speeds, sizes, rates and the road are those reported; who fills the slots is chosen
    among them. It is the same tracker that reports recorded episodes to training.

    Args:
        world: At the start of the drive.
        spec: Of the states.
        tracking: Which trackers.
        seed: Of the drive; decides the errors.
    """

    def __init__(self, world: World, spec: Spec, tracking: Tracking, seed: int) -> None:
        self._encoder = encoder_of(spec)
        self._missing = max(0, self._encoder.slot_count - (len(world.poses) - 1))
        self._ego_size = world.sizes[:1]
        size = self._padded(world.sizes[1:])[None]
        kinds = np.pad(world.kinds[1:], (0, self._missing))[None]
        typical = typical_sizes(kinds, KINDS, size)
        self._trackers = Trackers(tracking, [seed], [MAX_STEPS + 1], size, typical)

    def _padded(self, others: NDArray[Any]) -> NDArray[Any]:
        """Return others [n, ...] with columns for all slots, even where there are fewer."""
        return np.pad(others, ((0, self._missing), *((0, 0),) * (others.ndim - 1)))

    def __call__(self, world: World) -> NDArray[np.float32]:
        """Return the state [S] of now."""
        ego = world.poses[:1]
        seen = self._trackers.update(
            Moment(
                ego=ego,
                features=np.array([world.features]),
                vehicles=self._padded(world.poses[1:])[None],
                present=self._padded(world.present[1:])[None],
            )
        )
        columns, near = self._encoder.choose(
            ego, self._ego_size, seen.vehicles, seen.sizes, seen.present
        )
        chosen = columns[0]
        slots = reported_features(ego, seen.vehicles[:, chosen], seen.rates[:, chosen], near)
        features = seen.ego_features.astype(np.float32)
        states = self._encoder.encode(features, self._ego_size, slots, seen.sizes[:, chosen])
        state: NDArray[np.float32] = self._encoder.clipped_rates(states)[0]
        return state


def sight_of(world: World, spec: Spec, tracking: Tracking | None, seed: int) -> See:
    """Return what a monitor sees of a drive by; the truth without trackers."""
    return TrueSight(spec) if tracking is None else TrackedSight(world, spec, tracking, seed)
