from __future__ import annotations

from dataclasses import fields, replace
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest

from models.highway import highway_spec
from models.road_users import road_users_spec
from models.spec import Spec
from tests.test_training.driving import OTHER_COLUMN, drive, save_store
from training.dataset import tracker_models
from training.dataset.store import EpisodeStore
from training.dataset.tracker_models import (
    PERFECT_SHARE,
    TRACKERS,
    Errors,
    Tracker,
    draw_tracker,
)
from training.dataset.trackers import Reports, Tracking, report
from training.dataset.windows import Windows, make_windows
from training.recordings.layouts import target_of
from training.simulation.bicycle import DT_S
from training.simulation.fleets import CAR
from training.simulation.simulator import CAUSES, Episode, run_episode
from training.simulation.worlds import reward_of
from world_model_client.scene import FORWARD_RIGHT_DOWN, Ego, Road, RoadUser, StateBuilder

SPEC = road_users_spec()
ALL = np.arange(6)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    roads = ("highway", "racetrack", "merge")
    episodes = [run_episode(i, roads[i % 3], "noisy", 60, fleet="mixed") for i in range(6)]
    return save_store(tmp_path_factory.mktemp("mixed"), episodes)


def two_in_line(seed: int, length_m: float = 12.0, steps: int = 60) -> Episode:
    """Drive behind a car and somebody ahead of it who is faster, in column 5."""
    episode = drive(seed, ahead_m=60.0, other_speed=20.0, steps=steps)
    vehicles, present, size = episode.vehicles.copy(), episode.present.copy(), episode.size.copy()
    vehicles[:, 5] = vehicles[:, OTHER_COLUMN] + np.array([6.0, 0, 0, 5.0], np.float32)
    present[:, 5], size[5] = 1, (length_m, 2.5)
    kind, identity = episode.kind.copy(), episode.vehicle_id.copy()
    kind[5], identity[5] = 6, 8
    return replace(
        episode, vehicles=vehicles, present=present, size=size, kind=kind, vehicle_id=identity
    )


def seen_by(
    monkeypatch: pytest.MonkeyPatch, store: EpisodeStore, tracker: Tracker, episodes: int = 1
) -> Reports:
    monkeypatch.setitem(tracker_models.TRACKERS, "tried", tracker)
    return report(store, np.arange(episodes), Tracking(3, "tried"))


def wrong(reports: Reports, store: EpisodeStore) -> np.ndarray:
    """Return the errors [n, 4] of all tracks that follow their own road user."""
    own = (reports.source == np.arange(16)) & reports.present
    return np.asarray((reports.vehicles - store.vehicles[reports.frames])[own])


def test_a_perfect_tracker_reports_the_truth(store: EpisodeStore) -> None:
    found = report(store, ALL, Tracking(0, "perfect"))
    np.testing.assert_array_equal(found.frames, np.arange(len(store.reward)))
    np.testing.assert_array_equal(found.present, store.present > 0)
    np.testing.assert_array_equal(found.ego_features, store.ego_features)
    assert np.abs(wrong(found, store)).max() == 0


@pytest.mark.parametrize("spec", [highway_spec(), SPEC], ids=["highway", "road-users"])
def test_windows_through_a_perfect_tracker_are_those_without(
    store: EpisodeStore, spec: Spec
) -> None:
    tracked, plain = (
        make_windows(store, ALL, 8, 3, spec=spec, tracking=tracking)
        for tracking in (Tracking(0, "perfect"), None)
    )
    np.testing.assert_allclose(tracked.states, plain.states, atol=2e-3)
    np.testing.assert_array_equal(tracked.states[:, 1:], plain.states[:, 1:])


def test_windows_without_a_tracker_are_as_recorded(store: EpisodeStore) -> None:
    one, other = (make_windows(store, ALL, 8, 3, tracking=None).states for _ in range(2))
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(one[:, 0, :6], store.ego_features[first_frames(store)])


def first_frames(store: EpisodeStore) -> np.ndarray:
    starts = zip(store.frame_start, store.frame_count, strict=True)
    return np.concatenate([start + np.arange(1, count - 1, 3) for start, count in starts])


