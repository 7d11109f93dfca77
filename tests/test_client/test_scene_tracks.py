"""The filter of tracks, and who is lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.test_client.scenes import EGO, Floats, at, cars_document, motorway, named
from world_model_client.scene import RoadUser, StateBuilder, filtered, moved_on
from world_model_client.scene.tracks import MEMORY_S, slopes

ROAD = motorway()
NAMES = [feature["name"] for feature in cars_document()["features"]["state"]]
RNG = np.random.default_rng(5)

TIMES = {
    "10 Hz": np.arange(40) / 10,
    "20 Hz": np.arange(60) / 20,
    "2 Hz": np.arange(9) / 2,
    "jittered": np.cumsum(RNG.uniform(0.03, 0.17, 60)),
    "with gaps": np.cumsum(RNG.choice([0.05, 0.05, 0.05, 0.6], 60)),
    "an epoch's": 1.7e9 + np.arange(60) / 20,
    "200 Hz": np.arange(400) / 200,
}


def rates(times: Floats, users: list[list[RoadUser]], **options: Any) -> Floats:
    """Return acceleration and turn rate of the first slot at each time, [T, 2]."""
    builder, found = StateBuilder(cars_document(), **options), []
    for time_s, now in zip(times.tolist(), users, strict=True):
        state = named(NAMES, builder.update(time_s, EGO, now, ROAD).state)
        # The model's frame turns the other way.
        found.append((state["neighbour_1_acceleration"], -state["neighbour_1_yaw_rate"]))
    return np.array(found)


@pytest.mark.parametrize("window_s", [0.0, 0.2, 0.4, 1.0])
@pytest.mark.parametrize("kind", TIMES)
def test_constant_acceleration_and_turn_rate_are_found_exactly(kind: str, window_s: float) -> None:
    times = TIMES[kind]
    since = times - times[0]
    users = [[at(1, 30, 0, 15 - 1.5 * s, heading=3 + 0.5 * s)] for s in since.tolist()]

    found = rates(times, users, filter_s=window_s)

    assert found[0].tolist() == [0.0, 0.0]
    is_old = since >= window_s + 1e-4
    is_old[0] = False
    np.testing.assert_allclose(found[is_old, 0], -1.5, rtol=2e-5)
    np.testing.assert_allclose(found[is_old, 1], 0.5, rtol=2e-5)
    young = ~is_old & (since > 0)
    share = since[young] / window_s if window_s else since[young]
    np.testing.assert_allclose(found[young, 0], -1.5 * share, atol=1e-4)


def test_a_change_shows_fully_after_the_window_and_half_after_half_of_it() -> None:
    times = np.arange(41) / 20
    braking = np.maximum(times - 1.0, 0)
    users = [[at(1, 30, 0, 20 - 4 * s)] for s in braking.tolist()]

    found = rates(times, users)[:, 0]

    assert found[20] == 0
    assert found[24] == pytest.approx(-2, abs=0.2)
    np.testing.assert_allclose(found[28:], -4, rtol=1e-5)


def test_the_filter_takes_most_of_the_noise_away() -> None:
    times = np.arange(400) / 20
    speeds = 15 + np.random.default_rng(0).normal(0, 0.1, 400)
    users = [[at(1, 30, 0, v)] for v in speeds.tolist()]

    raw, smooth = (rates(times, users, filter_s=window_s)[20:, 0].std() for window_s in (0, 0.4))

    assert smooth < raw / 6
    assert rates(times, users)[1, 0] == pytest.approx((speeds[1] - speeds[0]) / 0.05 / 8, rel=1e-4)


def test_headings_that_pass_the_half_turn_or_are_reversed_are_no_spin() -> None:
    times = np.arange(30) / 20
    headings = 3.0 + 0.4 * times
    reported = np.where(np.arange(30) % 7 == 3, headings + np.pi, headings)
    reported = np.mod(reported + np.pi, 2 * np.pi) - np.pi

    found = rates(times, [[at(1, 30, 0, heading=h)] for h in reported.tolist()])

    np.testing.assert_allclose(found[10:, 1], 0.4, rtol=1e-4)


@pytest.mark.parametrize(("away_s", "is_new"), [(0.45, False), (MEMORY_S, False), (1.3, True)])
def test_an_id_that_comes_back_late_is_a_new_track(away_s: float, is_new: bool) -> None:
    times = np.array([0.0, 0.05, 0.1 + away_s - 0.05, 0.1 + away_s])
    users = [[at(1, 30, 0, 10.0)], [at(1, 30, 0, 10.1)], [at(2, -30, 0)], [at(1, 35, 0, 11.0)]]

    builder = StateBuilder(cars_document(), coast_s=0)
    for time_s, now in zip(times.tolist(), users, strict=True):
        built = builder.update(time_s, EGO, now, ROAD)

    expected = 0.0 if is_new else 0.9 / (away_s + 0.05)
    if away_s == MEMORY_S:  # 1.05 s after its last sample
        expected = 0.0
    assert named(NAMES, built.state)["neighbour_1_acceleration"] == pytest.approx(
        expected, abs=1e-5
    )


def test_rates_that_are_given_are_taken_and_those_that_are_no_numbers_are_not() -> None:
    times = np.arange(20) / 20
    given = [[at(1, 30, 0, 10 + s, acceleration=-3.0, yaw_rate=0.2)] for s in times.tolist()]
    broken = [[at(1, 30, 0, 10 + s, acceleration=np.nan, yaw_rate=np.inf)] for s in times.tolist()]

    np.testing.assert_allclose(rates(times, given)[[0, -1]], [[-3, 0.2], [-3, 0.2]], rtol=1e-6)
    np.testing.assert_allclose(rates(times, broken)[-1], [1, 0], atol=1e-5)


PARTS = ("dx", "dy", "heading", "speed")
SIGNS = np.array([1, -1, -1, 1])
"""The model's frame turns the other way."""


