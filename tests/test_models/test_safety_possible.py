from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from models.checkpoint.checkpoint import Architecture, Checkpoint, load_checkpoint
from models.highway import VEHICLE_LENGTH_M, VEHICLE_WIDTH_M
from models.network.ensemble import WorldModelEnsemble
from models.road_users import road_users_spec
from models.safety import SAFE, UNKNOWN, SafetyLimits, Verdict, assess
from models.safety.rectangles import separations

NAN, INF = float("nan"), float("inf")
SLOTS = [(0, 1, 2), (3, 4, 5), (6, 7, 8)]
EMPTY = [0.0] * 3
NO_GEOMETRY = SafetyLimits(
    crash_threshold=0.5,
    uncertainty_limit=1.0,
    state_low=np.full(9, -np.inf),
    state_high=np.full(9, np.inf),
    horizon=4,
    feature_names=tuple("abcdefghi"),
    dt_s=0.1,
    slots=np.array(SLOTS),
    apart_m=2.0,
)
NAMES = ("left", "1_there", "1_dx", "1_dy", "1_heading", "2_there", "2_dx", "2_dy", "2_heading")
LIMITS = replace(
    NO_GEOMETRY,
    feature_names=(*NAMES, "right"),
    state_low=np.full(10, -np.inf),
    state_high=np.full(10, np.inf),
    slots=np.array([(1, 2, 3), (5, 6, 7)]),
    headings=(4, 8),
    length_m=VEHICLE_LENGTH_M,
    apart_m=VEHICLE_WIDTH_M,
    edges=(0, 9),
)
NOBODY = [0.0] * 4
FAR_AWAY_M = 1000.0
BUNDLED = Path(models.__file__).parent / "pretrained"


def judged(state: list[float], limits: SafetyLimits = LIMITS) -> Verdict:
    """The verdict on a start after which the model is sure that all are far away."""
    states = np.full((1, 2, len(state)), FAR_AWAY_M, np.float32)
    states[0, 0] = state
    (verdict,) = assess(states, np.zeros((1, 1)), np.zeros(1), limits)
    return verdict


def on_the_road(one: list[float], other: list[float] = NOBODY) -> list[float]:
    return [2.0, *one, *other, 6.0]


@pytest.mark.parametrize(
    ("one", "other", "verdict"),
    [
        ([1.0, 0.0, 0.0], [1.0, 3.0, 0.0], SAFE),
        ([1.0, 0.0, 0.0], [1.0, 0.0, -3.0], SAFE),
        ([1.0, 0.0, 0.0], [0.0, 0.0, 0.0], SAFE),
        ([1.0, 0.0, 0.0], [1.0, 1.0, 1.0], UNKNOWN),
        ([1.0, 0.0, 0.0], [0.5, 9.0, 9.0], UNKNOWN),
        ([1.0, 0.0, 0.0], [NAN, 9.0, 9.0], UNKNOWN),
        ([1.0, 0.0, 0.0], [1.0, 1.9, 1.9], SAFE),
        ([1.0, -6.0, 0.0], [1.0, -9.0, 0.0], SAFE),
        ([1.0, 0.0, -6.0], [1.0, 0.0, -9.0], SAFE),
        ([1.0, 9.0, 0.0], [1.0, -7.99, 0.0], UNKNOWN),
        ([1.0, 9.0, 0.0], [1.0, -8.0, 0.0], SAFE),
        ([1.0, 6.0, 8.0], [1.0, -8.9, 0.0], UNKNOWN),
        ([1.0, 9.0, 9.0], [1.0, 9.0, 9.0], UNKNOWN),
        ([1.0, 0.0, 0.0], [1.0, 2.0, 0.0], SAFE),
        ([1.0, 0.0, 0.0], [1.0, 0.0, 1.999], UNKNOWN),
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], SAFE),
        ([0.0, 0.0, 0.0], [-1.0, 9.0, 9.0], UNKNOWN),
        ([1.0, 0.0, 0.0], [1.0, NAN, 0.0], UNKNOWN),
    ],
    ids=[
        "ahead",
        "beside",
        "absent",
        "same place",
        "half there",
        "not a number",
        "askew",
        "behind",
        "left",
        "nearer than one before",
        "hardly nearer",
        "nearer by both",
        "same place afar",
        "just apart",
        "just not",
        "nobody",
        "less than nobody",
        "nowhere",
    ],
)
def test_neighbours_are_there_or_not_and_apart(
    one: list[float], other: list[float], verdict: str
) -> None:
    assert judged([*one, *other, *EMPTY], NO_GEOMETRY).verdict == verdict


