"""From predicted states to places in one frame: ISO 8855, from where the ego is at the start.

x is ahead, y to the left, headings are counterclockwise; m and rad. Each state has a frame of its
own, that of the ego at its instant, with y to the right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.slots import is_filled
from models.spec import FORWARD_RIGHT_DOWN, Geometry, Kinematics, Slot, Spec
from world_model_client.scene import ISO8855, Bicycle, gap
from world_model_client.scene.bicycle import GRIP_MPS2, MAX_STEERING_RAD

Floats = NDArray[np.floating[Any]]

EGO = "ego"
_ROAD_POINTS = 41
_ROAD_BEHIND_M, _ROAD_AHEAD_M = -30.0, 80.0


@dataclass(frozen=True)
class Track:
    """A road user at T moments.

    Attributes:
        name: `EGO`, "neighbour_1", ...
        poses: [T, 3] x, y, heading.
        sizes: [T, 2] length and width, m.
        is_there: [T].
    """

    name: str
    poses: Floats
    sizes: Floats
    is_there: NDArray[np.bool_]


class Places:
    """Finds places in the states of a vehicle among road users.

    Args:
        spec: One that `are_known` is true for.
    """

    def __init__(self, spec: Spec) -> None:
        assert spec.geometry is not None
        assert spec.kinematics is not None
        self._spec = spec
        self._geometry: Geometry = spec.geometry
        self._car: Kinematics = spec.kinematics
        self._edge_limit_m = {
            each.feature: each.high for each in spec.saturations if each.high is not None
        }

    @staticmethod
    def are_known(spec: Spec) -> bool:
        """Return whether a model's states say where everybody is, and its actions where to."""
        car = spec.kinematics
        if car is None or spec.geometry is None or spec.frame != FORWARD_RIGHT_DOWN:
            return False
        return (car.grip_mps2, car.max_steering_rad) == (GRIP_MPS2, MAX_STEERING_RAD)

    def column(self, states: Floats, name: str) -> Floats:
        """Return one feature [...] of states [..., S]."""
        return states[..., self._spec.state_index(name)].astype(np.float64)

    def tracks(self, states: Floats, actions: Floats, *, is_recorded: bool = False) -> list[Track]:
        """Return the ego and who is in the slots, in their order; nobody for slots that stay empty.

        The ego's path is that of a kinematic bicycle at the speeds of the states: they do not say
        where the ego was before.

        Args:
            states: [H+1, S].
            actions: [H, A].
            is_recorded: Whether slots are filled anew for each state; in a prediction who is there
                at the start stays, with its size.
        """
        poses = self._ego_poses(states, actions)
        who = states if is_recorded else np.broadcast_to(states[:1], states.shape)
        own = self._sizes(who, self._geometry.length, self._geometry.width)
        found = [Track(EGO, poses, own, np.ones(len(states), np.bool_))]
        for number, slot in enumerate(self._geometry.slots, 1):
            is_there = is_filled(who, slot, self._spec)
            if is_there.any():
                sizes = self._sizes(who, slot.length, slot.width)
                place = self._slot_poses(states, slot, poses)
                found.append(Track(f"neighbour_{number}", place, sizes, is_there))
        return found

    def gaps(self, states: Floats) -> dict[str, Floats]:
        """Return how far everybody, and each edge in sight, is from the ego, [H+1] m, by name.

        Negative where rectangles overlap, or the ego's centre is beyond the edge. Who is there, and
        sizes, are those of the start.

        Args:
            states: [H+1, S].
        """
        geometry, start = self._geometry, states[0]
        own = self._sizes(start, geometry.length, geometry.width)
        found = {}
        for number, slot in enumerate(geometry.slots, 1):
            if is_filled(start, slot, self._spec):
                dx, dy, heading = (
                    self.column(states, name) for name in (slot.dx, slot.dy, slot.heading)
                )
                sizes = self._sizes(start, slot.length, slot.width)
                found[f"neighbour_{number}"] = gap(dx, dy, heading, tuple(own), tuple(sizes))
        for name in geometry.edges:
            if self.is_in_sight(start, name):
                found[name] = self.column(states, name)
        return found

    def is_in_sight(self, state: Floats, edge: str) -> bool:
        """Return whether a state [S] tells where an edge is, and not only that it is far."""
        return bool(self.column(state, edge) < self._edge_limit_m.get(edge, np.inf))

    def road(self, state: Floats) -> dict[str, Floats]:
        """Return the lane's centre, and the edges in sight, as lines [points, 2] by name.

        A state [S] tells one curvature: the road bends evenly, for a quarter of a circle at most.
        """
        car = self._car
        sin = float(np.clip(self.column(state, car.sin_heading_error), -1, 1))
        bend = -float(self.column(state, car.curvature))
        reach = np.pi / 2 / abs(bend) if bend else np.inf
        along = np.linspace(max(_ROAD_BEHIND_M, -reach), min(_ROAD_AHEAD_M, reach), _ROAD_POINTS)
        start = np.arcsin(sin)  # counterclockwise: the ego points to the right of its lane by it
        half = bend * along / 2
        chord = along * np.sinc(half / np.pi)
        lefts = {"lane": float(self.column(state, car.lane_offset))}
        for edge, sign in ((car.left_edge, 1.0), (car.right_edge, -1.0)):
            if self.is_in_sight(state, edge):
                lefts[edge] = sign * float(self.column(state, edge))
        return {
            name: np.stack(
                [
                    chord * np.cos(start + half) - left * np.sin(start + 2 * half),
                    chord * np.sin(start + half) + left * np.cos(start + 2 * half),
                ],
                axis=-1,
            )
            for name, left in lefts.items()
        }

    def _ego_poses(self, states: Floats, actions: Floats) -> Floats:
        spec, car = self._spec, self._car
        length = float(self._sizes(states[0], self._geometry.length, self._geometry.width)[0])
        bicycle = Bicycle(length if length > 0 else car.length_m, ISO8855, FORWARD_RIGHT_DOWN)
        pedals = actions[:, [spec.action_index(name) for name in car.action_features]]
        speeds = self.column(states, car.speed)
        poses = np.zeros((len(states), 3))
        for k, action in enumerate(pedals):
            poses[k + 1] = bicycle.step([*poses[k], speeds[k]], action, spec.dt_s)[:3]
        return poses

    def _slot_poses(self, states: Floats, slot: Slot, ego: Floats) -> Floats:
        x, y, heading = ego.T
        ahead, left = self.column(states, slot.dx), -self.column(states, slot.dy)
        cos, sin = np.cos(heading), np.sin(heading)
        return np.stack(
            [
                x + cos * ahead - sin * left,
                y + sin * ahead + cos * left,
                heading - self.column(states, slot.heading),
            ],
            axis=-1,
        )

    def _sizes(self, states: Floats, length: str | None, width: str | None) -> Floats:
        """Return lengths and widths [..., 2] of who has these features, or the usual ones."""
        usual = self._geometry.length_m, self._geometry.width_m
        sizes = [
            np.full(states.shape[:-1], common) if name is None else self.column(states, name)
            for name, common in zip((length, width), usual, strict=True)
        ]
        return np.stack(sizes, axis=-1)