def posed(pose: Any) -> RoadUser:
    return at(1, pose[0], pose[1], pose[3], heading=pose[2])


def live(times: Floats, poses: Floats, present: Any = None, **options: Any) -> Floats:
    """Return x, y, heading, speed [T, 4] of one road user as sent; NaN where it is absent."""
    builder, found = StateBuilder(cars_document(), coast_s=0, range_m=1000, **options), []
    is_there = np.ones(len(times), bool) if present is None else present
    for time_s, pose, there in zip(times.tolist(), poses.tolist(), is_there, strict=True):
        users = [posed(pose)] if there else []
        state = named(NAMES, builder.update(time_s, EGO, users, ROAD).state)
        sent = SIGNS * [state[f"neighbour_1_{part}"] for part in PARTS]
        found.append(sent if there else np.full(4, np.nan))
    return np.array(found)


def steady(times: Floats, speed: float, acceleration: float, turn_rate: float) -> Floats:
    """Return the poses [T, 4] of somebody who accelerates and turns evenly, from (30, 0) on."""
    fine = np.linspace(0, times[-1] - times[0], 20_001)
    heading, speeds = 0.3 + turn_rate * fine, speed + acceleration * fine
    steps = np.stack([speeds * np.cos(heading), speeds * np.sin(heading)])
    way = np.cumsum((steps[:, 1:] + steps[:, :-1]) / 2 * np.diff(fine), axis=1)
    x, y = np.pad(way, ((0, 0), (1, 0)))
    values = (30 + x, y, heading, speeds)
    return np.stack([np.interp(times - times[0], fine, value) for value in values], axis=-1)


@pytest.mark.parametrize("kind", TIMES)
@pytest.mark.parametrize("motion", [(20.0, -6.0, 0.0), (12.0, 0.0, 0.5), (20.0, 2.0, -0.2)])
def test_steady_motion_is_sent_as_it_is(kind: str, motion: tuple[float, float, float]) -> None:
    times = TIMES[kind]
    times = times[times - times[0] <= 3.0]
    poses = steady(times, *motion)

    found = live(times, poses)

    is_old = times - times[0] >= 0.4 + 1e-4
    errors = np.abs(found - poses)
    assert errors[is_old, :2].max() < 0.01
    np.testing.assert_allclose(errors[:, 2:], 0, atol=1e-4)
    # A young track does not know its acceleration: half of 6 m/s^2 for the squares of its ages.
    assert errors.max() < 0.07


def test_noise_of_places_headings_and_speeds_goes_unless_the_tracker_filters() -> None:
    times = np.arange(400) / 20
    truth = steady(times, 20.0, 0.0, 0.0)
    noise = np.random.default_rng(0).normal(0, [0.25, 0.15, 0.03, 0.4], truth.shape)

    raw, smooth, none = (
        (live(times, truth + noise, **options) - truth)[20:].std(axis=0)
        for options in ({"smooths_motion": False}, {}, {"filter_s": 0})
    )

    np.testing.assert_allclose(raw, noise[20:].std(axis=0), rtol=1e-3)
    np.testing.assert_allclose(none, raw)
    assert (smooth < 0.7 * raw).all()


def test_two_samples_make_no_line() -> None:
    times = np.arange(4) / 20
    noise = np.random.default_rng(0).normal(0, [0.25, 0.15, 0.03, 0.4], (4, 4))
    poses = steady(times, 20.0, 0.0, 0.0) + noise

    found = live(times, poses)

    np.testing.assert_allclose(found[:2], poses[:2], atol=1e-5)
    assert (np.abs(found[2:] - poses[2:]) > 1e-3).all()


