"""PyTorch on a CPU, operation by operation: what a CPU does without machine code."""

from __future__ import annotations

import select

import torch
from torch import Tensor

from models.network.ensemble import EnsembleStep, WorldModelEnsemble, split_summary
from models.prediction import Array, Prediction


class Eager:
    """The `Backend` of a CPU without a compiler.

    Args:
        ensemble: On the CPU; its present weights are taken.
    """

    label = "eager"
    is_padded = True
    blank = staticmethod(Prediction.blank)

    def __init__(self, ensemble: WorldModelEnsemble) -> None:
        self._steps = [ensemble.step(k + 1) for k in range(ensemble.member_count)]

    def start(
        self,
        states: Array,
        actions: Array,
        launch_rows: int,
        prediction: Prediction,
        members: int | None = None,
    ) -> EagerRollout:
        """Return a rollout of which no step is taken yet; see `Backend`."""
        rows, horizon, _ = actions.shape
        # Torch's own memory, not NumPy's: matrix kernels may round by how memory is aligned.
        state = torch.zeros(launch_rows, states.shape[1])
        state.numpy()[:rows] = states
        by_step = torch.zeros(horizon, launch_rows, actions.shape[2])
        by_step.numpy()[:, :rows] = actions.swapaxes(0, 1)
        step = self._steps[(members or len(self._steps)) - 1]
        return EagerRollout(step, state, by_step, prediction)


class EagerRollout:
    """A rollout whose steps are called one by one.

    Args:
        step: Takes one.
        state: [B or more, S]; rows beyond those of the prediction are padding.
        actions: [H, B or more, A].
        prediction: Written.
    """

    def __init__(
        self,
        step: EnsembleStep,
        state: Tensor,
        actions: Tensor,
        prediction: Prediction,
    ) -> None:
        self._step = step
        members = step.member_count
        self._carry = state.expand(members, *state.shape), torch.zeros(members, len(state))
        self._state = state
        self._actions = actions
        self._prediction = prediction
        self._summaries: list[Tensor] = []

    @property
    def is_complete(self) -> bool:
        """Whether all steps are taken."""
        return len(self._summaries) == len(self._actions)

    def advance(self, steps: int, stop_when_readable: int | None = None) -> int:
        """Take up to `steps` more steps, at least one; return how many."""
        taken = len(self._summaries)
        input_poll = select.poll()
        if stop_when_readable is not None and stop_when_readable >= 0:
            input_poll.register(stop_when_readable, select.POLLIN)
        with torch.inference_mode():
            for action in self._actions[taken : taken + steps]:
                if len(self._summaries) > taken and input_poll.poll(0):
                    break
                states, log_alive, summary = self._step(*self._carry, action)
                self._carry = states, log_alive
                self._summaries.append(summary)
        if self.is_complete:
            write_summaries(self._prediction, self._state, torch.stack(self._summaries))
        return len(self._summaries) - taken


def write_summaries(prediction: Prediction, state: Tensor, summaries: Tensor) -> None:
    """Write a prediction of B rows over H steps, and leave padding out.

    Args:
        prediction: Written, but for `is_finite`.
        state: [B or more, S], where the rows start.
        summaries: [H, B or more, S + 4], of `EnsembleStep`, on the CPU.
    """
    rows = len(prediction.uncertainty)
    after, rewards, dones, _, spread = split_summary(summaries[:, :rows].swapaxes(0, 1))
    prediction.states[:, 0] = state[:rows].numpy()
    prediction.states[:, 1:] = after.numpy()
    prediction.rewards[:] = rewards.numpy()
    prediction.dones[:] = dones.numpy()
    prediction.uncertainty[:] = spread.amax(1).numpy()
