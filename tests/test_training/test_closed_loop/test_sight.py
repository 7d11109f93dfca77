from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.highway import highway_spec
from models.road_users import road_users_spec
from models.spec import Spec
from tests.test_training.driving import save_store
from training.closed_loop.sight import TrackedSight, sight_of
from training.dataset import tracker_models
from training.dataset.tracker_models import Tracker
from training.dataset.trackers import Tracking
from training.dataset.windows import make_windows
from training.simulation.behaviours import make_behaviour
from training.simulation.simulator import MAX_STEPS, Simulation, run_episode

SPEC = road_users_spec()
ROAD, BEHAVIOUR = "highway", "noisy"


def states_of(tracking: Tracking | None, spec: Spec = SPEC, seed: int = 3) -> np.ndarray:
    """Drive to the end; return what is seen at each frame."""
    world = Simulation(seed, ROAD, fleet="mixed")
    driver = make_behaviour(BEHAVIOUR, world.rng.spawn(1)[0], world.pace)
    see = sight_of(world, spec, tracking, seed)
    seen = [see(world)]
    while len(seen) <= MAX_STEPS and not world.cause:
        world.step(driver.action(world.ego))
        seen.append(see(world))
    return np.stack(seen)


@pytest.mark.parametrize("spec", [highway_spec(), SPEC], ids=["highway", "road-users"])
@pytest.mark.parametrize("model", ["perfect", "reference", "ngsim", "drawn"])
def test_a_drive_is_seen_as_its_recording_is(tmp_path: Path, spec: Spec, model: str) -> None:
    episode = run_episode(3, ROAD, BEHAVIOUR, fleet="mixed")
    assert episode.steps == MAX_STEPS  # or the draws of the two would be of different lengths
    # Errors are drawn by column: as many in the recording as there are others.
    used = len(Simulation(3, ROAD, fleet="mixed").others)
    assert (episode.vehicle_id >= 0).sum() == used
    store = save_store(tmp_path, [episode])
    columns = ("vehicles", "present", "size", "kind")
    store = replace(store, **{name: getattr(store, name)[:, :used] for name in columns})
    windows = make_windows(store, np.array([0]), 0, 1, spec=spec, tracking=Tracking(0, model))
    seen = states_of(Tracking(0, model), spec)
    assert len(windows.states) > 100
    np.testing.assert_allclose(seen[windows.start_step], windows.states[:, 0], atol=5e-3)


def test_a_perfect_tracker_shows_the_truth() -> None:
    # Of the first frame no tracker knows an acceleration.
    np.testing.assert_allclose(
        states_of(Tracking(0, "perfect"))[1:], states_of(None)[1:], atol=2e-3
    )


def test_what_is_seen_depends_on_the_seed_alone() -> None:
    one = states_of(Tracking(0, "drawn"))
    assert np.array_equal(one, states_of(Tracking(0, "drawn")))
    assert not np.array_equal(one, states_of(Tracking(1, "drawn")))


def test_who_is_lost_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = Tracker(drops_per_s=20.0, drop_s=100.0, coast_s=0.0)
    monkeypatch.setitem(tracker_models.TRACKERS, "tried", nobody)
    seen = states_of(Tracking(0, "tried"))
    lengths = seen[:, [SPEC.state_index(f"neighbour_{i}_length") for i in range(1, 5)]]
    assert (lengths[10:] == 0).all()
    assert (states_of(None)[10:, SPEC.state_index("neighbour_1_length")] > 0).any()


def test_a_road_without_others_is_seen() -> None:
    world = Simulation(3, ROAD, fleet="mixed")
    world.road.vehicles, world.others = [world.ego], []
    for name in ("poses", "poses_before", "present", "sizes", "kinds"):
        setattr(world, name, getattr(world, name)[:1])
    state = TrackedSight(world, SPEC, Tracking(0, "ngsim"), 3)(world)
    assert state[0] > 0
    assert (state[8:] == 0).all()
