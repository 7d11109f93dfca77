"""No motion that ends in contact is safe, however improbable a crash is said to be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.safety import SAFE, UNKNOWN, UNSAFE, SafetyLimits, Verdict, assess
from models.safety.contacts import contact_reasons
from tests.test_models.test_safety_possible import (
    BUS,
    CAR,
    FAR_AWAY_M,
    INF,
    KNOWN,
    LIMITS,
    NAN,
    NO_GEOMETRY,
    NOBODY,
    PERSON,
    SIZED,
    apart,
    on_the_road,
    overlapping,
    user,
)

State = list[float]
REAR_M = 4.8 / 2 + CAR[0] / 2
"""From centre to centre where the ego of `KNOWN` touches a car ahead."""


def scene(*users: dict[str, float], **values: float) -> State:
    """A state with sizes; who is not named is far ahead, and not there in a start."""
    far = {f"neighbour_{number}_dx": FAR_AWAY_M for number in range(1, 5)}
    for one in (far, *users):
        values |= one
    return [values.get(name, usual) for name, usual in KNOWN.items()]


def judged(*path: State, limits: SafetyLimits = SIZED, hazard: float = 0.0) -> Verdict:
    """The verdict on one sequence of states, the start first."""
    dones = np.full((1, len(path) - 1), hazard)
    (verdict,) = assess(np.array([path], np.float32), dones, np.zeros(1), limits)
    return verdict


def contacts(verdict: Verdict) -> list[str]:
    return [reason.message for reason in verdict.reasons if reason.rule == "predicted_contact"]


START = scene(user(1, *CAR, 9.0, 0.0), user(2, *BUS, 0.0, 20.0))


def test_a_contact_makes_a_harmless_motion_unknown_and_says_with_whom_and_when() -> None:
    later = [scene(user(1, *CAR, dx, 0.0)) for dx in (7.0, 5.0, REAR_M - 0.5, REAR_M - 2)]
    verdict = judged(START, *later)

    assert verdict.verdict == UNKNOWN
    assert [reason.rule for reason in verdict.reasons] == ["predicted_contact"]
    assert contacts(verdict) == [
        "in the predicted motion the ego overlaps neighbour 1 by 0.5 m after 0.15 s"
    ]
    assert (verdict.crash_probability, verdict.time_to_crash_s) == (0.0, None)
    assert judged(START, *later[:2]).verdict == SAFE


def test_an_unsafe_motion_names_the_contact_too() -> None:
    verdict = judged(START, scene(user(2, *BUS, 0.0, 2.0)), hazard=0.9)

    assert verdict.verdict == UNSAFE
    assert [reason.rule for reason in verdict.reasons] == ["crash_probability", "predicted_contact"]
    assert contacts(verdict)[0].endswith("overlaps neighbour 2 by 0.2 m after 0.05 s")


def test_a_contact_changes_nothing_about_an_input_that_is_not_known() -> None:
    known = replace(SIZED, state_low=np.zeros(34), state_high=np.full(34, 50.0))
    verdict = judged(
        scene(user(1, *CAR, -9.0, 0.0)), scene(user(1, *CAR, -3.0, 0.0)), limits=known, hazard=0.9
    )

    assert verdict.verdict == UNKNOWN
    assert verdict.reasons[0].rule == "input_out_of_range"


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        (scene(user(1, *CAR, REAR_M - 0.09, 0.0)), None),
        (scene(user(1, *CAR, REAR_M - 0.11, 0.0)), "overlaps neighbour 1 by 0.11 m"),
        (scene(user(1, *CAR, 0.11 - REAR_M, 0.0)), "overlaps neighbour 1 by 0.11 m"),
        (scene(user(1, *CAR, 0.0, -1.74)), "overlaps neighbour 1 by 0.11 m"),
        (scene(user(1, *CAR, 0.0, 1.77)), None),
        (scene(user(1, *CAR, 0.0, 3.15, np.pi / 2)), None),
        (scene(user(1, *CAR, 0.0, 3.05, np.pi / 2)), "overlaps neighbour 1 by 0.15 m"),
        # Only an axis of the other one's shows that its corner passes by.
        (scene(user(1, *CAR, 3.6, 2.5, -np.pi / 4)), None),
        (scene(user(1, *CAR, 3.6, 2.5, np.pi / 4)), "overlaps neighbour 1 by 0.31 m"),
        (scene(left_edge=-0.09), None),
        (scene(left_edge=-0.11), "is 0.11 m off the road (left_edge)"),
        (scene(left_edge=13.0, right_edge=-0.3), "is 0.3 m off the road (right_edge)"),
        (scene(left_edge=-1.0, right_edge=-2.0), "is 2 m off the road (right_edge)"),
        (scene(user(1, *CAR, 4.0, 0.0), left_edge=-0.2), "overlaps neighbour 1 by 0.65 m"),
        (scene(user(1, *CAR, 4.5, 0.0), left_edge=-0.2), "is 0.2 m off the road (left_edge)"),
        (
            scene(user(1, *CAR, 4.5, 0.0), user(2, *BUS, 0.0, 1.5)),
            "overlaps neighbour 2 by 0.7 m",
        ),
    ],
    ids=str,
)
def test_what_is_deepest_is_named_if_it_is_deep(later: State, expected: str | None) -> None:
    verdict = judged(START, START, later)

    assert verdict.verdict == (SAFE if expected is None else UNKNOWN)
    assert contacts(verdict) == (
        [] if expected is None else [f"in the predicted motion the ego {expected} after 0.10 s"]
    )


def test_the_first_contact_is_named_not_the_deepest() -> None:
    later = (scene(left_edge=-0.2), scene(user(1, *CAR, 0.0, 0.0)))

    assert contacts(judged(START, *later)) == [
        "in the predicted motion the ego is 0.2 m off the road (left_edge) after 0.05 s"
    ]


def test_who_is_there_and_how_large_is_said_by_the_start() -> None:
    """Predicted sizes drift; an empty slot has a place: the ego's own."""
    nobody = [*KNOWN.values()]
    assert judged(nobody, nobody).verdict == SAFE
    assert judged(nobody, scene(user(1, *CAR, 0.0, 0.0))).verdict == SAFE
    assert judged(START, scene(user(1, 0.0, 0.0, 3.0, 0.0))).verdict == UNKNOWN
    person = scene(user(1, *PERSON, 9.0, 0.0))
    assert judged(person, scene(user(1, *BUS, 3.0, 0.0))).verdict == SAFE
    assert judged(person, scene(user(1, *BUS, 2.5, 0.0))).verdict == UNKNOWN
    longer = scene(user(1, *PERSON, 9.0, 0.0), length=12.0)
    assert judged(longer, scene(user(1, *PERSON, 3.0, 0.0))).verdict == UNKNOWN


