from __future__ import annotations

import numpy as np
import pytest

from models.highway import highway_spec
from models.road_users import road_users_spec
from models.spec import anonymous_spec
from training.fitting.outliers import (
    ERROR_REWARD_SD,
    LARGEST_ERROR,
    error_shifts,
    make_outliers,
    own_side,
)

SPEC = highway_spec()


def states(count: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, SPEC.state_dim)).astype(np.float32)


def test_members_differ_to_both_sides_and_average_to_zero() -> None:
    sides = [own_side(i, 5) for i in range(5)]
    assert sides == [1, -1, 0.5, -0.5, 0]
    assert own_side(0, 1) == 0


@pytest.mark.parametrize("members", range(2, 10))
def test_the_first_members_alone_hardly_lean_to_a_side(members: int) -> None:
    sides = [own_side(i, members) for i in range(members)]
    assert len(set(sides)) == members
    assert sum(sides) == pytest.approx(0)
    assert max(sides) == -min(sides) == 1
    for count in range(2, members):
        assert abs(np.mean(sides[:count])) <= 1 / count


def test_rewards_are_off_by_the_share_of_the_average_error() -> None:
    errors = np.array([0.0, 1.0, 2.0, 3.0, 100.0])

    shifts = error_shifts(errors, -0.5)

    assert shifts == pytest.approx(-0.5 * ERROR_REWARD_SD * np.r_[errors[:4] / 1.5, LARGEST_ERROR])


@pytest.mark.parametrize("wild", [1e30, np.inf, np.nan])
def test_a_wild_error_leaves_the_shifts_of_others_as_they_are(wild: float) -> None:
    usual = np.linspace(0, 2, 200)

    shifts = error_shifts(np.append(usual, wild), 1.0)

    assert shifts[:-1] == pytest.approx(ERROR_REWARD_SD * usual, rel=0.02)
    assert shifts[-1] == ERROR_REWARD_SD * LARGEST_ERROR


@pytest.mark.parametrize("error", [0.0, np.nan, np.inf])
def test_errors_that_tell_nothing_apart_shift_nothing(error: float) -> None:
    assert not error_shifts(np.full(10, error), 1.0).any()


def test_outliers_are_finite_and_nearly_all_differ_from_what_they_are_made_of() -> None:
    right = states(2000)
    before = right.copy()
    wrong = make_outliers(right, SPEC, np.random.default_rng(0))
    assert wrong.dtype == np.float32
    assert wrong.shape == right.shape
    assert np.isfinite(wrong).all()
    assert (wrong != right).any(1).mean() > 0.99
    assert np.array_equal(right, before)


def test_outliers_depend_on_the_source_of_randomness_alone() -> None:
    one, two, other = (
        make_outliers(states(50), SPEC, np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_some_outliers_have_a_neighbour_twice_and_some_have_one_inside_the_ego() -> None:
    right = states(2000)
    right[:, 7::7] += 40  # everyone is far ahead
    wrong = make_outliers(right, SPEC, np.random.default_rng(0))
    slots = wrong[:, 6:].reshape(-1, 4, 7)
    twice = (slots[:, :1] == slots[:, 1:]).all(-1).any(1)
    ego_kept = (wrong[:, :6] == right[:, :6]).all(1)
    near = (np.hypot(slots[..., 1], slots[..., 2]) < 6.5).any(1)
    for found in (twice & ego_kept, near & ego_kept & ~twice):
        assert 0.04 < found.mean() < 0.3


def test_a_unit_is_wrong_for_all_neighbours_alike() -> None:
    right = np.ones((2000, SPEC.state_dim), np.float32)
    wrong = make_outliers(right, SPEC, np.random.default_rng(0))
    speeds = wrong[:, 6:].reshape(-1, 4, 7)[:, :, 4]
    # Of ones, only noise, a factor and zeros make anything else; noise has no spread to add here.
    scaled = (speeds[:, 0] != 1) & (speeds[:, 0] != 0)
    assert scaled.any()
    assert (speeds[scaled] == speeds[scaled, :1]).all()


def test_a_spec_without_neighbours_has_outliers_too() -> None:
    spec = anonymous_spec(3, 1)
    right = states(400)[:, :3]
    assert (make_outliers(right, spec, np.random.default_rng(0)) != right).any(1).mean() > 0.7


def test_neighbours_of_known_sizes_are_copied_and_drawn_near_with_what_all_slots_have() -> None:
    spec = road_users_spec()
    right = np.random.default_rng(1).uniform(1, 2, (2000, spec.state_dim)).astype(np.float32)
    for slot in range(1, 5):
        right[:, spec.state_index(f"neighbour_{slot}_dx")] += 40

    wrong = make_outliers(right, spec, np.random.default_rng(0))

    slots = wrong[:, 8:32].reshape(-1, 4, 6)
    kept = (wrong[:, [*range(8), 32, 33]] == right[:, [*range(8), 32, 33]]).all(1)
    twice = (slots[:, :1] == slots[:, 1:]).all(-1).any(1)
    near = (np.hypot(slots[..., 2], slots[..., 3]) < 7).any(1)
    for found in (twice & kept, near & kept & ~twice):
        assert 0.04 < found.mean() < 0.3
