"""Driving in SUMO: networks, axes, crashes, sudden drivers, and the same bits for the same seed."""

from __future__ import annotations

import hashlib
import itertools
import math
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from models.road_users import road_users_spec
from training.simulation.behaviours import make_behaviour
from training.simulation.bicycle import DT_S
from training.simulation.fleets import KINDS
from training.simulation.simulator import MAX_VEHICLES, ROADS, SOURCES, run_episode
from training.simulation.sumo.ego import centres
from training.simulation.sumo.maps import NO_EDGE_M, is_inside
from training.simulation.sumo.networks import NETWORKS
from training.simulation.sumo.process import is_installed, road_map
from training.simulation.sumo.world import SumoSimulation, as_sumo
from world_model_client.scene import FORWARD_RIGHT_DOWN

needs_sumo = pytest.mark.skipif(
    not is_installed(), reason="needs SUMO: pip install eclipse-sumo libsumo"
)
COAST, STEER, BRAKE = (np.array(x, np.float32) for x in ([0, 0, 0], [0.3, 0, 0], [0, 0, 1]))


def drive(
    seed: int, network: str, behaviour: str, share: float = 0.05, steps: int = 140
) -> Iterator[SumoSimulation]:
    """Yield a simulation at its start and after each step, until it is over."""
    world = SumoSimulation(seed, network, share)
    driver = make_behaviour(behaviour, world.rng.spawn(1)[0], world.pace)
    yield world
    for _ in range(steps):
        world.step(driver.action(world.ego))
        yield world
        if world.cause or world.is_cut:
            return


def digest(seed: int, network: str) -> str:
    """Return what an episode is known by."""
    found = hashlib.sha256()
    for world in drive(seed, network, "aggressive", steps=60):
        found.update(world.poses.tobytes() + np.array(world.features).tobytes())
    return found.hexdigest()


def test_freeways_have_two_to_eight_lanes() -> None:
    plans = [make() for make in NETWORKS["freeway"].variants]

    lanes = {edge["numLanes"] for plan in plans for edge in plan.edges if edge["id"] in {*"abcde"}}

    assert lanes == {*range(2, 9)}


def test_fleets_hold_kinds_that_are_known() -> None:
    for network in NETWORKS.values():
        assert {*network.fleet} <= {*KINDS}
        assert math.isclose(sum(network.fleet.values()), 1.0)


@pytest.mark.parametrize(
    ("angle", "centre", "heading"),
    [
        pytest.param(0.0, (10.0, -18.0), -math.pi / 2, id="north"),
        pytest.param(90.0, (8.0, -20.0), 0.0, id="east"),
        pytest.param(180.0, (10.0, -22.0), math.pi / 2, id="south"),
        pytest.param(270.0, (12.0, -20.0), math.pi, id="west"),
    ],
)
def test_fronts_and_compass_angles_become_centres_and_headings(
    angle: float, centre: tuple[float, float], heading: float
) -> None:
    found, headings = centres(np.array([[10.0, 20.0]]), np.array([angle]), np.array([4.0]))

    np.testing.assert_allclose(found, [centre], atol=1e-9)
    np.testing.assert_allclose(headings, [heading], atol=1e-9)
    x, y, back = as_sumo(np.array([*centre, heading, 5.0]), 4.0)
    assert (x, y, back) == pytest.approx((10.0, 20.0, angle))


def test_a_point_is_inside_a_polygon_or_not() -> None:
    corner = np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 1.0], [1.0, 1.0], [1.0, 4.0], [0.0, 4.0]])

    assert is_inside(corner, 0.5, 3.0)
    assert is_inside(corner, 3.0, 0.5)
    assert not is_inside(corner, 3.0, 3.0)
    assert not is_inside(corner[:0], 0.0, 0.0)


@needs_sumo
@pytest.mark.parametrize("network", NETWORKS)
def test_lanes_are_between_the_edges_of_their_road(network: str) -> None:
    roads = road_map(network, 0)

    for edge, after in ((e, a) for e in roads.lanes for a in [*roads.following[e], None]):
        stretch = roads.stretch(None, edge, after)
        middle = (stretch.starts + stretch.ends) / 2
        points = stretch.lines.positions_at(middle[None])[0]
        headings = stretch.lines.heading_at(middle[None])[0]
        poses = np.column_stack([points, headings, np.full(len(points), 10.0)])
        place = stretch.road.locate(poses, FORWARD_RIGHT_DOWN)
        np.testing.assert_allclose(place.lane_offset, 0, atol=0.05)
        np.testing.assert_allclose(place.sin_heading_error, 0, atol=0.05)
        width = np.ptp(place.left_edge) / max(len(points) - 1, 1) or 3.0
        # The rightmost lane comes first, half a lane from the right edge.
        np.testing.assert_allclose(place.right_edge[0], width / 2, atol=0.4)
        np.testing.assert_allclose(place.left_edge[-1], width / 2, atol=0.4)