def test_without_sizes_all_are_as_large_as_usual() -> None:
    far, near = [1.0, 9.0, 0.0, 0.0], [1.0, 4.8, 0.0, 0.0]

    def verdict(start: State, later: State) -> Verdict:
        return judged(on_the_road(NOBODY, start), on_the_road(NOBODY, later), limits=LIMITS)

    assert contacts(verdict(far, near)) == [
        "in the predicted motion the ego overlaps neighbour 2 by 0.2 m after 0.10 s"
    ]
    assert verdict(far, [1.0, 4.95, 0.0, 0.0]).verdict == SAFE
    assert verdict(NOBODY, near).verdict == SAFE
    assert verdict(far, [0.0, 4.8, 0.0, 0.0]).verdict == UNKNOWN


def test_sizes_may_be_features_of_some_only() -> None:
    """The ego and neighbour 1 are as large as usual, 5 m by 2 m; neighbour 2 as its columns say."""
    names = (*LIMITS.feature_names, "2_length", "2_width")
    limits = replace(
        LIMITS,
        feature_names=names,
        state_low=np.full(12, -INF),
        state_high=np.full(12, INF),
        sizes=((), (10, 11)),
    )
    far = [1.0, 9.0, 0.0, 0.0]
    for one, other, is_safe in (
        ([1.0, 4.8, 0.0, 0.0], far, False),
        (far, [1.0, 4.8, 0.0, 0.0], True),
        (far, [1.0, 2.8, 0.0, 0.0], False),
    ):
        start = [*on_the_road(far, [1.0, 0.0, 9.0, 0.0]), 1.0, 1.0]
        verdict = judged(start, [*on_the_road(one, other), 1.0, 1.0], limits=limits)
        assert (verdict.verdict == SAFE) is is_safe


def test_without_geometry_nobody_touches() -> None:
    start = [1.0, 9.0, 0.0, *[0.0] * 6]

    assert judged(start, [1.0, *[0.0] * 8], limits=NO_GEOMETRY).verdict == SAFE


