from __future__ import annotations

import numpy as np
import pytest

from models.highway import highway_spec
from training.closed_loop.manoeuvres import EDGE_MARGIN_M, MANOEUVRES, PEDALS_MPS2, hold, manoeuvres
from training.evaluation.baselines import physics_rollout
from training.simulation.bicycle import DT_S, bicycle_step

FULL_BRAKE = MANOEUVRES.index("full brake, keep lane")


def on_the_road(
    *,
    speed: float = 20.0,
    offset: float = 0.0,
    error: float = 0.0,
    left: float = 10.0,
    right: float = 10.0,
    curvature: float = 0.0,
) -> np.ndarray:
    """One car [1, 34] with nobody around."""
    state = np.zeros((1, highway_spec().state_dim))
    state[0, :6] = speed, offset, np.sin(error), left, right, curvature
    return state


def after(state: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """States [K, H+1, 34] that follow by exact physics."""
    return physics_rollout(np.repeat(state, len(actions), axis=0), actions)


def test_every_manoeuvre_is_a_sequence_of_valid_actions() -> None:
    states = np.concatenate([on_the_road(speed=s, error=0.3) for s in (0.0, 5.0, 40.0)])
    actions = manoeuvres(states, 16)
    assert actions.shape == (3, len(MANOEUVRES), 16, 3)
    assert actions.dtype == np.float32
    assert np.isfinite(actions).all()
    for feature, column in zip(highway_spec().action, np.moveaxis(actions, -1, 0), strict=True):
        assert column.min() >= feature.low
        assert column.max() <= feature.high


@pytest.mark.parametrize("curvature", [0.0, 0.05, -0.05])
@pytest.mark.parametrize("offset", [0.0, 1.5])
def test_keeping_the_lane_ends_in_its_middle(curvature: float, offset: float) -> None:
    state = on_the_road(speed=10.0, offset=offset, curvature=curvature)
    driven = after(state, manoeuvres(state, 60)[0, :4])
    coast = list(PEDALS_MPS2).index("coast")
    assert abs(driven[coast, -1, 1]) < 0.3


def test_pedals_change_the_speed_as_named() -> None:
    state = on_the_road(speed=20.0)
    driven = after(state, manoeuvres(state, 16)[0])
    gained = driven[:, -1, 0] - 20.0
    wanted = 16 * DT_S * np.array(list(PEDALS_MPS2.values()))
    assert gained == pytest.approx(np.tile(wanted, 3), abs=1e-4)


def test_shifts_move_a_lane_to_the_side_they_name() -> None:
    state = on_the_road(speed=20.0)
    actions = manoeuvres(state, 60)[0]
    offset = after(state, actions)[:, -1, 1]
    for name, target in (("keep lane", 0.0), ("left", -4.0), ("right", 4.0)):
        assert offset[MANOEUVRES.index(f"coast, {name}")] == pytest.approx(target, abs=0.3)


def test_no_shift_leaves_a_narrow_road() -> None:
    state = on_the_road(speed=20.0, left=2.5, right=2.5)
    driven = after(state, manoeuvres(state, 60)[0])
    assert driven[..., 3:5].min() > EDGE_MARGIN_M - 0.5


def test_a_manoeuvre_after_an_action_starts_from_where_the_action_leads() -> None:
    state = on_the_road(speed=20.0, error=0.1)
    first = np.array([[0.8, 1.0, 0.0]], np.float32)
    actions = manoeuvres(state, 16, first)
    assert actions.shape == (1, len(MANOEUVRES), 16, 3)
    assert (actions[0, :, 0] == first).all()
    later = after(state, hold(first, 1))[:, 1]
    assert actions[:, :, 1:] == pytest.approx(manoeuvres(later, 15), abs=0.02)


def test_braking_comes_to_a_stand_and_stays_there() -> None:
    state = on_the_road(speed=3.0)
    pose = np.array([0.0, 0.0, 0.0, 3.0])
    for action in manoeuvres(state, 40)[0, FULL_BRAKE]:
        pose = bicycle_step(pose, action)
    assert pose[3] == 0.0


def test_holding_repeats_an_action() -> None:
    wanted = np.array([[0.1, 0.2, 0.0], [-0.3, 0.0, 1.0]])
    held = hold(wanted, 5)
    assert held.shape == (2, 5, 3)
    assert (held == wanted.astype(np.float32)[:, None]).all()
