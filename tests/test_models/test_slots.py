from __future__ import annotations

import numpy as np
import pytest

from models.highway import highway_spec
from models.slots import EmptySlots
from models.spec import anonymous_spec

SPEC = highway_spec()
SLOTS = EmptySlots(SPEC)


def states(count: int) -> np.ndarray:
    """Return states without a zero."""
    rng = np.random.default_rng(0)
    return rng.uniform(0.5, 1.5, (count, SPEC.state_dim)).astype(np.float32)


def columns(slot: int) -> list[int]:
    return [i for i, x in enumerate(SPEC.state) if x.name.startswith(f"neighbour_{slot}_")]


@pytest.mark.parametrize("empty", [0.0, -0.0], ids=["zero", "negative zero"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_empty_slot_is_zeroed_in_its_row_and_nothing_else(count: int, empty: float) -> None:
    given = states(count)
    given[count - 1, SPEC.state_index("neighbour_2_presence")] = empty
    expected = given.copy()
    expected[count - 1, columns(2)] = 0.0

    cleared = SLOTS.cleared(given)

    assert len(columns(2)) == 7
    assert cleared.tobytes() == expected.tobytes()
    assert given[count - 1, columns(2)[1]] > 0


def test_all_slots_may_be_empty() -> None:
    given = states(2)
    given[:, [SPEC.state_index(f"neighbour_{i}_presence") for i in range(1, 5)]] = 0

    cleared = SLOTS.cleared(given)

    assert not cleared[:, 6:].any()
    assert np.array_equal(cleared[:, :6], given[:, :6])


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("presence", [1.0, 0.5, -1.0, 1e-30])
def test_a_slot_that_is_not_quite_empty_stays(count: int, presence: float) -> None:
    given = states(count)
    given[0, SPEC.state_index("neighbour_1_presence")] = presence

    assert SLOTS.cleared(given) is given


@pytest.mark.parametrize("count", [1, 3])
def test_features_of_unknown_meaning_stay(count: int) -> None:
    given = np.zeros((count, 3), np.float32)

    assert EmptySlots(anonymous_spec(3, 2)).cleared(given) is given
