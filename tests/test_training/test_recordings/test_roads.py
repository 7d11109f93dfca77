"""On which road somebody is, of many: the same as by looking at all, in bounded time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from training.recordings import roads
from training.recordings.recording import RecordingError
from training.recordings.roads import Carriageway, Roads
from world_model_client.scene import ISO8855, Place, Polylines, Road

Floats = np.ndarray[Any, Any]


def carriageway(
    start: tuple[float, float], heading: float, *, length_m: float = 100.0
) -> Carriageway:
    """Return a road of two lanes, as wide as they are."""
    cos, sin = math.cos(heading), math.sin(heading)

    def line(left_m: float) -> Floats:
        along = np.linspace(0.0, 100.0, 11)
        return np.stack(
            [start[0] + along * cos - left_m * sin, start[1] + along * sin + left_m * cos], axis=-1
        )

    lanes = [line(3.5), line(0.0)]
    return Carriageway("road", Road(lanes, line(5.25), line(-1.75)), Polylines(lanes, ["a", "b"]))


def town(count: int, spread_m: float) -> list[Carriageway]:
    rng = np.random.default_rng(0)
    places = rng.uniform(-spread_m, spread_m, (count, 2)).tolist()
    return [
        carriageway((x, y), heading)
        for (x, y), heading in zip(places, rng.uniform(-3, 3, count).tolist(), strict=True)
    ]


def drive(count: int, turn: float = 0.002) -> Floats:
    """Return poses [N, 4] of somebody who drives in wide circles at 15 m/s."""
    heading = np.arange(count) * turn
    steps = 0.75 * np.stack([np.cos(heading), np.sin(heading)], axis=-1)
    return np.column_stack([np.cumsum(steps, axis=0), heading, np.full(count, 15.0)])


def test_the_road_is_that_which_a_look_at_all_roads_gives() -> None:
    poses, rng = drive(3000), np.random.default_rng(1)
    all_roads = town(20, 400.0)
    for x, y, heading, _ in rng.permutation(poses)[:60].tolist():
        all_roads.append(carriageway((x, y + rng.normal()), heading + 0.1 * rng.normal()))
    is_on = np.stack([each.place(poses, ISO8855)[1] for each in all_roads], axis=1)
    found = Roads(all_roads, ISO8855, "town").route(poses, 0.05)
    on = found.road >= 0
    assert 300 < on.sum() < 2900
    bridged = roads._bridged(np.where(is_on.any(axis=1), 0, -1), 10)
    off = np.zeros(3000, np.bool_)
    for start, end in bridged:
        off[start:end] = True
    assert (on == ~off).all()
    seen = on & is_on.any(axis=1)
    assert is_on[seen, found.road[seen]].all()


def test_only_roads_nearby_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = 0
    place = Carriageway.place

    def counted(self: Carriageway, poses: Floats, frame: str) -> tuple[Place, Any, Floats]:
        nonlocal looked_at
        looked_at += len(poses)
        return place(self, poses, frame)

    monkeypatch.setattr(Carriageway, "place", counted)
    poses = drive(10_000)
    Roads(town(300, 2000.0), ISO8855, "town").route(poses, 0.05)
    assert 0 < looked_at < 3 * len(poses)  # of 300 times as many


def test_too_many_roads_at_one_place_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roads, "MOST_PAIRS", 1000)
    pile = Roads([carriageway((0.0, 0.0), 0.0)] * 8, ISO8855, "a.csv")
    pile.route(drive(100, 0.0), 0.05)
    with pytest.raises(RecordingError, match=r"^a.csv has so many roads at the same places .*1000"):
        pile.route(drive(100, 0.0), 0.05)
    pile = Roads([carriageway((0.0, 0.0), 0.0)] * 8, ISO8855, "a.csv")
    with pytest.raises(RecordingError, match=r"^a.csv has so many roads"):
        pile.lane_headings(np.full(1001, 50.0), np.full(1001, 30.0))


def test_lane_headings_are_those_of_the_first_road_that_one_is_on() -> None:
    found = Roads(
        [
            carriageway((0.0, 0.0), 0.5),
            carriageway((0.0, 0.0), 0.6),
            carriageway((500.0, 0.0), 2.0),
        ],
        ISO8855,
        "town",
    ).lane_headings(
        np.array([500.0 + 20 * math.cos(2.0), 0.01, 1e8, 20 * math.cos(0.6), 50.0]),
        np.array([20 * math.sin(2.0), 0.01, 0.0, 20 * math.sin(0.6), -80.0]),
    )
    assert found == pytest.approx([2.0, 0.5, np.nan, 0.5, np.nan], nan_ok=True)


def test_nobody_is_on_a_road_without_edges_that_is_far_away() -> None:
    line = np.array([[0.0, 0.0], [100.0, 0.0]])
    alone = Carriageway("road", Road([line]), Polylines([line], ["a"]))
    poses = np.array([[50.0, y, 0.0, 10.0] for y in (0.0, 49.0, 51.0)])
    found = Roads([alone], ISO8855, "a.csv").route(np.repeat(poses, 50, axis=0), 0.05)
    assert found.road.tolist() == [0] * 100 + [-1] * 50


def test_without_roads_nobody_is_on_one() -> None:
    none = Roads([], ISO8855, "a.csv")
    assert none.route(drive(5), 0.05).road.tolist() == [-1] * 5
    assert np.isnan(none.lane_headings(np.zeros(2), np.zeros(2))).all()