@pytest.mark.parametrize("apart_m", [NAN, INF])
def test_a_width_that_is_no_number_lets_no_two_neighbours_pass(apart_m: float) -> None:
    limits = replace(NO_GEOMETRY, apart_m=apart_m)
    two = [1.0, 0.0, 0.0, 1.0, 99.0, 99.0, *EMPTY]

    assert judged(two, limits).verdict == UNKNOWN
    assert judged([1.0, 0.0, 0.0, *EMPTY, *EMPTY], limits).verdict == SAFE


QUARTER, EIGHTH = math.pi / 2, math.pi / 4
DIAGONAL = math.atan2(2.0, 5.0)
"""Turned by it, a car reaches furthest along an axis: by a corner."""


@pytest.mark.parametrize(
    ("neighbour", "depth"),
    [
        ([1.0, 5.0, 0.0, 0.0], None),
        ([1.0, -5.0, 0.0, 0.0], None),
        ([1.0, 0.0, 2.0, 0.0], None),
        ([1.0, 0.0, -2.0, 0.0], None),
        ([1.0, 0.0, 3.51, QUARTER], None),
        ([1.0, 3.51, 0.0, -QUARTER], None),
        ([1.0, 0.0, 3.5, 0.1], None),
        # Only an axis of the other car's shows that a corner passes by another.
        ([1.0, 4.0, 2.8, -EIGHTH], None),
        ([0.0, 0.0, 0.0, 0.0], None),
        ([1.0, 4.75, 0.0, 0.0], "0.25"),
        ([1.0, 0.0, -1.75, 0.0], "0.25"),
        ([1.0, 0.0, 0.0, 0.0], "2"),
        ([1.0, 3.25, 0.0, QUARTER], "0.25"),
        ([1.0, 4.0, 2.8, EIGHTH], "0.17"),
        ([1.0, 5.0926, 0.0, -DIAGONAL], "0.1"),
        ([1.0, 0.0, 3.5926, QUARTER - DIAGONAL], "0.1"),
        ([1.0, 3.0, 0.0, NAN], "nan"),
        ([1.0, 3.0, 0.0, INF], "nan"),
        ([1.0, NAN, 0.0, 0.0], "nan"),
    ],
    ids=str,
)
def test_a_neighbour_that_overlaps_the_ego_is_never_safe(
    neighbour: list[float], depth: str | None
) -> None:
    for number, cars in ((1, (neighbour, NOBODY)), (2, (NOBODY, neighbour))):
        verdict = judged(on_the_road(*cars))
        messages = [x.message for x in verdict.reasons if x.rule == "input_impossible"]

        assert verdict.verdict == (SAFE if depth is None else UNKNOWN)
        assert messages == (
            [] if depth is None else [f"neighbour {number} overlaps the ego by {depth} m"]
        )


def test_a_neighbour_far_away_hides_no_other_one() -> None:
    verdict = judged(on_the_road([1.0, 30.0, 0.0, 0.0], [1.0, 4.0, 0.0, 0.0]))

    assert [x.message for x in verdict.reasons] == [
        "neighbour 2 overlaps the ego by 1 m; neighbour 2 is 4.0 m away, nearer than neighbour 1, "
        "30.0 m, but slots are filled nearest first"
    ]