def test_hard_braking_is_seen_as_it_begins() -> None:
    times = np.arange(61) / 20
    truth = np.concatenate([steady(times[:21], 25.0, 0.0, 0.0), steady(times[:41], 25.0, -6.0, 0)])
    truth = np.delete(truth, 21, axis=0)
    truth[21:, :2] += truth[20, :2] - [30, 0]

    errors = np.abs(live(times, truth) - truth)

    assert errors[:, :2].max() < 0.02
    assert errors[:, 3].max() < 0.31
    np.testing.assert_allclose(errors[29:, 3], 0, atol=1e-4)


@pytest.mark.parametrize("rate_hz", [10, 20, 50])
@pytest.mark.parametrize("off", [(6.0, 0, 0), (-6.0, 0, 0), (0, 3.5, 0), (0.5, 0, 8.0)])
def test_two_road_users_that_are_exchanged_are_not_mixed(
    rate_hz: int, off: tuple[float, float, float]
) -> None:
    times = np.arange(2 * rate_hz) / rate_hz
    poses = np.zeros((len(times), 4))
    poses[:, 0], poses[:, 3] = 20 + 12 * times, 12.0
    poses[rate_hz:, [0, 1, 3]] += off

    users = [[posed(pose)] for pose in poses.tolist()]
    np.testing.assert_allclose(live(times, poses)[rate_hz], poses[rate_hz], atol=1e-5)
    assert rates(times, users)[rate_hz].tolist() == [0.0, 0.0]
    if not off[2]:
        np.testing.assert_allclose(live(times, poses), poses, atol=1e-5)


@pytest.mark.parametrize("rate_hz", [5, 10, 20])
@pytest.mark.parametrize("turns_speed", [False, True])
def test_headings_that_wrap_or_take_front_for_back_are_sent_as_given(
    rate_hz: int, turns_speed: bool
) -> None:
    times = np.arange(3 * rate_hz) / rate_hz
    truth = steady(times, 15.0, 0.0, 0.0)
    truth[:, 2] = 0.3
    given = truth.copy()
    given[::3, 2] += np.pi
    given[::4, 2] -= 2 * np.pi
    if turns_speed:
        given[::3, 3] *= -1

    found = live(times, given)

    np.testing.assert_allclose(found[:, :2], truth[:, :2], atol=1e-3)
    turned = 0 if turns_speed else np.where(np.arange(len(times)) % 3 == 0, np.pi, 0)
    off = found[:, 2] - truth[:, 2] - turned
    np.testing.assert_allclose(off - 2 * np.pi * np.round(off / (2 * np.pi)), 0, atol=1e-4)
    np.testing.assert_allclose(found[:, 3], 15, atol=1e-3)


def test_who_stands_or_stops_has_no_speed_below_0() -> None:
    times = np.arange(60) / 20
    noise = np.abs(np.random.default_rng(3).normal(0, 0.1, 60))
    poses = np.zeros((60, 4))
    poses[:, 0], poses[:, 3] = 30, np.maximum(6 - 6 * times, 0) + noise

    found = live(times, poses)

    assert found[:, 3].min() >= 0
    assert found[-1, 0] == pytest.approx(30, abs=1e-3)
    poses[:, 3] = -2.0  # it reverses
    heading, speed = live(times, poses)[-1, 2:]
    assert (np.cos(heading), speed) == pytest.approx((-1, 2), abs=1e-5)


def test_places_far_from_the_origin_and_late_times_lose_no_digits() -> None:
    times = 1.7e9 + np.arange(40) / 20
    near = steady(times, 15.0, -2.0, 0.2)[:, None]
    far = near + np.array([6.9e5, 5.3e6, 0, 0])
    present = np.ones((40, 1), bool)

    found = filtered(times, far, present, 0.4) - filtered(times, near, present, 0.4)

    np.testing.assert_allclose(found[:, 0, :2], (far - near)[:, 0, :2], atol=1e-6)
    np.testing.assert_allclose(found[:, 0, 2:], 0, atol=1e-6)


def test_recorded_tracks_are_filtered_as_they_would_have_been_live() -> None:
    rng = np.random.default_rng(1)
    times = np.cumsum(rng.uniform(0.04, 0.06, 80))
    present = rng.random((80, 3)) < 0.8
    present[:, 0] = True
    poses = rng.uniform([38, -1, -0.1, 10], [42, 1, 0.1, 12], (80, 3, 4))

    for window_s, smooths in ((0.0, True), (0.4, True), (0.4, False)):
        motions = filtered(times, poses, present, window_s, smooths=smooths)
        for column in range(3):
            there = present[:, column]
            sent = live(times, poses[:, column], there, filter_s=window_s, smooths_motion=smooths)
            np.testing.assert_allclose(motions[there, column, :4], sent[there], atol=1e-5)
            users = [[posed(poses[i, column])] if present[i, column] else [] for i in range(80)]
            of_live = rates(times, users, filter_s=window_s, coast_s=0)
            bounds = [12, 4]
            of_recorded = np.clip(motions[:, column, 4:], np.negative(bounds), bounds)
            np.testing.assert_allclose(of_recorded, of_live, atol=1e-5)
        assert not motions[~present].any()


