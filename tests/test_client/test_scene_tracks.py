"""Accelerations and turn rates of tracks, and who is lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.test_client.scenes import EGO, Floats, at, bundled, motorway, named
from world_model_client.scene import RoadUser, StateBuilder, filtered, moved_on
from world_model_client.scene.tracks import MEMORY_S

ROAD = motorway()
NAMES = [feature["name"] for feature in bundled()["features"]["state"]]
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
    builder, found = StateBuilder(bundled(), **options), []
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
    users = [[at(1, 30, 0, 10.0)], [at(1, 30, 0, 10.1)], [at(2, -30, 0)], [at(1, 40, 0, 11.0)]]

    builder = StateBuilder(bundled(), coast_s=0)
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


def test_speeds_are_smoothed_if_asked() -> None:
    times = np.arange(200) / 20
    speeds = 15 + 0.5 * times + np.random.default_rng(0).normal(0, 0.2, 200)
    errors = []
    for smooths in (False, True):
        builder = StateBuilder(bundled(), smooths_speed=smooths)
        found = [
            named(NAMES, builder.update(t, EGO, [at(1, 30, 0, v)], ROAD).state)["neighbour_1_speed"]
            for t, v in zip(times.tolist(), speeds.tolist(), strict=True)
        ]
        errors.append((np.array(found) - 15 - 0.5 * times)[20:].std())

    assert errors[1] < 0.75 * errors[0]


def test_recorded_tracks_are_filtered_as_they_would_have_been_live() -> None:
    rng = np.random.default_rng(1)
    times = np.cumsum(rng.uniform(0.04, 0.06, 80))
    present = rng.random((80, 3)) < 0.8
    present[:, 0] = True
    speeds, headings = rng.uniform(10, 12, (80, 3)), rng.uniform(-0.1, 0.1, (80, 3))

    for window_s in (0.0, 0.4):
        accelerations, turn_rates = filtered(times, speeds, headings, present, window_s)
        for column in range(3):
            users = [
                [at(1, 30, 0, speeds[i, column], heading=headings[i, column])]
                if present[i, column]
                else []
                for i in range(80)
            ]
            live = rates(times, users, filter_s=window_s, coast_s=0)
            np.testing.assert_allclose(
                np.clip(accelerations[:, column], -12, 12), live[:, 0], atol=1e-5
            )
            np.testing.assert_allclose(np.clip(turn_rates[:, column], -4, 4), live[:, 1], atol=1e-5)
        assert not accelerations[~present].any()


def test_who_is_lost_is_moved_on_for_half_a_second() -> None:
    builder = StateBuilder(bundled())
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
    builder = StateBuilder(bundled(), coast_s=0)
    builder.update(0.0, EGO, [at(1, 30, 0)], ROAD)

    assert builder.update(0.05, EGO, [], ROAD).slots == (None,) * 4


def test_a_track_that_got_another_id_is_not_there_twice() -> None:
    builder = StateBuilder(bundled())
    builder.update(0.0, EGO, [at("old", 30, 0), at("other", 60, 0)], ROAD)

    built = builder.update(0.05, EGO, [at("new", 31.2, 0.1), at("other", 61, 0)], ROAD)

    assert built.slots == ("new", "other", None, None)
    ((id_, reason, matters, *_),) = built.left_out
    assert (id_, reason, matters) == ("old", "replaced", False)
    assert built.left_out[0].text.startswith("'old': the tracker has lost it")
    assert built.is_whole


def test_who_is_reported_without_a_place_is_moved_on_if_it_was_seen() -> None:
    builder = StateBuilder(bundled())
    builder.update(0.0, EGO, [at(1, 30, 0, 20.0)], ROAD)

    built = builder.update(0.05, EGO, [at(1, np.nan, 0, 20.0)], ROAD)

    assert built.coasted == (1,)
    assert built.left_out == ()
    assert named(NAMES, built.state)["neighbour_1_dx"] == 31


def test_any_number_of_tracks_come_and_go() -> None:
    builder = StateBuilder(bundled())
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