def test_an_empty_slot_between_others_and_small_changes_of_order_are_no_disorder() -> None:
    far, near = [1.0, 30.0, 0.0], [1.0, 0.0, 29.5]

    assert judged([*EMPTY, *far, *near], NO_GEOMETRY).verdict == SAFE
    assert judged([*far, *EMPTY, *near], NO_GEOMETRY).verdict == SAFE
    # Compared with the farthest before it, not with the one just before.
    assert judged([1.0, 31.0, 0.0, *far, *[1.0, 0.0, 29.5]], NO_GEOMETRY).verdict == UNKNOWN


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        (0.0, 0.0, None),
        (-0.0, 4.0, None),
        (-0.79, 12.0, "left = -0.79 is off the road"),
        (4.0, -1e-30, "right = -1e-30 is off the road"),
        (-1.0, -2.0, "left = -1 is off the road; right = -2 is off the road"),
        (NAN, 4.0, "left = nan is off the road"),
    ],
)
def test_an_ego_off_the_road_is_never_safe(left: float, right: float, message: str | None) -> None:
    verdict = judged([left, *NOBODY, *NOBODY, right])

    assert verdict.verdict == (SAFE if message is None else UNKNOWN)
    assert [x.message for x in verdict.reasons if x.rule == "input_impossible"] == (
        [] if message is None else [message]
    )


def test_what_cannot_be_is_named_before_what_is_the_end_already() -> None:
    verdict = judged([-1.0, 0.5, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 4.0])

    assert [x.message for x in verdict.reasons] == [
        "1_there = 0.5 is neither 0 nor 1; neighbour 1 overlaps the ego by 2 m; "
        "neighbour 2 overlaps the ego by 2 m; left = -1 is off the road"
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"headings": (4,)},
        {"headings": (4, 8, 8)},
        {"headings": (4, 10)},
        {"headings": (4, -1)},
        {"edges": (0, 10)},
        {"edges": (-1,)},
        {"sides": (0, 10)},
        {"sides": (-1, 0)},
        {"length_m": 0.0},
        {"length_m": -5.0},
        {"length_m": NAN},
    ],
    ids=str,
)
def test_columns_and_sizes_that_would_ask_nothing_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"headings|edges|sides"):
        replace(LIMITS, **change)


def corner(draw: st.DrawFn, margin_m: float) -> tuple[float, float]:
    """A place in a car, so far from its sides."""
    x = draw(st.floats(-1, 1)) * (VEHICLE_LENGTH_M / 2 - margin_m)
    return x, draw(st.floats(-1, 1)) * (VEHICLE_WIDTH_M / 2 - margin_m)


@st.composite
def overlapping(draw: st.DrawFn, margin_m: float = 0.0005) -> list[float]:
    """A neighbour of whom a place is a place of the ego's: they overlap, whatever the axes."""
    heading = draw(st.floats(-6.3, 6.3))
    (x, y), (u, v) = corner(draw, margin_m), corner(draw, margin_m)
    cos, sin = math.cos(heading), math.sin(heading)
    return [1.0, x - (cos * u - sin * v), y - (sin * u + cos * v), heading]


@st.composite
def apart(draw: st.DrawFn) -> list[float]:
    """A neighbour with a straight line between it and the ego."""
    heading, normal = draw(st.floats(-6.3, 6.3)), draw(st.floats(-6.3, 6.3))

    def reach(angle: float) -> float:
        length, width = abs(math.cos(angle)), abs(math.sin(angle))
        return (VEHICLE_LENGTH_M * length + VEHICLE_WIDTH_M * width) / 2

    away = reach(normal) + reach(normal - heading) + draw(st.floats(0.0005, 3))
    along = draw(st.floats(-5, 5))
    cos, sin = math.cos(normal), math.sin(normal)
    return [1.0, away * cos - along * sin, away * sin + along * cos, heading]


