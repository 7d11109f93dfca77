"""Tracks as they were known at the moment, and as they were."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from training.recordings.layouts import target_of
from training.recordings.motion import motion_of
from training.recordings.recording import Track
from world_model_client.scene import (
    Ego,
    Layout,
    Road,
    RoadUser,
    StateBuilder,
)

DT_S = 0.05


def track(
    times_s: Any, x: Any, y: Any, heading: Any = None, speed: Any = None, kind: str = "car"
) -> Track:
    times = np.asarray(times_s, np.float64)
    full = [np.broadcast_to(np.asarray(v, np.float64), times.shape) for v in (x, y)]
    rest = [
        None if v is None else np.broadcast_to(np.asarray(v, np.float64), times.shape)
        for v in (heading, speed)
    ]
    return Track("a", kind, 4.5, 1.8, times, *full, *rest)


def circle(radius_m: float, speed: float, rate_hz: float = 10.0, seconds: float = 5.0) -> Track:
    """Return a car whose rear axle, 1.35 m behind the centre, drives in a circle to the left."""
    times = np.arange(round(seconds * rate_hz) + 1) / rate_hz
    heading = speed / radius_m * times
    x = radius_m * np.sin(heading) + 1.35 * np.cos(heading)
    y = -radius_m * np.cos(heading) + 1.35 * np.sin(heading)
    return track(times, x, y)


@pytest.mark.parametrize("rate_hz", [2.0, 10.0, 25.0, 50.0])
def test_any_sampling_rate_becomes_the_frames_of_the_steps(rate_hz: float) -> None:
    times = 3.02 + np.arange(round(4 * rate_hz) + 1) / rate_hz
    given = track(times, 12.0 * times + times**2, 5.0, 0.0, 12.0 + 2 * times)

    motion = motion_of(given, 3.0, DT_S, None)

    frames_s = 3.0 + DT_S * (motion.first + np.arange(len(motion.true)))
    assert motion.first == 1
    assert frames_s[-1] == pytest.approx(7.0)
    for rows, tolerance in ((motion.known, 0.3), (motion.true, 0.05)):
        assert rows[:, 0] == pytest.approx(12 * frames_s + frames_s**2, abs=tolerance)
        assert rows[:, 3] == pytest.approx(12 + 2 * frames_s, abs=1.0)  # a new track is steady
    assert motion.true[:, 3] == pytest.approx(12 + 2 * frames_s, abs=0.05)
    middle = slice(len(frames_s) // 3, -len(frames_s) // 3)
    assert motion.true[middle, 4] == pytest.approx(2.0, abs=0.05)
    assert motion.true[middle, 5] == pytest.approx(0.0, abs=1e-6)


def test_truth_is_smoother_than_what_was_known() -> None:
    rng = np.random.default_rng(0)
    times = np.arange(81) / 10
    noise = rng.normal(0, 0.1, (2, 81))
    given = track(times, 15 * times + noise[0], noise[1], rng.normal(0, 0.02, 81), 15.0)

    motion = motion_of(given, 0.0, DT_S, None)

    off = [np.abs(x[:, 1]).mean() for x in (motion.known, motion.true)]
    assert off[1] < 0.6 * off[0]
    assert motion.true[:, 2] == pytest.approx(0.0, abs=0.05)


def test_the_body_points_to_where_its_rear_axle_goes() -> None:
    radius_m, speed = 30.0, 6.0
    motion = motion_of(circle(radius_m, speed), 0.0, DT_S, None)
    inner = slice(20, -20)
    frames_s = DT_S * np.arange(len(motion.true))
    assert motion.true[inner, 2] == pytest.approx(speed / radius_m * frames_s[inner], abs=2e-3)
    assert motion.true[inner, 5] == pytest.approx(speed / radius_m, abs=5e-3)


def test_the_truth_at_the_end_of_a_slow_track_points_about_where_its_tracker_says() -> None:
    times = np.arange(51) / 10
    speed = 3 + 0.4 * np.sin(2 * times)
    x, y = np.cumsum(speed) / 10, 0.3 * np.maximum(1 - times, 0) ** 2
    noise = np.random.default_rng(0).normal(0, 0.01, 51)
    heading = np.where(times < 2, np.pi, 0) + noise  # takes front for back at first

    without, given = (
        motion_of(track(times, x, y, h, speed), 0.0, DT_S, None).true[:, 2] for h in (None, heading)
    )

    assert np.abs(without).max() > 0.28
    assert np.abs(given).max() < 0.22
    np.testing.assert_allclose(given[40:], without[40:], atol=1e-9)


def test_what_was_known_knows_nothing_of_later() -> None:
    rng = np.random.default_rng(1)
    times = np.arange(41) / 10
    x, y = np.cumsum(rng.uniform(0.5, 1.5, 41)), rng.normal(0, 0.2, 41)
    for heading, speed in ((None, None), (rng.normal(0, 0.1, 41), rng.uniform(5, 15, 41))):
        whole = track(times, x, y, heading, speed)
        early = whole.part(slice(0, 25), "a")
        one, other = (motion_of(each, 0.0, DT_S, None).known for each in (whole, early))
        assert one[: len(other)] == pytest.approx(other, abs=1e-9)


def test_what_was_known_is_what_the_client_would_have_sent() -> None:
    """The same tracks through a builder, moment by moment, are the same states."""
    rng = np.random.default_rng(2)
    times = np.arange(0, 21) * DT_S
    places = 12 * times + rng.normal(0, 0.05, 21), rng.normal(0, 0.05, 21)
    given = track(times, *places, rng.normal(0, 0.02, 21), rng.normal(12, 0.2, 21))
    motion = motion_of(given, 0.0, DT_S, None)
    layout: Layout = target_of("highway").layout
    builder = StateBuilder(layout)
    road = Road([[[-50, 0], [200, 0]]])
    for k, time_s in enumerate(times.tolist()):
        assert given.heading is not None
        assert given.speed is not None
        numbers = (given.x[k], given.y[k], given.heading[k], given.speed[k])
        other = RoadUser("a", *numbers, 4.5, 1.8)
        built = builder.update(time_s, Ego(0.0, 4.0, 0.0, 0.0, 5.0, 2.0), [other], road)
        state = dict(zip(layout.names, built.state.tolist(), strict=True))
        for name, column in (("heading", 2), ("speed", 3), ("acceleration", 4), ("yaw_rate", 5)):
            sign = 1 if name in ("speed", "acceleration") else -1
            sent = sign * state[f"neighbour_1_{name}"]
            bounds = layout.low, layout.high
            at = layout.names.index(f"neighbour_1_{name}")
            known = float(np.clip(motion.known[k, column], bounds[0][at], bounds[1][at]))
            assert sent == pytest.approx(known, abs=1e-4)
    for column, values in enumerate((given.x, given.y, given.heading, given.speed)):
        assert motion.own[:, column] == pytest.approx(values)  # an ego's are not filtered
        assert (motion.known[2:, column] != motion.own[2:, column]).all()


def test_between_samples_one_is_moved_on_by_what_is_known() -> None:
    times = np.arange(21) / 5
    given = track(times, 10 * times, 0.0, 0.0, 10.0)
    motion = motion_of(given, 0.0, DT_S, None)
    frames_s = DT_S * np.arange(len(motion.known))
    assert motion.known[:, 0] == pytest.approx(10 * frames_s)


@pytest.mark.parametrize(("kind", "speed"), [("car", 1.0), ("pedestrian", 0.2)])
def test_a_course_is_not_taken_from_who_hardly_moves(kind: str, speed: float) -> None:
    rng = np.random.default_rng(3)
    times = np.arange(51) / 10
    x = speed * times + rng.normal(0, 0.01, 51)
    still = track(times, x, 0.0, kind=kind)
    with pytest.raises(ValueError, match="never moves, and no heading is given"):
        motion_of(still, 0.0, DT_S, None)
    by_lane = motion_of(still, 0.0, DT_S, 0.7)
    by_tracker = motion_of(replace(still, heading=np.full(51, 0.3)), 0.0, DT_S, None)
    for motion, heading in ((by_lane, 0.7), (by_tracker, 0.3)):
        assert motion.true[:, 2] == pytest.approx(heading)
        assert motion.known[:, 2] == pytest.approx(heading)


def test_who_stops_keeps_his_course() -> None:
    times = np.arange(61) / 10
    along = np.where(times < 4, 8 * times - times**2, 16.0)
    noise = np.random.default_rng(4).normal(0, 0.01, (2, 61))
    given = track(times, along * np.cos(1.0) + noise[0], along * np.sin(1.0) + noise[1])
    motion = motion_of(given, 0.0, DT_S, None)
    assert motion.true[-1, 3] == pytest.approx(0.0, abs=0.2)
    assert motion.true[:, 2] == pytest.approx(1.0, abs=0.05)
    assert motion.known[-20:, 2] == pytest.approx(1.0, abs=0.1)


def test_who_reverses_has_a_speed_below_0_and_points_ahead() -> None:
    times = np.arange(41) / 10
    given = track(times, -3 * times, 0.0, 0.0, -3.0)
    motion = motion_of(given, 0.0, DT_S, None)
    for rows in (motion.known, motion.true):
        assert np.cos(rows[:, 2]) == pytest.approx(1.0)
        assert rows[:, 3] == pytest.approx(-3.0, abs=1e-6)


def test_irregular_times_are_taken_as_they_are() -> None:
    rng = np.random.default_rng(5)
    times = np.cumsum(rng.uniform(0.05, 0.15, 60))
    motion = motion_of(track(times, 9 * times, 2.0), 0.0, DT_S, None)
    frames_s = DT_S * (motion.first + np.arange(len(motion.true)))
    for rows in (motion.known, motion.true):
        assert rows[:, 0] == pytest.approx(9 * frames_s, abs=1e-6)
        assert rows[:, 3] == pytest.approx(9.0, abs=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_short_tracks_are_somebody_too(count: int) -> None:
    times = np.arange(count) / 10
    motion = motion_of(track(times, 5 * times, 1.0, 0.0, 5.0), 0.0, DT_S, None)
    assert len(motion.true) == len(motion.known) == 2 * count - 1
    assert np.isfinite([motion.true, motion.known]).all()
    assert motion.true[:, 3] == pytest.approx(5.0)


def test_a_track_between_two_frames_is_none() -> None:
    with pytest.raises(ValueError, match="shorter than one step"):
        motion_of(track([0.01, 0.02], [0, 1], 0.0), 0.0, DT_S, None)
