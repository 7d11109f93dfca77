from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.safety import SafetyLimits, assess, is_plainly_possible

SLOTS = [(0, 1, 2), (3, 4, 5), (6, 7, 8)]
EMPTY = [0.0] * 3
LIMITS = SafetyLimits(
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


@pytest.mark.parametrize(
    ("one", "other", "is_possible"),
    [
        ([1.0, 0.0, 0.0], [1.0, 3.0, 0.0], True),
        ([1.0, 0.0, 0.0], [1.0, 0.0, -3.0], True),
        ([1.0, 0.0, 0.0], [0.0, 0.0, 0.0], True),
        ([1.0, 0.0, 0.0], [1.0, 1.0, 1.0], False),
        ([1.0, 0.0, 0.0], [0.5, 9.0, 9.0], False),
        ([1.0, 0.0, 0.0], [float("nan"), 9.0, 9.0], False),
        ([1.0, 0.0, 0.0], [1.0, 1.9, 1.9], False),
        ([1.0, 9.0, 0.0], [1.0, 6.0, 0.0], True),
        ([1.0, 0.0, 9.0], [1.0, 0.0, 6.0], True),
        ([1.0, 9.0, 9.0], [1.0, 9.0, 9.0], False),
        ([1.0, 0.0, 0.0], [1.0, 2.001, 0.0], False),
        ([1.0, 0.0, 0.0], [1.0, 0.0, 2.001], False),
        ([1.0, 0.0, 0.0], [1.0, 2.002, 0.0], False),
        ([1.0, 0.0, 0.0], [1.0, 0.0, 2.002], False),
        ([1.0, 0.0, 0.0], [1.0, 2.003, 0.0], True),
        ([1.0, 0.0, 0.0], [1.0, 0.0, 2.003], True),
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], True),
        ([0.0, 0.0, 0.0], [-1.0, 9.0, 9.0], False),
        ([1.0, 0.0, 0.0], [1.0, float("nan"), 0.0], False),
    ],
    ids=[
        "ahead",
        "beside",
        "absent",
        "same place",
        "half there",
        "not a number",
        "needs a look",
        "behind",
        "left",
        "same place afar",
        "a hair ahead",
        "a hair beside",
        "at the margin ahead",
        "at the margin beside",
        "just ahead",
        "just beside",
        "nobody",
        "less than nobody",
        "nowhere",
    ],
)
def test_neighbours_are_there_or_not_and_apart(
    one: list[float], other: list[float], is_possible: bool
) -> None:
    assert is_plainly_possible([*one, *other, *EMPTY], SLOTS, 2.0) is is_possible


@pytest.mark.parametrize("apart_m", [float("nan"), float("inf")])
def test_a_width_that_is_no_number_lets_no_two_neighbours_pass(apart_m: float) -> None:
    two = [1.0, 0.0, 0.0, 1.0, 99.0, 99.0, *EMPTY]

    assert not is_plainly_possible(two, SLOTS, apart_m)
    assert is_plainly_possible([1.0, 0.0, 0.0, *EMPTY, *EMPTY], SLOTS, apart_m)


NEAR = st.sampled_from([0.0, 1.0, 2.0, -2.0, 1.9999999, 2.0000002, 2.002])


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0, 0.5]), NEAR, NEAR), min_size=3, max_size=3))
def test_the_quick_look_lets_nothing_impossible_pass(slots: list[tuple[float, ...]]) -> None:
    """A batch is always looked at properly."""
    state = np.array([number for slot in slots for number in slot], np.float32)
    other = np.zeros(9, np.float32)
    dones, uncertainty = np.zeros((2, 1), np.float32), np.zeros(2, np.float32)
    states = np.repeat(np.stack([state, other])[:, None], 2, axis=1)

    properly = assess(states, dones, uncertainty, LIMITS)[0]
    quickly = assess(states[:1], dones[:1], uncertainty[:1], LIMITS)[0]

    assert quickly == properly