@settings(max_examples=500, deadline=None)
@given(overlapping(), st.booleans())
def test_no_state_in_which_cars_overlap_is_safe(car: list[float], is_first: bool) -> None:
    verdict = judged(on_the_road(car) if is_first else on_the_road(NOBODY, car))

    assert (verdict.verdict, [x.rule for x in verdict.reasons]) == (UNKNOWN, ["input_impossible"])


@settings(max_examples=500, deadline=None)
@given(apart(), st.booleans())
def test_a_state_in_which_cars_are_apart_stays_safe(car: list[float], is_first: bool) -> None:
    assert judged(on_the_road(car) if is_first else on_the_road(NOBODY, car)).verdict == SAFE


FAR = [1.0, 20.0, 8.0, 0.7]
"""A neighbour that nobody else is close to."""


def in_order(*cars: list[float]) -> list[list[float]]:
    """Cars as slots hold them, the nearest first."""
    return sorted(cars, key=lambda car: math.hypot(car[1], car[2]))


def moved(car: list[float], frame: list[float]) -> list[float]:
    """A car that is given relative to another one."""
    (_, x, y, heading), (_, x0, y0, heading0) = car, frame
    cos, sin = math.cos(heading0), math.sin(heading0)
    return [1.0, x0 + cos * x - sin * y, y0 + sin * x + cos * y, heading0 + heading]


@pytest.mark.parametrize(
    ("relative", "fault"),
    [
        ([1.0, 5.0, 0.0, 0.0], None),
        ([1.0, 0.0, 2.1, 0.0], None),
        ([1.0, 4.6, 0.0, 0.0], None),
        ([1.0, -4.6, 0.3, 0.0], None),
        ([1.0, 2.5, 1.6, 0.0], None),
        ([1.0, 3.2, 0.0, QUARTER], None),
        ([1.0, 0.0, -3.2, QUARTER], None),
        ([1.0, 4.4, 0.0, 0.0], "overlap by 0.6 m"),
        ([1.0, -3.0, 0.0, math.pi], "overlap by 2 m"),
        ([1.0, 2.5, 1.25, 0.0], "overlap by 0.75 m"),
        ([1.0, 2.75, 0.0, QUARTER], "overlap by 0.75 m"),
        ([1.0, 1.0, -1.0, 0.0], "are in the same place"),
        ([1.0, 3.0, 0.0, NAN], "overlap by nan m"),
    ],
    ids=str,
)
def test_neighbours_that_overlap_each_other_are_never_safe(
    relative: list[float], fault: str | None
) -> None:
    verdict = judged(on_the_road(*in_order(FAR, moved(relative, FAR))))
    messages = [x.message for x in verdict.reasons if x.rule == "input_impossible"]

    assert verdict.verdict == (SAFE if fault is None else UNKNOWN)
    assert messages == ([] if fault is None else [f"neighbours 1 and 2 {fault}"])


@settings(max_examples=300, deadline=None)
@given(overlapping(margin_m=0.2505), st.floats(-3.1, 3.1), st.booleans())
def test_no_state_in_which_neighbours_overlap_is_safe(
    car: list[float], heading: float, is_first: bool
) -> None:
    far = [1.0, 20.0, 8.0, heading]
    pair = (moved(car, far), far) if is_first else (far, moved(car, far))

    assert [x.rule for x in judged(on_the_road(*pair)).reasons] == ["input_impossible"]


@settings(max_examples=300, deadline=None)
@given(apart(), st.floats(-3.1, 3.1))
def test_a_state_in_which_neighbours_are_apart_stays_safe(car: list[float], heading: float) -> None:
    far = [1.0, 20.0, 8.0, heading]

    assert judged(on_the_road(*in_order(far, moved(car, far)))).verdict == SAFE


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        (1.0, 1.0, None),
        (0.0, 2.0, None),
        (0.5, 0.5, "a road of 1 m is narrower than a vehicle"),
        (0.0, 1.75, "a road of 1.75 m is narrower than a vehicle"),
    ],
)
def test_a_road_narrower_than_a_vehicle_is_never_safe(
    left: float, right: float, message: str | None
) -> None:
    state = [left, *NOBODY, *NOBODY, right]
    verdict = judged(state, replace(LIMITS, sides=(0, 9)))

    assert [x.message for x in verdict.reasons] == ([] if message is None else [message])
    assert judged(state).verdict == SAFE, "the features may mean something else"