@needs_sumo
def test_junctions_have_no_edges_and_the_roads_between_have() -> None:
    edges: dict[bool, list[list[float]]] = {True: [], False: []}
    for seed in range(12):
        for world in drive(seed, "town", "noisy", share=0.0):
            edges[world.ego.is_in_junction].append(world.features[3:5])
        if len(edges[True]) > 20:
            break

    inside, between = np.array(edges[True]), np.array(edges[False])

    assert len(inside) > 20
    assert (inside == NO_EDGE_M).all()
    assert (between.max(axis=1) < 8.0).all()


@needs_sumo
def test_the_same_seed_gives_the_same_bits() -> None:
    """After other episodes, in another network, and in another process, too."""
    first = digest(3, "arterial")
    digest(4, "ring")
    script = f"from {__name__} import digest; print(digest(3, 'arterial'))"
    other = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert digest(3, "arterial") == first
    assert other.stdout.strip() == first
    assert digest(5, "arterial") != first


@needs_sumo
def test_others_move_as_their_speeds_and_headings_say() -> None:
    off = []
    for seed, network in enumerate(("freeway", "curves", "ring", "harbour")):
        worlds = drive(seed, network, "careful", steps=80)
        first = next(worlds)
        before, there = first.poses, first.present
        for world in worlds:
            half = (before[:, 3] + world.poses[:, 3]) / 2 * DT_S
            along = np.stack([np.cos(before[:, 2]), np.sin(before[:, 2])], axis=1)
            moved = ((world.poses[:, :2] - before[:, :2]) * along).sum(axis=1)
            is_driver = world.present & there & (world.kinds != KINDS.index("pedestrian"))
            off.append(np.abs(moved - half)[is_driver][1:])
            before, there = world.poses, world.present
    errors = np.concatenate(off)

    # SUMO moves who changes from road to road by some centimetres at once.
    assert np.median(errors) < 0.02
    assert np.quantile(errors, 0.99) < 0.15


@needs_sumo
def test_traffic_behind_slows_down_with_the_ego() -> None:
    slower = []
    for seed in (2, 4, 6, 7):
        speeds = []
        for action in (COAST, BRAKE / 3):
            world = SumoSimulation(seed, "freeway", 0.0)
            rows = behind(world)
            for _ in range(60):
                world.step(action)
            speeds.append(world.poses[rows, 3])
        slower += (speeds[0] - speeds[1]).tolist()

    assert len(slower) >= 3
    assert max(slower) > 2.0
    assert min(slower) > 0.2


def behind(world: SumoSimulation) -> list[int]:
    """Return who follows the ego closely, as rows of its poses."""
    x, y, heading, _ = world.poses[0]
    dx, dy = world.poses[:, 0] - x, world.poses[:, 1] - y
    along = math.cos(heading) * dx + math.sin(heading) * dy
    aside = math.cos(heading) * dy - math.sin(heading) * dx
    turned = np.abs(world.poses[:, 2] - heading)
    return np.flatnonzero((along > -30) & (along < 0) & (np.abs(aside) < 2) & (turned < 1)).tolist()


@needs_sumo
def test_a_crash_is_the_first_overlap_of_true_rectangles() -> None:
    crashes = 0
    for seed in range(12):
        *_, (before, sizes), world = trail(seed)
        if world.cause != 1:
            continue
        crashes += 1
        assert world.hit >= 0
        other = 1 + world.hit
        assert overlaps(world.poses[0], sizes[0], world.poses[other], sizes[other])
        assert not any(
            overlaps(before[0], sizes[0], before[i], sizes[i]) for i in range(1, len(sizes))
        )

    assert crashes >= 2


def trail(seed: int) -> list[Any]:
    """Return poses and sizes before each step of a blind drive, and the world at its end."""
    found: list[Any] = []
    for world in drive(seed, "freeway", "aggressive"):
        found.append((world.poses.copy(), world.sizes))
    found[-1] = world
    return found