def test_who_is_lost_is_moved_on_for_half_a_second() -> None:
    builder = StateBuilder(cars_document())
    times = (np.arange(30) / 20).tolist()
    for time_s in times[:20]:
        user = at("lost", 30 + 10 * time_s - time_s**2, 4, 10 - 2 * time_s)
        builder.update(time_s, EGO, [user], ROAD)

    later = builder.update(1.2, EGO, [], ROAD)
    state = named(NAMES, later.state)
    assert later.slots == ("lost", None, None, None)
    assert later.coasted == ("lost",)
    assert state["neighbour_1_dx"] == pytest.approx(30 + 10 * 1.2 - 1.2**2, abs=1e-3)
    assert state["neighbour_1_speed"] == pytest.approx(10 - 2 * 1.2, abs=1e-4)
    assert state["neighbour_1_acceleration"] == pytest.approx(-2, abs=1e-4)

    assert builder.update(0.95 + 0.5, EGO, [], ROAD).coasted == ("lost",)
    gone = builder.update(0.95 + 0.51, EGO, [], ROAD)
    assert gone.coasted == ()
    assert gone.slots == (None,) * 4


def test_who_is_lost_is_gone_at_once_if_asked() -> None:
    builder = StateBuilder(cars_document(), coast_s=0)
    builder.update(0.0, EGO, [at(1, 30, 0)], ROAD)

    assert builder.update(0.05, EGO, [], ROAD).slots == (None,) * 4


def test_a_track_that_got_another_id_is_not_there_twice() -> None:
    builder = StateBuilder(cars_document())
    builder.update(0.0, EGO, [at("old", 30, 0), at("other", 60, 0)], ROAD)

    built = builder.update(0.05, EGO, [at("new", 31.2, 0.1), at("other", 61, 0)], ROAD)

    assert built.slots == ("new", "other", None, None)
    ((id_, reason, matters, *_),) = built.left_out
    assert (id_, reason, matters) == ("old", "replaced", False)
    assert built.left_out[0].text.startswith("'old': the tracker has lost it")
    assert built.is_whole


def test_who_is_reported_without_a_place_is_moved_on_if_it_was_seen() -> None:
    builder = StateBuilder(cars_document())
    builder.update(0.0, EGO, [at(1, 30, 0, 20.0)], ROAD)

    built = builder.update(0.05, EGO, [at(1, np.nan, 0, 20.0)], ROAD)

    assert built.coasted == (1,)
    assert built.left_out == ()
    assert named(NAMES, built.state)["neighbour_1_dx"] == 31


def test_any_number_of_tracks_come_and_go() -> None:
    builder = StateBuilder(cars_document())
    for k in range(60):
        users = [at(100 * k + i, 4.0 * i - 90, 4, 20.0) for i in range(45)]
        builder.update(k * 0.05, EGO, users, ROAD)
    built = builder.update(100.0, EGO, [at("one", 30, 0)], ROAD)

    assert built.slots == ("one", None, None, None)
    assert len(builder._tracks.kinds) == 1


def test_nobody_brakes_into_driving_backwards() -> None:
    motion = np.array(
        [
            [0, 0, 0, 2.0, -4.0, 0],  # stands after 1 m
            [0, 0, 0, -2.0, 4.0, 0],
            [0, 0, np.pi / 2, 10.0, 0, 0],
            [0, 0, 0, 10.0, 2.0, 0.4],
            [0, 0, 0, 0.0, -1.0, 0],
        ]
    )

    moved = moved_on(motion, 1.0)

    np.testing.assert_allclose(moved[0], [0.5, 0, 0, 0])
    np.testing.assert_allclose(moved[1], [-0.5, 0, 0, 0])
    np.testing.assert_allclose(moved[2], [0, 10, np.pi / 2, 10], atol=1e-12)
    np.testing.assert_allclose(moved[3], [11 * np.cos(0.2), 11 * np.sin(0.2), 0.4, 12])
    assert moved[4, 0] == 0
    np.testing.assert_array_equal(moved_on(motion, 0.0), motion[:, :4])


def test_samples_of_one_moment_tell_no_rate() -> None:
    ages = np.array([[1e-200, 0.0], [0.05, 0.0]])
    assert np.allclose(slopes(ages, np.array([[0.0, 1.0], [0.0, 1.0]]), 0.4), [0.0, 20.0])
