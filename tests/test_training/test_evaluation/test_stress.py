from __future__ import annotations

import numpy as np
import pytest
import torch

from models.checkpoint import Architecture
from models.highway import highway_spec
from models.network.ensemble import WorldModelEnsemble
from tests.test_training.driving import mixed_episodes, save_store
from training.dataset.windows import Windows, make_windows
from training.evaluation.baselines import BASELINES, FULL_PHYSICS
from training.evaluation.stress import adversarial_actions, random_actions
from training.fitting.calibrate import predict_windows
from training.simulation.behaviours import SEQUENCE_KINDS

SPEC = highway_spec()


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Windows:
    store = save_store(tmp_path_factory.mktemp("store"), mixed_episodes(12))
    return make_windows(store, np.arange(12), 8, 4)


@pytest.fixture(scope="module")
def ensemble() -> WorldModelEnsemble:
    torch.manual_seed(0)
    architecture = Architecture((32, 32), kinematics=True)
    members = [architecture.build(SPEC) for _ in range(2)]
    for member in members:  # units of the road, or rollouts of fresh weights explode
        member.set_normalisers(
            state_mean=torch.zeros(SPEC.state_dim),
            state_scale=torch.full((SPEC.state_dim,), 30.0),
            delta_scale=torch.full((SPEC.state_dim,), 0.1),
            reward_mean=0.0,
            reward_scale=1.0,
        )
    return WorldModelEnsemble.from_members(members).eval().requires_grad_(False)


def test_random_actions_take_the_kinds_in_turn_and_keep_the_rest(windows: Windows) -> None:
    shaken, kinds = random_actions(windows)
    assert kinds[:5].tolist() == [0, 1, 2, 3, 0]
    assert kinds.max() == len(SEQUENCE_KINDS) - 1
    assert shaken.states is windows.states
    assert (shaken.actions != windows.actions).any((1, 2)).all()
    assert shaken.actions.dtype == np.float32
    assert (random_actions(windows)[0].actions == shaken.actions).all()
    assert (random_actions(windows, seed=1)[0].actions != shaken.actions).any()


def test_adversarial_actions_lead_the_model_further_from_physics(
    windows: Windows, ensemble: WorldModelEnsemble
) -> None:
    scale = np.ones(SPEC.state_dim, np.float32)

    def distance(part: Windows) -> float:
        physics = BASELINES[FULL_PHYSICS](part).states
        assert physics is not None
        return float(np.square(predict_windows(ensemble, part).states - physics).mean())

    predict_windows(ensemble, windows)  # leaves weights behind that carry no gradients
    start, attacked = (
        adversarial_actions(ensemble, SPEC, windows, scale, steps=steps) for steps in (0, 6)
    )
    assert distance(attacked) > 1.05 * distance(start)


def test_adversarial_actions_stay_in_range(windows: Windows, ensemble: WorldModelEnsemble) -> None:
    scale = np.ones(SPEC.state_dim, np.float32)
    actions = adversarial_actions(ensemble, SPEC, windows, scale, steps=8).actions
    assert (actions >= [-1, 0, 0]).all()
    assert (actions <= [1, 1, 1]).all()
    assert actions.dtype == np.float32
    assert (np.isin(actions, [-1, 0, 1])).mean() > 0.2  # an attack goes to the limits