def overlaps(pose: Any, size: Any, other: Any, other_size: Any) -> bool:
    """Whether two rectangles overlap, by points of one in the other."""
    for (one, size_one), (two, size_two) in itertools.permutations(
        [(pose, size), (other, other_size)]
    ):
        along, across = np.meshgrid(np.linspace(-0.5, 0.5, 81), np.linspace(-0.5, 0.5, 21))
        along, across = along.ravel() * size_one[0], across.ravel() * size_one[1]
        cos, sin = math.cos(one[2]), math.sin(one[2])
        x = one[0] + cos * along - sin * across - two[0]
        y = one[1] + sin * along + cos * across - two[1]
        cos, sin = math.cos(two[2]), math.sin(two[2])
        inside = (np.abs(cos * x + sin * y) < size_two[0] / 2) & (
            np.abs(cos * y - sin * x) < size_two[1] / 2
        )
        if inside.any():
            return True
    return False


@needs_sumo
def test_leaving_the_road_ends_the_episode() -> None:
    causes = []
    for seed in range(4):
        world = SumoSimulation(seed, "curves", 0.0)
        for _ in range(80):
            if world.step(STEER)[1]:
                break
        causes.append(world.cause)
        if world.cause == 2:
            assert min(world.features[3:5]) < 0

    assert 2 in causes


@needs_sumo
def test_surprising_drivers_brake_at_once() -> None:
    hardest = []
    for share in (0.0, 1.0):
        drops = []
        for seed in range(3):
            world = SumoSimulation(seed, "freeway", share)
            for _ in range(100):
                before = world.poses[1:, 3]
                world.step(COAST)
                drops.append(np.max((before - world.poses[1:, 3])[world.present[1:]], initial=0.0))
                if world.cause or world.is_cut:
                    break
        hardest.append(float(np.quantile(drops, 0.8)) / DT_S)

    assert hardest[1] > max(4.9, hardest[0])


@pytest.fixture(scope="module")
def coasted() -> list[tuple[SumoSimulation, np.ndarray]]:
    """Worlds on straight freeways where all others have a lapse in store, and what came of each.

    With it, poses [2, T + 1, others, 4]: of the same drivers without a lapse, and with it.
    """
    found = []
    for seed in (0, 2, 3):
        both = []
        for share in (0.0, 1.0):
            world = SumoSimulation(seed, "freeway", share)
            poses = [world.poses[1:]]
            for _ in range(130):
                world.step(COAST)
                poses.append(world.poses[1:])
            both.append(poses)
        found.append((world, np.array(both)))
    return found


def during(coasted: list[tuple[SumoSimulation, np.ndarray]], kind: str) -> list[np.ndarray]:
    """Return the poses [2, steps, 4] of all who have a lapse of a kind, while it lasts."""
    return [
        poses[:, [k for k in range(poses.shape[1]) if user.lapse.is_on(k * DT_S)], i]
        for world, poses in coasted
        for i, user in enumerate(world.users)
        if user.lapse is not None and user.lapse.kind == kind and world.present[1 + i]
    ]


@needs_sumo
def test_the_distracted_keep_their_speed_whatever_is_ahead(
    coasted: list[tuple[SumoSimulation, np.ndarray]],
) -> None:
    changes = np.array([np.ptp(x[..., 3], axis=1) for x in during(coasted, "distraction")])

    assert len(changes) >= 10
    assert changes[:, 1].max() < 0.01
    # Who looks would have braked for the one ahead.
    assert np.sort(changes[:, 0])[-3:].min() > 2.0


@needs_sumo
def test_who_swerves_moves_aside_whoever_is_there(
    coasted: list[tuple[SumoSimulation, np.ndarray]],
) -> None:
    aside = np.array([x[:, -1, 1] - x[:, 0, 1] for x in during(coasted, "swerve")])

    assert len(aside) >= 10
    # Who looks does not, where somebody is beside him or nothing is won.
    assert np.abs(aside[:, 1]).min() > 0.3
    assert np.median(np.abs(aside[:, 0])) < 0.1


@needs_sumo
@pytest.mark.parametrize("seed", [0, 1, 4, 6])
def test_a_dash_goes_across_the_way_of_the_ego(seed: int) -> None:
    crossed = []
    for share in (0.0, 0.2):  # pedestrians have five times as many lapses: all of them
        sides = []
        for world in drive(seed, "arterial", "careful", share, steps=80):
            x, y, heading, _ = world.poses[0]
            away = world.poses[1:, :2] - (x, y)
            sides.append(away @ (-math.sin(heading), math.cos(heading)))
        walkers = np.flatnonzero(world.kinds[1:] == KINDS.index("pedestrian"))
        across = np.array(sides)[:, walkers]
        ran = np.flatnonzero((across[0] * across[-1] < 0) & (np.abs(across[0]) < 9.0))
        crossed.append(len(ran))

    assert crossed[0] == 0
    assert crossed[1] >= 1
    for i in ran:
        lapse = world.users[walkers[i]].lapse
        assert lapse is not None
        pace = np.median(np.abs(np.diff(across[:, i]))) / DT_S
        assert pace == pytest.approx(lapse.strength, rel=0.05)