def test_what_follows_the_first_state_of_a_window_is_true(store: EpisodeStore) -> None:
    tracking = Tracking(1, "ngsim")
    states = make_windows(store, ALL, 8, 3, spec=SPEC, tracking=tracking).states
    true = make_windows(store, ALL, 8, 3, spec=SPEC).states
    ego = slice(0, 8)
    np.testing.assert_array_equal(states[:, 1:, ego], true[:, 1:, ego])
    by_name = {f.name: i for i, f in enumerate(SPEC.state)}
    same = np.abs(states[:, 0] - true[:, 0])[:, by_name["neighbour_1_dx"]] < 0.5  # same slot
    later = states[same, 1:][..., by_name["neighbour_1_dx"]]
    np.testing.assert_array_equal(later, true[same, 1:][..., by_name["neighbour_1_dx"]])
    assert (states[same, 0] != true[same, 0]).any(1).mean() > 0.9


def test_reports_repeat_for_their_seeds_whoever_else_is_asked_for(store: EpisodeStore) -> None:
    whole, part = report(store, ALL, Tracking(7)), report(store, np.array([2, 4]), Tracking(7))
    again = whole.at(part.frames)
    for field in fields(Reports):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(part, field.name))
    other = report(store, ALL, Tracking(8))
    assert not np.array_equal(whole.vehicles, other.vehicles)


def test_the_tracker_of_the_reference_has_its_errors(
    monkeypatch: pytest.MonkeyPatch, store: EpisodeStore
) -> None:
    found = seen_by(monkeypatch, store, replace(TRACKERS["reference"], filter_s=0.0), 6)
    along_and_across = wrong(found, store)
    assert np.hypot(*along_and_across[:, :2].std(0)) == pytest.approx(np.hypot(0.25, 0.15), 0.05)
    assert along_and_across[:, 2].std() == pytest.approx(0.03, 0.05)
    ego = found.ego_features - store.ego_features
    np.testing.assert_allclose(ego.std(0)[[0, 3, 4]], [0.2, 0.1, 0.1], rtol=0.15)
    assert np.abs(ego[:, [1, 2, 5]]).max() == 0
    perfect = report(store, ALL, Tracking(0, "perfect"))
    first = slice(int(store.frame_count[0]))
    late = (found.rates[first][6:] - perfect.rates[first][:-6])[found.present[first][6:]]
    np.testing.assert_allclose(late.std(0), [0.8, 0.05], rtol=0.1)


def test_the_filter_takes_white_noise_off_reports(store: EpisodeStore) -> None:
    found = wrong(report(store, ALL, Tracking(0, "reference")), store)
    assert np.hypot(*found[:, :2].std(0)) < 0.7 * np.hypot(0.25, 0.15)
    assert found[:, 2].std() < 0.75 * 0.03
    assert found[:, 3].std() < 0.75 * 0.4


def test_reports_are_what_the_clients_builder_sends(
    monkeypatch: pytest.MonkeyPatch, store: EpisodeStore
) -> None:
    white = Errors(0.25, 0.15, 0.03, 0.4)
    tracker = Tracker(
        white=white, rate_lag_s=None, drops_per_s=0.5, drop_s=0.3, swaps_per_s=1.0, late_share=0.2
    )
    raw = seen_by(monkeypatch, store, replace(tracker, filter_s=0.0, coast_s=0.0), 6)
    monkeypatch.setitem(tracker_models.TRACKERS, "tried", tracker)
    layout = target_of("road-users").layout
    slots = [i for i, name in enumerate(layout.names) if name.startswith("neighbour")]
    road = Road([[[-1000, 0], [1000, 0]]])
    found, sent = [], []
    for episode in range(6):
        windows = make_windows(
            store, np.array([episode]), 0, 1, spec=SPEC, tracking=Tracking(3, "tried")
        )
        first, builder = int(store.frame_start[episode]), StateBuilder(layout, FORWARD_RIGHT_DOWN)
        for k in range(int(windows.start_step[-1]) + 1):
            ego = Ego(*store.ego[first + k].tolist(), *store.ego_size[episode].tolist())
            rows = np.concatenate([raw.vehicles[first + k], raw.sizes[first + k]], axis=1)
            there = np.flatnonzero(raw.present[first + k])
            users = [RoadUser(int(i), *rows[i].tolist()) for i in there]
            built = builder.update(k * DT_S, ego, users, road)
            # Who overlaps somebody is gone at once where he was lost; training knows no such thing.
            if k and not any(left.reason == "replaced" for left in built.left_out):
                sent.append(built.state[slots])
                found.append(windows.states[k - 1, 0, slots])
    assert len(sent) > 200
    np.testing.assert_allclose(found, sent, atol=2e-3)


