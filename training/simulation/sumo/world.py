"""One episode in SUMO: its traffic around an ego that our own bicycle moves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.simulation.bicycle import DT_S, bicycle_step
from training.simulation.sumo.ego import SumoEgo, centres
from training.simulation.sumo.maps import NO_EDGE_M, Floats
from training.simulation.sumo.networks import NETWORKS
from training.simulation.sumo.process import Session, road_map
from training.simulation.sumo.scenes import Scene, draw_scene
from training.simulation.sumo.sudden import Sudden
from training.simulation.sumo.users import EGO, PEDESTRIAN
from training.simulation.worlds import CAUSES, PROVOKED_S, World, reward_of
from world_model_client.scene.frames import wrapped
from world_model_client.scene.rectangles import gap

_SETTLE_STEPS = (10, 30)
"""Steps before the episode in which SUMO moves everybody, the ego too."""

_MOST_SCENES = 20
_LEAST_GAP_M = 0.3
"""Nearer to the ego nobody is when an episode begins."""

_NEAR_M = 30.0

_NEW_SHARE, _STANDING_MPS = 0.3, 0.1
"""Of a pedestrian's velocity, how much is of the last step; slower, he keeps his heading."""

_WALKER_MPS2, _WALKER_RADPS = 6.0, 3.0
"""What a pedestrian can do: SUMO moves him aside, and from path to path, by jumps."""


