from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest
import torch

from models.backends.eager import Eager
from models.backends.graphs import Graphs
from models.network.ensemble import WorldModelEnsemble
from models.prediction import Array, Prediction

NUMBERS = ("states", "rewards", "dones", "uncertainty")


@pytest.fixture(scope="module")
def ensemble() -> WorldModelEnsemble:
    torch.manual_seed(0)
    ensemble = WorldModelEnsemble(2, state_dim=4, action_dim=2, hidden_dims=(16, 32))
    return ensemble.eval().requires_grad_(False)


def inputs(horizon: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(horizon)
    states = torch.randn(8, 4, generator=generator)
    return states, torch.rand(horizon, 8, 2, generator=generator)


def arrays(states: torch.Tensor, actions: torch.Tensor) -> tuple[Array, Array]:
    """Return states [B, S] and actions [B, H, A] of tensors [B, S] and [H, B, A]."""
    return states.numpy(), actions.swapaxes(0, 1).numpy()


@pytest.mark.parametrize("slices", [(5,), (1, 1, 1, 1, 1), (2, 9)], ids=str)
def test_an_eager_rollout_is_the_ensembles_however_it_is_sliced(
    ensemble: WorldModelEnsemble, slices: tuple[int, ...]
) -> None:
    states, actions = inputs(5)
    prediction = Prediction.blank(8, 5, 4)
    rollout = Eager(ensemble).start(*arrays(states, actions), 8, prediction)

    seen = [rollout.is_complete]
    for steps in slices:
        rollout.advance(steps)
        seen.append(rollout.is_complete)

    assert seen == [False] * len(slices) + [True]
    truth = ensemble.rollout(states, actions.swapaxes(0, 1))
    for name in NUMBERS:
        assert np.array_equal(getattr(prediction, name), getattr(truth, name).numpy()), name


@pytest.mark.parametrize("kind", ["eager", "graphs"])
def test_fewer_members_answer_as_an_ensemble_of_no_others(
    ensemble: WorldModelEnsemble, kind: str
) -> None:
    def make(ensemble: WorldModelEnsemble) -> Eager | Graphs:
        if kind == "eager":
            return Eager(ensemble)
        return Graphs(ensemble, capture=lambda work: work, wait=lambda: None)

    backend = make(ensemble)
    states, actions = arrays(*inputs(5))
    for members in (1, 2, 1):  # those of graphs are fixed tensors: of one another's they know none
        alone = WorldModelEnsemble.from_members(list(ensemble.members)[:members])
        seen, truth = Prediction.blank(8, 5, 4), Prediction.blank(8, 5, 4)
        backend.start(states, actions, 8, seen, members).advance(5)
        make(alone).start(states, actions, 8, truth).advance(5)
        for name in NUMBERS:
            assert np.array_equal(getattr(seen, name), getattr(truth, name)), name


def test_eager_steps_stop_while_a_file_is_readable(ensemble: WorldModelEnsemble) -> None:
    rollout = Eager(ensemble).start(*arrays(*inputs(9)), 8, Prediction.blank(8, 9, 4))
    reader, writer = os.pipe()

    taken = [rollout.advance(3, reader)]
    os.write(writer, b"x")
    taken += [rollout.advance(9, reader), rollout.advance(9, reader)]
    os.read(reader, 1)
    taken += [rollout.advance(9, reader)]
    os.close(reader)
    os.close(writer)

    assert taken == [3, 1, 1, 4]
    assert rollout.is_complete


def test_padding_is_left_out(ensemble: WorldModelEnsemble) -> None:
    states, actions = arrays(*inputs(3))
    backend = Eager(ensemble)
    whole, part = Prediction.blank(8, 3, 4), Prediction.blank(5, 3, 4)

    for rows, prediction in ((8, whole), (5, part)):
        backend.start(states[:rows], actions[:rows], 8, prediction).advance(3)

    for name in NUMBERS:
        assert np.array_equal(getattr(part, name), getattr(whole, name)[:5]), name


@pytest.mark.parametrize("horizon", [1, 3, 16, 21, 40])
def test_recorded_graphs_take_any_horizon_with_one_wait_for_sixteen_steps(
    ensemble: WorldModelEnsemble, horizon: int
) -> None:
    waits, recorded = [], []

    def capture(work: Callable[[], None]) -> Callable[[], None]:
        work()  # as recording does: the fixed tensors are left as some other rollout's
        recorded.append(work)
        return work

    backend = Graphs(ensemble, capture=capture, wait=lambda: waits.append(1))
    states, actions = arrays(*inputs(horizon))

    seen, truth = Prediction.blank(8, horizon, 4), Prediction.blank(8, horizon, 4)

    for _ in range(2):
        rollout = backend.start(states, actions, 8, seen)
        assert not rollout.is_complete
        rollout.advance(1)
        assert rollout.is_complete

    Eager(ensemble).start(states, actions, 8, truth).advance(horizon)
    for name in NUMBERS:
        assert np.array_equal(getattr(seen, name), getattr(truth, name)), name
    assert len(waits) == 2 * -(-horizon // 16)
    assert len(recorded) == 5
