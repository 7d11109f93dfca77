"""What road users in SUMO do suddenly: brake, swerve, look away, dash across the road."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.simulation.bicycle import DT_S
from training.simulation.sumo.ego import SumoEgo
from training.simulation.sumo.maps import Floats
from training.simulation.sumo.users import Lapse, User

_NO_CHECKS, _ALL_CHECKS = 0, 31
"""Speed modes of SUMO: which rules a speed that was set must keep."""

_BLIND_CHANGE, _USUAL_CHANGE = 0, 1621
"""Lane change modes of SUMO: only those that are asked for, without looking; and its default."""


class Sudden:
    """Everybody's lapses in one episode, as they come.

    Args:
        api: libsumo.
        users: All but the ego.
        ego: Whose way pedestrians dash into.
    """

    def __init__(self, api: Any, users: tuple[User, ...], ego: SumoEgo) -> None:
        self._api, self._users, self._ego = api, users, ego
        self._pending = {i: user.lapse for i, user in enumerate(users) if user.lapse is not None}
        self._begun: dict[int, int] = {}
        self._dashes: dict[int, Floats] = {}

    def began_within(self, index: int, step: int, seconds: float) -> bool:
        """Whether somebody's lapse began less than so long before a step."""
        begun = self._begun.get(index)
        return begun is not None and (step - begun) * DT_S < seconds

    def act(self, step: int, poses: Floats, present: NDArray[np.bool_]) -> None:
        """Begin, continue and end lapses in the coming step.

        Args:
            step: Number of steps so far.
            poses: [M, 4] of all users now.
            present: [M].
        """
        for i, lapse in list(self._pending.items()):
            if not present[i]:
                continue
            if lapse.kind == "dash":
                self._dash(i, lapse, step, poses[i])
            elif i in self._begun:
                if not lapse.is_on(step * DT_S):
                    self._end(i, lapse)
            elif lapse.is_on(step * DT_S):
                self._begun[i] = step
                self._begin(i, lapse, float(poses[i, 3]))

    def _begin(self, index: int, lapse: Lapse, speed: float) -> None:
        vehicle, name = self._api.vehicle, self._users[index].name
        if lapse.kind == "brake":
            vehicle.setSpeedMode(name, _NO_CHECKS)
            lower = max(speed - lapse.strength * lapse.duration_s, 0.0)
            vehicle.slowDown(name, lower, (speed - lower) / lapse.strength)
        elif lapse.kind == "distraction":
            vehicle.setSpeedMode(name, _NO_CHECKS)
            vehicle.setSpeed(name, speed)
        else:
            lane, lanes = vehicle.getLaneIndex(name), self._lanes(name)
            sides = [side for side in (lane - 1, lane + 1) if side in lanes]
            if sides:
                vehicle.setLaneChangeMode(name, _BLIND_CHANGE)
                vehicle.changeLane(name, sides[int(lapse.choice * len(sides))], lapse.duration_s)

    def _lanes(self, name: str) -> range:
        edge = self._api.vehicle.getRoadID(name)
        return range(0) if edge.startswith(":") else range(self._api.edge.getLaneNumber(edge))

    def _end(self, index: int, lapse: Lapse) -> None:
        del self._pending[index]
        vehicle, name = self._api.vehicle, self._users[index].name
        if lapse.kind == "swerve":
            vehicle.setLaneChangeMode(name, _USUAL_CHANGE)
        else:
            vehicle.setSpeed(name, -1.0)
            vehicle.setSpeedMode(name, _ALL_CHECKS)

    def _dash(self, index: int, lapse: Lapse, step: int, pose: Floats) -> None:
        """Let a pedestrian run across the ego's way, so that they may meet."""
        if index not in self._begun:
            target = self._meeting(lapse, pose)
            if target is None:
                return
            self._begun[index] = step
            self._dashes[index] = target
        direction, name = self._dashes[index], self._users[index].name
        x, y = (pose[:2] + direction * lapse.strength * DT_S).tolist()
        if self._is_lost_at(name, x, -y):
            del self._pending[index]  # SUMO moves him from here on
            return
        angle = math.degrees(math.atan2(direction[1], direction[0])) + 90.0
        self._api.person.moveToXY(name, "", x, -y, angle, 2)

    def _is_lost_at(self, name: str, x: float, y: float) -> bool:
        """Whether a pedestrian whom we move to a place would have no path from there.

        SUMO (1.28) takes the first edge of his route that ends at a junction for the one that he
        comes from, though he may have walked from its end. At the junction's corner it then looks
        for a path to the edge after that one, and if that is at another junction, kills the
        process.
        """
        edges, person = self._api.edge, self._api.person
        corner = self._api.simulation.convertRoad(x, y, False, "pedestrian")[0]
        if not corner.startswith(":") or "_w" not in corner or corner == person.getRoadID(name):
            return False
        junction = corner[1:].rsplit("_w", 1)[0]
        for edge, following in pairwise(person.getEdges(name)):
            if edges.getToJunction(edge) == junction:
                ends = edges.getFromJunction(following), edges.getToJunction(following)
                return junction not in ends
        return False

    def _meeting(self, lapse: Lapse, pose: Floats) -> Floats | None:
        """Return the direction [2] of a dash if now is its moment: ahead, and near enough."""
        ego = self._ego.pose
        cos, sin = math.cos(ego[2]), math.sin(ego[2])
        dx, dy = pose[0] - ego[0], pose[1] - ego[1]
        ahead, across = cos * dx + sin * dy, cos * dy - sin * dx
        if ahead < 4.0 or not 1.5 < abs(across) < 9.0 or ego[3] < 1.0:
            return None
        # The ego arrives in so long, the pedestrian in so long; the lapse's start says how close.
        if ahead / ego[3] > abs(across) / lapse.strength + lapse.start_s:
            return None
        side = -math.copysign(1.0, across)
        return np.array([-sin * side, cos * side])
