from __future__ import annotations

from dataclasses import replace

import numpy as np

from models.highway import highway_spec
from models.road_users import road_users_spec
from tests.test_training.toy import toy_spec, toy_windows
from training.dataset.windows import KEEP_DISTANCE_M, Windows, hide_far_neighbours

SPEC = highway_spec()


SIZED = road_users_spec()


def windows_with_neighbours(count: int) -> Windows:
    """All slots filled: two near, two far, one of the far ones coming near."""
    states = np.zeros((count, 5, 34), np.float32)
    for slot, distance_m in zip((1, 2, 3, 4), (8.0, 12.0, 60.0, 70.0), strict=True):
        states[..., SPEC.state_index(f"neighbour_{slot}_presence")] = 1.0
        states[..., SPEC.state_index(f"neighbour_{slot}_dx")] = distance_m
        states[..., SPEC.state_index(f"neighbour_{slot}_speed")] = 3.0
    states[:, 4, SPEC.state_index("neighbour_4_dx")] = KEEP_DISTANCE_M - 1
    toy = toy_windows(count, 4, seed=0)
    return Windows(
        states=states,
        actions=np.zeros((count, 4, 3), np.float32),
        rewards=toy.rewards,
        terminated=toy.terminated,
        valid=toy.valid,
        episode=toy.episode,
        environment=toy.environment,
        behaviour=toy.behaviour,
        start_step=toy.start_step,
    )


def present(windows: Windows, slot: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.asarray(windows.states[:, 0, SPEC.state_index(f"neighbour_{slot}_presence")] > 0)


def test_only_neighbours_that_stay_far_are_hidden_and_wholly() -> None:
    hidden = hide_far_neighbours(windows_with_neighbours(400), SPEC, share=1.0, seed=0)

    assert present(hidden, 1).all()
    assert present(hidden, 2).all()
    assert present(hidden, 4).all()
    gone = ~present(hidden, 3)
    assert 0.4 < gone.mean() < 0.8  # the random range exceeds 60 m in 40 % of windows
    slot = hidden.states[gone][..., 6 + 2 * 7 : 6 + 3 * 7]
    assert not slot.any()


def test_the_share_of_changed_windows_is_respected_and_the_source_kept() -> None:
    source = windows_with_neighbours(2000)
    before = source.states.copy()

    hidden = hide_far_neighbours(source, SPEC, share=0.2, seed=0)

    changed = (hidden.states != source.states).any(axis=(1, 2)).mean()
    assert 0.08 < changed < 0.16
    assert np.array_equal(source.states, before)


def test_windows_without_geometry_come_back_as_they_are() -> None:
    windows = toy_windows(5, 4, seed=0)

    assert hide_far_neighbours(windows, toy_spec(), share=1.0, seed=0) is windows


def test_who_has_a_length_is_hidden_wholly_unless_it_reaches_near() -> None:
    windows = windows_with_neighbours(400)
    states = np.zeros((400, 5, SIZED.state_dim), np.float32)
    for slot, length_m, distance_m in ((1, 4.0, 10.0), (2, 19.0, 20.0), (3, 4.0, 20.0)):
        for part, value in (("length", length_m), ("width", 2.0), ("dx", distance_m)):
            states[..., SIZED.state_index(f"neighbour_{slot}_{part}")] = value

    hidden = hide_far_neighbours(replace(windows, states=states), SIZED, share=1.0, seed=0)

    there = [
        hidden.states[:, 0, SIZED.state_index(f"neighbour_{slot}_length")] > 0 for slot in (1, 2, 3)
    ]
    assert there[0].all()
    assert there[1].all()  # its end is 7 m nearer than a car's
    assert 0.1 < (~there[2]).mean() < 0.3
    of_third = [i for i, x in enumerate(SIZED.state) if x.name.startswith("neighbour_3")]
    assert not hidden.states[~there[2]][..., of_third].any()