@pytest.mark.parametrize(
    ("feature", "value"),
    [
        ("speed", -0.5),
        ("speed", -1e-3),
        ("neighbour_1_speed", -1.5),
        ("sin_heading_error", 1.01),
        ("left_edge", 16.9),
    ],
)
def test_a_value_that_makes_no_sense_is_unknown_though_it_is_near_what_was_trained(
    feature: str, value: float
) -> None:
    """Cars that reverse were never seen: the model lets them stand."""
    checkpoint = load_checkpoint(BUNDLED)
    known = replace(
        checkpoint.limits,
        crash_threshold=1.0,
        uncertainty_limit=1.0,
        has_disagreement=True,
        physics=None,
    )
    state = list(KNOWN.values())
    assert judged(state, known).verdict == SAFE
    state[checkpoint.spec.state_index(feature)] = value
    verdict = judged(state, known)

    assert [x.rule for x in verdict.reasons] == ["input_out_of_range"]
    assert verdict.reasons[0].message.startswith(f"{feature} = {value:g} is outside [")


@settings(deadline=None)
@given(st.floats(-40, 40, width=32), st.floats(-40, 40, width=32))
def test_a_state_is_safe_only_on_the_road(left: float, right: float) -> None:
    is_on_road = left >= 0 and right >= 0

    assert (judged([left, *NOBODY, *NOBODY, right]).verdict == SAFE) is is_on_road


def test_separations_are_those_along_each_axis() -> None:
    found = separations(6.0, 1.0, 0.0, 1.0, 4.0, 2.0)
    unequal = separations(6.0, 1.0, 0.0, 1.0, 4.0, 2.0, 3.0, 1.0)

    assert found == (3.0, -2.0, -2.0, 3.0)
    assert unequal == (3.5, -1.5, -1.5, 3.5)


SIZED_SPEC = road_users_spec()
KNOWN = dict.fromkeys((f.name for f in SIZED_SPEC.state), 0.0) | {
    "left_edge": 6.0,
    "right_edge": 6.0,
    "length": 4.8,
    "width": 1.9,
}
SIZED = replace(
    Checkpoint(WorldModelEnsemble(1, spec=SIZED_SPEC), SIZED_SPEC, Architecture()).limits,
    crash_threshold=0.5,
    uncertainty_limit=1.0,
    has_disagreement=True,
    horizon=4,
    physics=None,
)
"""Without a motion of their own: these tests are about given ones."""


def faults(**values: float) -> list[str]:
    """Return what is said against a state of known sizes, faults one by one."""
    state = [values.pop(name, usual) for name, usual in KNOWN.items()]
    assert not values
    verdict = judged(state, SIZED)
    assert (verdict.verdict == SAFE) is (not verdict.reasons)
    assert {reason.rule for reason in verdict.reasons} <= {"input_impossible"}
    return [part for reason in verdict.reasons for part in reason.message.split("; ")]


def user(
    number: int, length: float, width: float, dx: float, dy: float, heading: float = 0.0
) -> dict[str, float]:
    names = ("length", "width", "dx", "dy", "heading")
    values = (length, width, dx, dy, heading)
    return {f"neighbour_{number}_{name}": x for name, x in zip(names, values, strict=True)}


