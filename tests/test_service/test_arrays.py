"""Where packing numbers could differ from what the contract says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.test_service.test_bodies import ACTION, STATE, parsed, refused

LARGEST = 3.4028235677973362e38  # of those that round to the largest float32


def test_states_reach_to_the_largest_float32_and_no_further() -> None:
    call = parsed("predict", state=[LARGEST, -LARGEST, 2**63], action=ACTION)
    beyond = [0.0, math.nextafter(LARGEST, math.inf), 0.0]
    error = refused("predict", {"state": beyond, "action": ACTION})

    assert call.states.tolist() == [[np.finfo(np.float32).max, np.finfo(np.float32).min, 2.0**63]]
    assert error.details[0]["field"] == "state[1]"


@pytest.mark.parametrize("count", [1, 2], ids=["one row", "many rows"])
def test_ranges_are_those_of_doubles(count: int) -> None:
    body = {"state": STATE, "actions": [ACTION] * (count - 1) + [[0.5, 1.00000001]]}

    assert refused("rollout", body).details[0]["field"] == f"actions[{count - 1}][1]"


@pytest.mark.parametrize("letters", [b"", b"u" * 100, b"f" * 100], ids=["few", "u", "f"])
@pytest.mark.parametrize("word", [b"true", b"false"])
def test_a_boolean_is_found_however_many_letters_a_body_has(word: bytes, letters: bytes) -> None:
    body = b'{"state": [1, 2, %s], "actions": [[0, 0]], "outputs": ["%s"]}' % (word, letters)
    swapped = b'{"outputs": ["%s"], "state": [1, 2, %s], "actions": [[0, 0]]}' % (letters, word)

    assert refused("rollout", body).details[0]["field"] == "state[2]"
    assert refused("rollout", swapped).details[0]["field"] == "state[2]"