@needs_sumo
@pytest.mark.parametrize("network", NETWORKS)
def test_who_is_in_a_fleet_is_on_its_roads(network: str) -> None:
    seen: set[str] = set()
    for seed in range(4):
        world = SumoSimulation(seed, network, 0.0)
        seen |= {KINDS[kind] for kind in world.kinds[1:][world.present[1:]]}

    is_town = network in ("arterial", "town", "harbour")
    assert ("pedestrian" in seen) == is_town
    assert ("bicycle" in seen) == (network != "freeway")
    assert "car" in seen
    assert seen <= {*NETWORKS[network].fleet, "pedestrian"}


@needs_sumo
@pytest.mark.parametrize(
    ("network", "seed"), [("arterial", 18), ("arterial", 25), ("town", 13), ("town", 17)]
)
def test_careful_drivers_stop_at_red_and_go_on_at_green(network: str, seed: int) -> None:
    import libsumo

    lights, enters = libsumo.trafficlight, {}
    for colour in "rG":
        worlds = drive(seed, network, "careful", share=0.0)
        next(worlds)
        for name in lights.getIDList():
            lights.setRedYellowGreenState(name, colour * len(lights.getRedYellowGreenState(name)))
        enters[colour] = False
        for world in worlds:
            enters[colour] |= world.ego.is_in_junction
            if enters[colour]:
                break
        if colour == "r":
            assert world.ego.speed < 0.5

    assert enters == {"r": False, "G": True}


@needs_sumo
def test_the_state_of_an_older_simulation_is_not_stepped() -> None:
    older = SumoSimulation(1, "freeway", 0.0)
    SumoSimulation(2, "freeway", 0.0)

    with pytest.raises(RuntimeError, match="one simulation a process"):
        older.step(BRAKE)


def test_without_sumo_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.simulation.sumo.process.find_spec", lambda name: None)

    with pytest.raises(ModuleNotFoundError, match="pip install"):
        road_map.__wrapped__("freeway", 0)


@needs_sumo
def test_an_episode_holds_those_who_come_nearest() -> None:
    seed = next(i for i in range(20) if len(SumoSimulation(i, "freeway", 0.0).users) > 18)
    episode = run_episode(seed, "freeway", "careful", 40, surprising_share=0.0)
    *_, world = drive(seed, "freeway", "careful", share=0.0, steps=40)

    rows = 1 + episode.vehicle_id
    assert len({*rows}) == MAX_VEHICLES
    np.testing.assert_allclose(episode.size, world.sizes[rows], rtol=1e-6)
    assert episode.kind.tolist() == world.kinds[rows].tolist()
    apart = np.hypot(*(world.poses[1:, :2] - world.poses[0, :2]).T)
    assert {*np.argsort(apart)[:4]} <= {*episode.vehicle_id}
    shown = episode.vehicles[-1, :, :2] - episode.ego[-1, :2]
    true = world.poses[rows, :2] - world.poses[0, :2]
    np.testing.assert_allclose(shown, true, atol=1e-3)
    assert SOURCES[episode.source] == "sumo"
    assert ROADS[episode.environment] == "freeway"


@needs_sumo
def test_states_show_who_is_there_with_true_sizes() -> None:
    spec = road_users_spec()
    world = SumoSimulation(3, "arterial", 0.0)
    for _ in range(20):
        world.step(COAST)

    state = world.state(spec)

    assert spec.geometry is not None
    assert state[spec.state_index("length")] == pytest.approx(world.sizes[0, 0])
    there = world.sizes[1:][world.present[1:]]
    for slot in spec.geometry.slots:
        length = float(state[spec.state_index(str(slot.length))])
        assert np.abs(there[:, 0] - length).min() < 1e-5


@needs_sumo
def test_who_leaves_his_route_at_a_junction_is_neither_off_the_road_nor_recorded_there() -> None:
    cut = 0
    for seed in range(30):
        episode = run_episode(seed, "town", "white", 140, surprising_share=0.0)
        ends_early = episode.steps < 140 and episode.cause == 0
        cut += ends_early
        if ends_early:
            assert episode.ego_features[-1, 3:5].min() >= 0
        if cut == 2:
            break

    assert cut


@needs_sumo
def test_a_dash_that_ends_at_the_corner_of_a_junction_does_not_kill_the_process() -> None:
    # The pedestrian p3 was moved to a corner from which SUMO found no path to his next street.
    code = (
        "from training.simulation.simulator import run_episode; "
        "print(run_episode(352585750871607735, 'town', 'white').steps)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[-1:]) == (0, ["140"]), done.stderr[:500]