PERSON, CAR, BUS, TRAILER = (0.5, 0.6), (4.5, 1.8), (12.0, 2.5), (18.0, 2.6)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, []),
        (user(1, *TRAILER, 11.5, 0.0), []),
        (user(1, *TRAILER, 11.3, 0.0), ["neighbour 1 overlaps the ego by 0.1 m"]),
        (user(1, *PERSON, 2.7, 0.0), []),
        (user(1, *PERSON, 2.6, 0.0), ["neighbour 1 overlaps the ego by 0.05 m"]),
        (user(1, *PERSON, 0.0, -1.3), []),
        (user(1, *PERSON, 0.0, -1.2), ["neighbour 1 overlaps the ego by 0.05 m"]),
        # Long and askew: its corner reaches where a car's would not.
        (user(1, *TRAILER, 9.0, 4.0, 0.5), ["neighbour 1 overlaps the ego by 1.7 m"]),
        ({**user(1, *CAR, 10.0, 0.0), **user(2, *CAR, 10.0, 2.0)}, []),
        ({**user(1, *CAR, 10.0, 0.0), **user(2, *CAR, 10.0, 1.4)}, []),
        (
            {**user(1, *CAR, 10.0, 0.0), **user(2, *CAR, 10.0, 1.3)},
            ["neighbours 1 and 2 overlap by 0.5 m"],
        ),
        ({**user(1, *PERSON, 10.0, 0.0), **user(2, *PERSON, 10.0, 0.35)}, []),
        (
            {**user(1, *PERSON, 10.0, 0.0), **user(2, *PERSON, 10.0, 0.0)},
            ["neighbours 1 and 2 overlap by 0.5 m"],
        ),
        (
            {**user(1, *BUS, 20.0, 0.0), **user(2, *PERSON, 25.0, 0.0)},
            ["neighbours 1 and 2 overlap by 1.2 m"],
        ),
        ({**user(1, *BUS, 20.0, 0.0), **user(2, *PERSON, 26.0, 0.0)}, []),
        ({**user(1, *BUS, 20.0, 0.0), **user(2, *PERSON, 19.5, 2.0)}, []),
        (
            {**user(1, *BUS, 20.0, 0.0), **user(3, *PERSON, 18.0, 3.0)},
            [
                "neighbour 3 is 18.2 m away, nearer than neighbour 1, 20.0 m, but slots are filled "
                "nearest first"
            ],
        ),
        ({"width": 2.6, "left_edge": 0.5, "right_edge": 2.2}, []),
        (
            {"width": 2.6, "left_edge": 0.5, "right_edge": 2.0},
            ["a road of 2.5 m is narrower than a vehicle"],
        ),
        ({"width": 0.8, "length": 2.0, "left_edge": 0.5, "right_edge": 0.5}, []),
    ],
    ids=str,
)
def test_each_ones_own_size_says_what_can_be(values: dict[str, float], expected: list[str]) -> None:
    assert faults(**values) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"neighbour_2_length": 4.0, "neighbour_2_dx": 9.0},
            "neighbour_2_width = 0 is no width of somebody who is there, which is from 0.1 to 4 m",
        ),
        (user(2, 4.0, -2.0, 9.0, 0.0), "neighbour_2_width = -2 is no width of somebody"),
        (user(2, 4.0, 4.5, 9.0, 0.0), "neighbour_2_width = 4.5 is no width of somebody"),
        (user(2, 0.0165, 2.5, 25.0, 0.0), "neighbour_2_length = 0.0165 is no length of somebody"),
        (user(2, 1e-40, 2.5, 25.0, 0.0), "neighbour_2_length = 9.99995e-41 is no length of"),
        (user(2, 16.5, 0.0025, 25.0, 0.0), "neighbour_2_width = 0.0025 is no width of somebody"),
        (user(2, 31.0, 2.0, 25.0, 0.0), "neighbour_2_length = 31 is no length of somebody"),
        (user(2, -1.0, 2.0, 9.0, 0.0), "neighbour_2_length = -1 is below 0"),
        ({"length": 0.0}, "length = 0 is no length of the ego, which is from 0.1 to 30 m"),
        ({"width": -1.0}, "width = -1 is no width of the ego"),
        ({"width": 4.25}, "width = 4.25 is no width of the ego"),
        ({"length": NAN}, "length = nan is no length of the ego"),
    ],
    ids=str,
)
def test_a_size_that_cannot_be_is_named(values: dict[str, float], expected: str) -> None:
    if any(math.isnan(x) for x in values.values()):
        state = [values.get(name, usual) for name, usual in KNOWN.items()]
        verdict = judged(state, SIZED)
        assert verdict.verdict == UNKNOWN
        said = [r.message for r in verdict.reasons if r.rule == "input_impossible"]
    else:
        said = faults(**values)
    assert len(said) == 1
    assert said[0].startswith(expected)