def test_the_tracker_of_ngsim_has_the_errors_of_raw_tracks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    episodes = [two_in_line(seed, steps=100) for seed in range(20)]
    store = save_store(tmp_path, episodes)
    raw = seen_by(monkeypatch, store, replace(TRACKERS["ngsim"], filter_s=0.0), 20)
    np.testing.assert_allclose(wrong(raw, store).std(0), [0.07, 0.03, 0.02, 0.29], rtol=0.3)
    late = raw.present & (np.arange(len(raw.frames)) % 101 > 5)[:, None]
    np.testing.assert_allclose(raw.rates[late].std(0), [1.6, 0.12], rtol=0.15)
    served = seen_by(monkeypatch, store, TRACKERS["ngsim"], 20)
    assert (served.rates[late].std(0) < 0.6 * raw.rates[late].std(0)).all()


def test_speeds_and_rates_are_late_by_the_lag(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    episode = drive(0, ahead_m=90.0)
    vehicles = episode.vehicles.copy()
    vehicles[:, OTHER_COLUMN, 3] = np.arange(len(vehicles)) * 0.1  # 2 m/s^2
    store = save_store(tmp_path, [replace(episode, vehicles=vehicles)])
    late = Tracker(speed_lag_s=0.25, rate_lag_s=0.3, filter_s=0.0)
    found = seen_by(monkeypatch, store, late)
    np.testing.assert_allclose(
        found.vehicles[5:, OTHER_COLUMN, 3], vehicles[:-5, OTHER_COLUMN, 3], atol=1e-6
    )
    np.testing.assert_allclose(found.rates[7:, OTHER_COLUMN, 0], 2.0, atol=1e-3)
    assert found.rates[6, OTHER_COLUMN, 0] == 0  # of the first frame, before which nothing came


def test_a_lost_track_coasts_and_then_is_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = save_store(tmp_path, [drive(0, ahead_m=90.0, steps=60)])
    drops = Tracker(drops_per_s=1.0, drop_s=0.7, coast_s=0.3)
    found = seen_by(monkeypatch, store, drops)
    seen = found.present[:, OTHER_COLUMN]
    assert 0 < seen.mean() < 1
    # It moves on as it did: at a constant speed nothing shows that it is lost.
    error = (found.vehicles - store.vehicles)[seen, OTHER_COLUMN]
    np.testing.assert_allclose(error, 0, atol=1e-4)
    never = seen_by(monkeypatch, store, replace(drops, coast_s=0.0)).present[:, OTHER_COLUMN]
    assert (seen >= never).all()
    gaps = np.diff(np.flatnonzero(never)).max() - 1
    kept = [np.flatnonzero(seen & ~never)]
    assert gaps > 6  # 0.3 s
    assert len(kept[0]) > 0


def test_the_target_of_a_coasting_track_is_who_was_lost(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    episode = drive(0, ahead_m=90.0, steps=60)
    vehicles = episode.vehicles.copy()
    vehicles[:, OTHER_COLUMN, 1] = np.maximum(np.arange(len(vehicles)) - 20, 0) * 0.05
    store = save_store(tmp_path, [replace(episode, vehicles=vehicles)])
    monkeypatch.setitem(
        tracker_models.TRACKERS, "tried", Tracker(drops_per_s=1.5, drop_s=0.7, coast_s=0.5)
    )
    states = make_windows(store, np.array([0]), 4, 1, tracking=Tracking(3, "tried")).states
    true = make_windows(store, np.array([0]), 4, 1).states
    index = highway_spec().state_index
    there = states[:, 0, index("neighbour_1_presence")] > 0
    dy = index("neighbour_1_dy")
    ghost = there & (np.abs(states[:, 0, dy] - true[:, 0, dy]) > 0.02)
    assert ghost.sum() > 2
    np.testing.assert_array_equal(states[there, 1:], true[there, 1:])
    assert (states[~there, :, index("neighbour_1_presence")] == 0).all()


def test_exchanged_tracks_follow_each_others_road_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = save_store(tmp_path, [two_in_line(0)])
    tracker = Tracker(swaps_per_s=0.5, rate_lag_s=None)
    found = seen_by(monkeypatch, store, tracker)
    swapped = found.source[:, OTHER_COLUMN] == 5
    assert 0 < swapped.mean() < 1
    begins = int(np.flatnonzero(swapped)[0])
    assert (found.source[swapped, 5] == OTHER_COLUMN).all()
    # The near end is where it is, whatever length it is taken for.
    shown = found.vehicles[:, OTHER_COLUMN, 0] - found.sizes[:, OTHER_COLUMN, 0] / 2
    true = store.vehicles[:, 5, 0] - store.size[0, 5, 0] / 2
    np.testing.assert_allclose(shown[swapped], true[swapped], atol=1e-5)
    np.testing.assert_array_equal(
        found.vehicles[swapped, OTHER_COLUMN, 3], store.vehicles[swapped, 5, 3]
    )
    # Its speed jumps by 5 m/s: the filter begins anew.
    assert np.abs(found.rates[begins : begins + 5, OTHER_COLUMN, 0]).max() == 0
    # The size is the former one for half a second.
    assert found.sizes[begins + 9, OTHER_COLUMN, 0] == pytest.approx(CAR.length_m)
    assert 12.0 in found.sizes[begins + 10 :, OTHER_COLUMN, 0]


def test_the_target_of_an_exchanged_track_is_who_is_followed_now(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = save_store(tmp_path, [two_in_line(0, length_m=CAR.length_m)])
    monkeypatch.setitem(tracker_models.TRACKERS, "tried", Tracker(swaps_per_s=0.5))
    states = make_windows(store, np.array([0]), 4, 1, tracking=Tracking(3, "tried")).states
    true = make_windows(store, np.array([0]), 4, 1).states
    np.testing.assert_array_equal(states[:, 1:], true[:, 1:])  # the same two, nearest first


def test_tracks_that_begin_late_have_no_acceleration_at_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    episode = drive(0, ahead_m=90.0)
    vehicles = episode.vehicles.copy()
    vehicles[:, OTHER_COLUMN, 3] = np.arange(len(vehicles)) * 0.1
    store = save_store(tmp_path, [replace(episode, vehicles=vehicles)])
    found = seen_by(monkeypatch, store, Tracker(late_share=1.0, rate_lag_s=None))
    seen = np.flatnonzero(found.present[:, OTHER_COLUMN])
    assert seen[0] > 0
    assert found.rates[seen[0], OTHER_COLUMN, 0] == 0
    assert 0 < found.rates[seen[1], OTHER_COLUMN, 0] < 1
    assert found.rates[seen[0] + 9 :, OTHER_COLUMN, 0] == pytest.approx(2.0, abs=1e-3)


def test_a_wrong_size_moves_the_far_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store = save_store(tmp_path, [two_in_line(0)])
    found = seen_by(monkeypatch, store, Tracker(typical_share=1.0, size_share=0.1))
    sizes = found.sizes[0, [OTHER_COLUMN, 5]]
    assert (np.abs(sizes - [CAR[1:], (12.0, 2.5)]) > 1e-3).all()
    near = found.vehicles[:, OTHER_COLUMN, 0] - found.sizes[:, OTHER_COLUMN, 0] / 2
    true = store.vehicles[:, OTHER_COLUMN, 0] - CAR.length_m / 2
    np.testing.assert_allclose(near, true, atol=1e-4)


def test_both_edges_move_with_the_ego(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store = save_store(tmp_path, [drive(0)])
    found = seen_by(monkeypatch, store, Tracker(lane_offset_m=0.3, ego_heading_rad=0.02))
    errors = found.ego_features - store.ego_features
    assert errors[:, 1].std() > 0.15
    np.testing.assert_allclose(errors[:, 3], errors[:, 1], atol=1e-5)
    np.testing.assert_allclose(errors[:, 4], -errors[:, 1], atol=1e-5)
    assert errors[:, 2].std() == pytest.approx(0.02, rel=0.5)


def test_drawn_trackers_are_from_perfect_to_worse_than_the_named_ones() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_tracker(rng) for _ in range(400)]
    perfect = sum(tracker == TRACKERS["perfect"] for tracker in drawn)
    assert perfect / len(drawn) == pytest.approx(PERFECT_SHARE, abs=0.08)

    def deviation(tracker: Tracker) -> np.ndarray:
        return np.hypot(tracker.white.as_row(), tracker.correlated.as_row())

    errors = np.array([deviation(tracker) for tracker in drawn])
    for name in ("reference", "ngsim"):
        worse = (errors > deviation(TRACKERS[name])).mean(0)
        assert (worse > 0.02).all(), name
        assert (worse < 0.95).all(), name
    assert {tracker.rate_lag_s is None for tracker in drawn} == {True, False}
    assert {tracker.coast_s for tracker in drawn} == {0.0, 0.5}


def test_drawn_trackers_have_maps_from_right_ones_to_none() -> None:
    rng = np.random.default_rng(1)
    drawn = [t for t in (draw_tracker(rng) for _ in range(1000)) if t != TRACKERS["perfect"]]
    bias = np.abs([tracker.lane_bias_m for tracker in drawn])
    assert (bias == 0).mean() == pytest.approx(0.5, abs=0.06)
    assert 0.55 < bias.max() <= 0.6
    curvature = np.array([tracker.curvature_per_m for tracker in drawn])
    assert 0 < (curvature > 0.003).mean() < 0.15
    assert 0.006 < curvature.max() <= 0.01
    sees = np.array([tracker.sees_edges for tracker in drawn])
    assert (~sees).all(1).mean() == pytest.approx(0.1, abs=0.035)
    assert (sees.sum(1) == 1).mean() == pytest.approx(0.05, abs=0.03)
    assert sees[sees.sum(1) == 1].any(0).all()
    assert np.mean([tracker.heavy_tails for tracker in drawn]) == pytest.approx(0.3, abs=0.06)
    assert 0.03 < max(tracker.ego_heading_rad for tracker in drawn) <= 0.05


def test_each_episode_has_a_drawn_tracker_of_its_own(store: EpisodeStore) -> None:
    drawn, again, other = (
        [Tracking(seed).tracker_of(int(each))[0] for each in range(40)] for seed in (3, 3, 4)
    )
    assert drawn == again
    assert drawn != other
    imperfect = [tracker for tracker in drawn if tracker != TRACKERS["perfect"]]
    assert 20 < len(imperfect) == len({repr(tracker) for tracker in imperfect})
    # Two episodes of the same traffic, whose seeds alone differ, are seen in two ways.
    twins = replace(store, seed=store.seed + np.arange(len(store.seed)) * 100)
    one, two = (report(each, ALL, Tracking(3)) for each in (store, twins))
    assert (one.vehicles != two.vehicles).any()


LARGEST = {
    "white.along_m": 0.5,
    "white.across_m": 0.3,
    "white.heading_rad": 0.06,
    "white.speed_mps": 0.8,
    "correlated.along_m": 0.6,
    "correlated.across_m": 0.36,
    "correlated.heading_rad": 0.07,
    "correlated.speed_mps": 0.96,
    "bias.along_m": 0.3,
    "bias.across_m": 0.15,
    "bias.heading_rad": 0.02,
    "speed_lag_s": 0.3,
    "rate_lag_s": 0.6,
    "acceleration_mps2": 1.6,
    "yaw_rate_radps": 0.1,
    "size_share": 0.2,
    "typical_share": 0.5,
    "drops_per_s": 0.1,
    "drop_s": 0.8,
    "swaps_per_s": 0.1,
    "late_share": 0.2,
    "ego_speed_mps": 0.4,
    "ego_heading_rad": 0.05,
    "lane_offset_m": 0.15,
    "edge_m": 0.2,
    "edge_bias_m": 0.3,
}
"""As docs/training.md has them, under "What trackers have wrong"."""


@pytest.fixture(scope="module")
def imperfect() -> list[Tracker]:
    rng = np.random.default_rng(5)
    drawn = (draw_tracker(rng) for _ in range(6000))
    return [tracker for tracker in drawn if tracker != TRACKERS["perfect"]]


@pytest.mark.parametrize("name", LARGEST)
def test_drawn_errors_reach_what_is_documented(imperfect: list[Tracker], name: str) -> None:
    found = np.array([attrgetter(name)(tracker) or 0.0 for tracker in imperfect])

    # Headings that last are at most .072: the table rounds.
    assert 0.85 * LARGEST[name] < found.max() <= 1.03 * LARGEST[name]
    assert np.quantile(found, 0.02) < 0.05 * LARGEST[name]


def test_drawn_trackers_are_as_often_of_a_sort_as_is_documented(imperfect: list[Tracker]) -> None:
    shares = {
        "rates reported": (0.3, [tracker.rate_lag_s is not None for tracker in imperfect]),
        "speeds late": (0.5, [tracker.speed_lag_s > 0 for tracker in imperfect]),
        "no filter": (0.1, [tracker.filter_s == 0 for tracker in imperfect]),
        "moved on": (0.5, [tracker.coast_s > 0 for tracker in imperfect]),
        "lasting alone": (1 / 3, [tracker.white == Errors() for tracker in imperfect]),
    }
    for name, (share, found) in shares.items():
        assert np.mean(found) == pytest.approx(share, abs=0.03), name
    lasts = [tracker.correlation_s for tracker in imperfect]
    assert (min(lasts), max(lasts)) == pytest.approx((0.2, 2.0), abs=0.01)


def windows_by(
    monkeypatch: pytest.MonkeyPatch, store: EpisodeStore, tracker: Tracker, horizon: int = 8
) -> tuple[Windows, Windows]:
    """Return windows of a store that a tracker sees, and what they are without one."""
    monkeypatch.setitem(tracker_models.TRACKERS, "tried", tracker)
    episodes = np.arange(len(store.seed))
    seen = make_windows(store, episodes, horizon, 3, spec=SPEC, tracking=Tracking(3, "tried"))
    return seen, make_windows(store, episodes, horizon, 3, spec=SPEC)


def test_a_biased_centre_line_moves_lane_offsets_of_whole_windows_alone(
    monkeypatch: pytest.MonkeyPatch, store: EpisodeStore
) -> None:
    seen, true = windows_by(monkeypatch, store, Tracker(lane_bias_m=0.4, filter_s=0.0))
    offset = SPEC.state_index("lane_offset")
    np.testing.assert_allclose(seen.states[..., offset], true.states[..., offset] + 0.4, atol=1e-5)
    others = np.delete(np.arange(SPEC.state_dim), offset)
    np.testing.assert_allclose(seen.states[..., others], true.states[..., others], atol=2e-3)
    np.testing.assert_array_equal(seen.terminated, true.terminated)
    np.testing.assert_array_equal(seen.valid, true.valid)


def test_rewards_are_of_the_lane_offsets_that_windows_hold(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    episode = drive(0, steer=0.15, steps=200)
    causes = np.append(np.zeros(episode.steps - 1, int), episode.cause)
    assert causes[-1]
    steps = zip(episode.ego_features[1:].tolist(), causes.tolist(), strict=True)
    reward = np.array([*(reward_of(*step) for step in steps), 0], np.float32)
    store = save_store(tmp_path, [replace(episode, reward=reward)])
    seen, _ = windows_by(monkeypatch, store, Tracker(lane_bias_m=-0.5))
    assert seen.ends.any()
    after = seen.states[:, 1:]
    speed, offset = (after[..., SPEC.state_index(x)] for x in ("speed", "lane_offset"))
    expected = 0.6 * np.clip(speed / 30, 0, 1) + 0.4 * (1 - np.minimum(np.abs(offset) / 2, 1))
    expected[seen.terminated] = -1
    np.testing.assert_allclose(seen.rewards[seen.valid], expected[seen.valid], atol=1e-5)


def test_errors_of_curvature_are_of_what_is_measured_alone(
    monkeypatch: pytest.MonkeyPatch, store: EpisodeStore
) -> None:
    seen, true = windows_by(monkeypatch, store, Tracker(curvature_per_m=0.003))
    error = (seen.states - true.states)[..., SPEC.state_index("curvature")]
    assert error[:, 0].std() == pytest.approx(0.003, rel=0.25)
    assert np.abs(error[:, 1:]).max() == 0


def over_the_edge(folder: Path) -> EpisodeStore:
    """Return drives over the right edge, over the left one, and into the car ahead."""
    steers = [(0.15, 60.0), (-0.15, 60.0), (0.0, 12.0)]
    episodes = [drive(i, steer=x, ahead_m=y, steps=200) for i, (x, y) in enumerate(steers)]
    causes = [CAUSES[episode.cause] for episode in episodes]
    assert causes == ["off_road", "off_road", "crash"]
    return save_store(folder, episodes)


@pytest.mark.parametrize(
    ("sees", "ends"),
    [
        ((True, True), [True, True, True]),
        ((False, False), [False, False, True]),
        ((True, False), [False, True, True]),
        ((False, True), [True, False, True]),
    ],
)
def test_an_end_beyond_an_edge_out_of_sight_is_not_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sees: tuple[bool, bool], ends: list[bool]
) -> None:
    tracker = Tracker(sees_edges=sees, edge_m=0.1)
    seen, true = windows_by(monkeypatch, over_the_edge(tmp_path), tracker)
    for name, is_seen in zip(("left_edge", "right_edge"), sees, strict=True):
        edge = seen.states[..., SPEC.state_index(name)]
        if is_seen:
            np.testing.assert_array_equal(edge[:, 1:], true.states[:, 1:, SPEC.state_index(name)])
        else:
            assert (edge == 16.0).all()
    for episode, is_kept in enumerate(ends):
        rows = true.ends & (true.episode == episode)
        assert rows.any()
        assert (seen.ends[rows] == is_kept).all()
        assert (seen.is_known[rows] == is_kept).all()
        before = true.valid[rows] & ~true.terminated[rows]
        np.testing.assert_array_equal(seen.valid[rows], true.valid[rows] if is_kept else before)
    rest = ~true.ends
    np.testing.assert_array_equal(seen.valid[rest], true.valid[rest])


def test_heavy_tails_keep_the_deviation_and_end_somewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = save_store(tmp_path, [two_in_line(seed, steps=100) for seed in range(60)])
    errors = Errors(along_m=0.1)
    heavy = Tracker(heavy_tails=True, correlation_s=0.2, filter_s=0.0, ego_heading_rad=0.05)
    for tracker in (replace(heavy, white=errors), replace(heavy, correlated=errors)):
        found = seen_by(monkeypatch, store, tracker, 60)
        own = wrong(found, store)[:, 0]
        ego = np.arcsin(found.ego_features[:, 2]) - np.arcsin(store.ego_features[:, 2])
        for error, deviation in ((own, 0.1), (ego, 0.05)):
            assert error.std() == pytest.approx(deviation, rel=0.12)
            # Half of Student's errors are below .44 deviations, of normal ones below .67.
            assert np.median(np.abs(error)) == pytest.approx(0.442 * deviation, rel=0.15)
            assert 3.5 * deviation < np.abs(error).max() < 6.01 * deviation


def test_errors_that_last_keep_their_deviation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = save_store(tmp_path, [two_in_line(seed, steps=100) for seed in range(30)])
    lasting = Tracker(correlated=Errors(speed_mps=0.5), correlation_s=0.5)
    found = seen_by(monkeypatch, store, lasting, 30)
    error = (found.vehicles - store.vehicles)[:, OTHER_COLUMN, 3].reshape(30, -1)
    assert error[:, 0].std() == pytest.approx(0.5, rel=0.35)
    assert error.std() == pytest.approx(0.5, rel=0.15)
    both = np.corrcoef(error[:, :-2].ravel(), error[:, 2:].ravel())[0, 1]
    assert both == pytest.approx(np.exp(-2 * DT_S / 0.5), abs=0.1)


def test_reported_states_are_within_what_a_spec_allows(store: EpisodeStore) -> None:
    states = make_windows(store, ALL, 0, 1, spec=SPEC, tracking=Tracking(5)).states[:, 0]
    assert np.isfinite(states).all()
    assert (states[:, SPEC.state_index("speed")] >= 0).all()
    for name in ("left_edge", "right_edge"):
        assert (states[:, SPEC.state_index(name)] <= 16.0).all()
    for i in range(1, 5):
        length = states[:, SPEC.state_index(f"neighbour_{i}_length")]
        dx = states[:, SPEC.state_index(f"neighbour_{i}_dx")]
        assert (dx[length == 0] == 0).all()
        assert (length >= 0).all()


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown tracker 'sonar'; known: \\['drawn', 'perfect'"):
        Tracking(0, "sonar")
