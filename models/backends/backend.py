"""Ways to compute an ensemble's rollouts: two for each kind of device, the fast one and the plain.

The fast ones are code of our own, which must be compiled; the plain ones are PyTorch's. The two of
a device agree to a few units in the last place, not in bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from models.backends.graphs import GraphedSteps, Rollout, SteppedRollout, WholeRollout
from models.network.ensemble import WorldModelEnsemble
from models.prediction import Array, Prediction


class Way(Protocol):
    """How rollouts are computed.

    Attributes:
        label: What is said of it beside the device's name; empty for the fast ones.
        is_padded: Whether rows are filled up to a launch shape.
    """

    label: str
    is_padded: bool

    def blank(self, rows: int, horizon: int, state_dim: int) -> Prediction:
        """Return a prediction to be written."""

    def begin(self, states: Array, actions: Array, shape: int, prediction: Prediction) -> Rollout:
        """Begin a rollout.

        Args:
            states: [B, S].
            actions: [B, H, A].
            shape: Rows that B is filled up to, if this way does.
            prediction: Written; its rows are views of one from `blank`.
        """


class Compiled:
    """Code of our own: machine code on a CPU, kernels on a GPU.

    Args:
        start: From states [B, S], actions [B, H, A] and a prediction to be written to a rollout.
        blank: Returns predictions in memory that it writes best.
    """

    label = ""
    is_padded = False

    def __init__(
        self,
        start: Callable[[Array, Array, Prediction], Rollout],
        blank: Callable[[int, int, int], Prediction] = Prediction.blank,
    ) -> None:
        self._start = start
        self.blank = blank

    def begin(self, states: Array, actions: Array, shape: int, prediction: Prediction) -> Rollout:
        """Begin a rollout; see `Way`."""
        return self._start(states, actions, prediction)


class Eager:
    """PyTorch on a CPU, operation by operation.

    Args:
        ensemble: With its present weights.
    """

    label = "eager"
    is_padded = True
    blank = staticmethod(Prediction.blank)

    def __init__(self, ensemble: WorldModelEnsemble) -> None:
        self._step = ensemble.step()
        self._members = ensemble.member_count

    def begin(self, states: Array, actions: Array, shape: int, prediction: Prediction) -> Rollout:
        """Begin a rollout; see `Way`."""
        rows, horizon, _ = actions.shape
        # Torch's own memory, not NumPy's: matrix kernels may round by how memory is aligned.
        state = torch.zeros(shape, states.shape[1])
        state.numpy()[:rows] = states
        by_step = torch.zeros(horizon, shape, actions.shape[2])
        by_step.numpy()[:, :rows] = actions.swapaxes(0, 1)
        return SteppedRollout(self._step, self._members, state, by_step, prediction)


class Graphs:
    """PyTorch's kernels on a GPU, replayed as recorded graphs, some for each launch shape.

    Args:
        ensemble: With its present weights.
    """

    label = "graphs"
    is_padded = True
    blank = staticmethod(Prediction.blank)

    def __init__(self, ensemble: WorldModelEnsemble) -> None:
        self._step = ensemble.step()
        self._by_shape: dict[int, GraphedSteps] = {}

    def begin(self, states: Array, actions: Array, shape: int, prediction: Prediction) -> Rollout:
        """Begin a rollout; see `Way`."""
        if shape not in self._by_shape:
            dims = states.shape[1], actions.shape[2]
            self._by_shape[shape] = GraphedSteps(self._step, shape, *dims)
        return WholeRollout(self._by_shape[shape], states, actions, prediction)