class SumoSimulation(World):
    """A network of SUMO with the ego and traffic, driven step by step; see `World`.

    Only one can be stepped in a process: opening the next one ends it. It is cut where the ego
    leaves its route though the road has no edges there, and where the network ends.

    Args:
        seed: The same seed and actions give the same future, bit for bit, with one version of SUMO.
        environment: One of `NETWORKS`.
        surprising_share: Of the others, how many have a lapse in store.

    Attributes:
        users: Everybody but the ego.
        hit: Index of the one that was hit among the others, -1 for nobody.
    """

    ego: SumoEgo

    def __init__(self, seed: int, environment: str, surprising_share: float) -> None:
        super().__init__()
        self.environment = environment
        self.rng = np.random.default_rng(seed)
        network = NETWORKS[environment]
        roads = road_map(environment, int(self.rng.integers(len(network.variants))))
        self.pace = float(self.rng.uniform(*network.pace) * max(roads.limits.values()))
        for _ in range(_MOST_SCENES):
            scene = draw_scene(roads, network, self.rng, self.pace, surprising_share)
            start = self._settle(scene, roads.file)
            if self._gaps(start).min(initial=np.inf) > _LEAST_GAP_M:
                break
        self.ego = SumoEgo(scene.ego, scene.route, roads, start, self._api)
        self._sudden = Sudden(self._api, self.users, self.ego)
        self.hit = -1
        self._show(start)
        self.poses_before = self.poses

    def _settle(self, scene: Scene, file: Path) -> Floats:
        """Let SUMO move everybody for a moment, and return where the ego [4] then is.

        It is a little beside and turned.
        """
        everybody = (scene.ego, *scene.users)
        self.users = scene.users
        self.sizes = np.array([(user.length, user.width) for user in everybody])
        self.kinds = np.array([user.kind for user in everybody])
        self._session = Session(file, scene.traffic, int(self.rng.integers(2**31 - 1)))
        self._api = self._session.api
        self._read_vehicle, self._read_person = _readers(self._api)
        self._steps = 0
        for _ in range(int(self.rng.integers(*_SETTLE_STEPS))):
            self._session.step()
        self.poses = np.zeros((len(everybody), 4))
        self.present = np.zeros(len(everybody), np.bool_)
        self._read()
        if not self.present[0]:
            raise RuntimeError(f"SUMO did not place the ego on {scene.route[0]}")
        start: Floats = self.poses[0].copy()
        start[:2] += self.rng.normal(0, 0.2, 2)
        start[2] += self.rng.normal(0, 0.01)
        return start

    def _read(self) -> None:
        """Take everybody's pose from SUMO; who is not there keeps his last one."""
        there = {*self._api.vehicle.getIDList(), *self._api.person.getIDList()}
        poses, present = self.poses.copy(), np.zeros(len(self.poses), np.bool_)
        # Of the ego SUMO says where it begins, no more.
        names = [EGO if self._steps == 0 else "", *(user.name for user in self.users)]
        rows = [row for row, name in enumerate(names) if name in there]
        for row in rows:
            if self.kinds[row] == PEDESTRIAN:
                poses[row] = self._walked(row, *self._read_person(names[row]))
        driven = [row for row in rows if self.kinds[row] != PEDESTRIAN]
        if driven:
            table = np.array([self._read_vehicle(names[row]) for row in driven])
            poses[driven, :2], headings = centres(table[:, :2], table[:, 2], self.sizes[driven, 0])
            # Headings go on: what SUMO says jumps by whole turns.
            before = np.where(self.present[driven], self.poses[driven, 2], headings)
            poses[driven, 2] = before + wrapped(headings - before)
            poses[driven, 3] = table[:, 3]
        present[rows] = True
        self.poses, self.present = poses, present

    def _walked(self, row: int, x: float, y: float, angle: float, speed: float) -> Floats:
        """Return a pedestrian's pose [4]: his course over some steps, as SUMO's angle flickers."""
        heading = math.radians(angle) - math.pi / 2
        if not self.present[row]:
            return np.array([x, -y, heading, speed])
        before = self.poses[row]
        seen = (np.array([x, -y]) - before[:2]) / DT_S
        old = before[3] * np.array([math.cos(before[2]), math.sin(before[2])])
        velocity = old + _NEW_SHARE * (seen - old)
        pace = before[3] + _within(float(np.hypot(*velocity)) - before[3], _WALKER_MPS2)
        heading = before[2]
        if pace > _STANDING_MPS:
            turn = float(wrapped(math.atan2(velocity[1], velocity[0]) - heading))
            heading += _within(turn, _WALKER_RADPS)
        return np.array([x, -y, heading, pace])

    def _show(self, pose: Floats) -> None:
        """Tell the ego where it and all others are now."""
        self.poses[0], self.present[0] = pose, True
        here = self.present[1:]
        self.ego.others, self.ego.sizes = self.poses[1:][here], self.sizes[1:][here]
        self.features = [
            min(value, NO_EDGE_M) if 3 <= i <= 4 else value
            for i, value in enumerate(self.ego.moved(pose))
        ]

    def step(self, action: NDArray[Any]) -> tuple[float, int]:
        """See `World`."""
        pose = bicycle_step(self.poses[0], action, length=self.ego.length)
        self._sudden.act(self._steps, self.poses[1:], self.present[1:])
        try:
            self._api.vehicle.moveToXY(EGO, "", -1, *as_sumo(pose, self.ego.length), 2)
            self._session.step()
        except self._api.TraCIException:
            self.is_cut = True
            return reward_of(self.features, 0), 0
        self._steps += 1
        self.poses_before = self.poses
        self._read()
        self._show(pose)
        self._judge()
        return reward_of(self.features, self.cause), self.cause

    def _gaps(self, ego: Floats) -> Floats:
        """Return the gaps [M] in m from an ego's pose [4] to all others; infinite to the far."""
        others, sizes = self.poses[1:], self.sizes[1:]
        dx, dy = others[:, 0] - ego[0], others[:, 1] - ego[1]
        near = self.present[1:] & (np.maximum(np.abs(dx), np.abs(dy)) < _NEAR_M)
        dx, dy = dx[near], dy[near]
        cos, sin = math.cos(ego[2]), math.sin(ego[2])
        own, theirs = (self.sizes[0, 0], self.sizes[0, 1]), (sizes[near, 0], sizes[near, 1])
        gaps = np.full(len(others), np.inf)
        gaps[near] = gap(
            cos * dx + sin * dy, cos * dy - sin * dx, others[near, 2] - ego[2], own, theirs
        )
        return gaps

    def _judge(self) -> None:
        gaps = self._gaps(self.poses[0])
        hit = np.flatnonzero(gaps < 0)
        if len(hit):
            self.cause = CAUSES.index("crash")
            self.hit = int(np.argmin(gaps))
            self.is_provoked = any(
                self._sudden.began_within(int(i), self._steps, PROVOKED_S) for i in hit
            )
        elif self.ego.is_lost:
            self.is_cut = True
        elif min(self.features[3:5]) < 0:
            self.cause = CAUSES.index("off_road")


def _within(change: float, rate: float) -> float:
    """Return a change of one step, limited to a rate of so much a second."""
    return min(max(change, -rate * DT_S), rate * DT_S)


def as_sumo(pose: Floats, length: float) -> tuple[float, float, float]:
    """Return x and y of the front, and the angle, as SUMO has them."""
    x, y, heading, _ = pose.tolist()
    front = x + math.cos(heading) * length / 2, y + math.sin(heading) * length / 2
    return front[0], -front[1], math.degrees(heading) + 90.0


def _readers(api: Any) -> tuple[Any, Any]:
    """Return what reads x, y, angle and speed of a vehicle, and of a person, by name."""

    def reader(domain: Any) -> Any:
        position, angle, speed = domain.getPosition, domain.getAngle, domain.getSpeed
        return lambda name: (*position(name)[:2], angle(name), speed(name))

    return reader(api.vehicle), reader(api.person)