def test_edges_are_known_without_neighbours() -> None:
    limits = replace(LIMITS, slots=np.zeros((0, 3), np.int64), headings=(), length_m=0.0)

    verdict = judged(on_the_road(NOBODY), [-0.5, *NOBODY, *NOBODY, 6.0], limits=limits)

    assert contacts(verdict) == [
        "in the predicted motion the ego is 0.5 m off the road (left) after 0.10 s"
    ]


def test_each_sequence_is_judged_by_its_own_start_and_motion() -> None:
    small, large = (scene(user(1, *size, 9.0, 0.0)) for size in (PERSON, BUS))
    close = scene(user(1, *PERSON, 3.0, 0.0))
    paths = np.array(
        [
            [small, small, close],
            [large, close, small],
            [large, large, large],
            [large, large, close],
            [scene(), close, scene(left_edge=-1.0)],
        ],
        np.float32,
    )
    count = len(paths)
    found = assess(paths, np.zeros((count, 2)), np.zeros(count), SIZED)

    said = [[text.partition(" ego ")[2] for text in contacts(verdict)] for verdict in found]
    assert said == [
        [],
        ["overlaps neighbour 1 by 2.2 m after 0.05 s"],
        [],
        ["overlaps neighbour 1 by 2.2 m after 0.10 s"],
        ["is 1 m off the road (left_edge) after 0.10 s"],
    ]
    for k in range(count):
        assert assess(paths[k : k + 1], np.zeros((1, 2)), np.zeros(1), SIZED) == [found[k]]


@settings(max_examples=200, deadline=None)
@given(overlapping(margin_m=0.06), st.booleans(), st.integers(1, 3))
def test_no_motion_in_which_cars_overlap_is_safe(car: State, is_first: bool, step: int) -> None:
    far = [1.0, 30.0, 0.0, 0.0]
    path = [on_the_road(far, [1.0, 0.0, 40.0, 0.0])] * 4
    path[step] = on_the_road(car, far) if is_first else on_the_road(far, car)
    verdict = judged(*path, limits=LIMITS)

    assert [reason.rule for reason in verdict.reasons] == ["predicted_contact"]
    assert f"neighbour {1 if is_first else 2} " in contacts(verdict)[0]
    assert contacts(verdict)[0].endswith(f"after {step / 10:.2f} s")


@settings(max_examples=200, deadline=None)
@given(apart(), st.booleans())
def test_a_motion_in_which_cars_stay_apart_is_not_doubted(car: State, is_first: bool) -> None:
    far = [1.0, 30.0, 0.0, 0.0]
    later = on_the_road(car, far) if is_first else on_the_road(far, car)

    assert judged(on_the_road(far, [1.0, 0.0, 40.0, 0.0]), later, limits=LIMITS).verdict == SAFE


@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e38, -1e38, 3e38])
@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("limits", [SIZED, LIMITS], ids=["sizes", "no sizes"])
def test_absurd_numbers_make_no_noise_and_nothing_safe(
    value: float, step: int, limits: SafetyLimits
) -> None:
    """Each number by itself, and all of them; NumPy's warnings are errors in tests."""
    usual = START if limits is SIZED else on_the_road([1.0, 9.0, 0.0, 0.0])
    count = len(usual)
    paths = np.tile(np.array(usual, np.float32), (count + 1, 2, 1))
    paths[np.arange(count), step, np.arange(count)] = value
    paths[count, step] = value

    found = assess(paths, np.zeros((count + 1, 1)), np.zeros(count + 1), limits)

    assert np.isfinite(value) or {verdict.verdict for verdict in found} == {UNKNOWN}
    if value < 0 and step == 1:
        names = limits.feature_names
        beyond = {names[k] for k in range(count) if found[k].verdict != SAFE}
        assert np.isinf(value) or beyond == {names[edge] for edge in limits.edges}


@pytest.mark.parametrize("change", [{"apart_m": NAN}, {"length_m": INF}], ids=str)
def test_a_usual_size_that_is_none_makes_no_motion_safe(change: dict[str, Any]) -> None:
    far = on_the_road([1.0, FAR_AWAY_M, 0.0, 0.0])

    assert judged(far, far, limits=replace(LIMITS, **change)).verdict == UNKNOWN


def test_whoever_may_be_there_is_taken_to_be() -> None:
    near = scene(user(1, *CAR, 1.0, 0.0))
    start = scene(user(1, NAN, NAN, 9.0, 0.0))
    states = np.array([[start, near]], np.float32)

    (reason,) = contact_reasons(states, None, SIZED)[0]
    assert reason.rule == "predicted_contact"