def test_presence_and_sizes_may_be_known_both() -> None:
    """Somebody who is said to be there has a size; of nobody, a size says nothing."""
    limits = replace(
        LIMITS, sizes=((9, 0), ()), ego_size=(), largest_m=(30.0, 4.0), edges=(), length_m=5.0
    )
    there = [2.0, 1.0, 9.0, 0.0, 0.0, *NOBODY, 6.0]

    assert judged(there, limits).verdict == SAFE
    (reason,) = judged([2.0, 1.0, 9.0, 0.0, 0.0, *NOBODY, 0.0], limits).reasons
    assert reason.message.startswith("right = 0 is no length of somebody who is there")
    assert judged([0.0, *NOBODY, *NOBODY, 0.0], limits).verdict == SAFE
    (reason,) = judged([2.0, 0.5, 9.0, 0.0, 0.0, *NOBODY, 6.0], limits).reasons
    assert reason.message == "1_there = 0.5 is neither 0 nor 1"


sized = st.tuples(st.floats(0.3, 19.0), st.floats(0.3, 2.6))


@settings(max_examples=300, deadline=None)
@given(sized, sized, st.floats(-6.3, 6.3), st.data())
def test_no_state_in_which_rectangles_of_any_sizes_overlap_is_safe(
    own: tuple[float, float], size: tuple[float, float], heading: float, data: st.DataObject
) -> None:
    """A place of the one is a place of the other: they overlap, whatever the axes."""

    def place(size: tuple[float, float]) -> complex:
        shares = data.draw(st.tuples(st.floats(-1, 1), st.floats(-1, 1)))
        along, across = (
            share * (part / 2 - 0.001) for share, part in zip(shares, size, strict=True)
        )
        return complex(along, across)

    centre = place(own) - place(size) * complex(math.cos(heading), math.sin(heading))
    values = user(1, *size, centre.real, centre.imag, heading)

    found = faults(length=own[0], width=own[1], **values)

    assert [fault for fault in found if fault.startswith("neighbour 1 overlaps the ego")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": ((8, 9),)}, "1 sizes do not fit 4 slots"),
        ({"sizes": ((8, 9), (), (), (8,))}, "sizes must be pairs of columns below 34, got .8,"),
        ({"sizes": ((8, 34), (), (), ())}, "sizes must be pairs of columns below 34"),
        ({"ego_size": (6,)}, "sizes must be pairs of columns below 34, got .6,"),
        ({"ego_size": (6, -1)}, "ego_size must be columns below 34"),
        ({"headings": ()}, "sizes need headings"),
    ],
    ids=str,
)
def test_sizes_of_nobody_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SIZED, **change)


def test_recorded_states_are_refused_where_their_episode_has_ended_and_nowhere_else() -> None:
    limits = load_checkpoint(BUNDLED).limits
    known = replace(
        limits,
        crash_threshold=1.0,
        uncertainty_limit=1.0,
        has_disagreement=True,
        expected_error=None,
        error_limit_m=None,
        physics=None,
    )
    ends = 0
    for path in sorted((BUNDLED / "episodes").glob("*.json")):
        episode = json.loads(path.read_text())
        *others, last = episode["states"]
        has_ended = episode["outcome"] != "none"
        ends += has_ended
        assert {judged(state, known).verdict for state in others} == {SAFE}
        assert judged(last, known).verdict == (UNKNOWN if has_ended else SAFE)
    assert ends == 16
