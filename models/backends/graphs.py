"""Rollouts that can be left between steps, and gone on with later."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from models.backends.native import NativeSteps, RowsUnderway
from models.network.ensemble import SUMMARY_EXTRAS, EnsembleStep, split_summary
from models.prediction import Array, Prediction

Step = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""`EnsembleStep.forward`, or what does the same."""


class Rollout(Protocol):
    """Rows on their way; what is predicted is written once all steps are taken."""

    @property
    def is_complete(self) -> bool:
        """Whether all steps are taken."""

    def advance(self, steps: int, watched: int = -1) -> int:
        """Take up to so many more steps, at least one; return how many.

        Args:
            steps: At most.
            watched: File descriptor; when it is readable, those who can stop early. None if -1.
        """


class NativeRollout:
    """Steps taken by machine code on the CPU.

    Args:
        steps: Of all members.
        states: [B, S].
        actions: [B, H, A].
        prediction: Written.
    """

    def __init__(
        self, steps: NativeSteps, states: Array, actions: Array, prediction: Prediction
    ) -> None:
        self._steps = steps
        self._rows = RowsUnderway(steps, states, actions, prediction)
        self._horizon = actions.shape[1]
        self._taken = 0

    @property
    def is_complete(self) -> bool:
        """Whether all steps are taken."""
        return bool(self._taken == self._horizon)

    def advance(self, steps: int, watched: int = -1) -> int:
        """Take up to so many more steps, at least one; stop early if a file is readable."""
        taken = self._taken
        end = min(taken + steps, self._horizon)
        self._taken = self._steps.take(self._rows, taken, end, watched)
        return self._taken - taken


class SteppedRollout:
    """Steps called one by one: what a CPU does without machine code.

    Args:
        step: Takes one.
        members: E.
        state: [B or more, S].
        actions: [H, B or more, A]; rows beyond those of the prediction are padding.
        prediction: Written.
    """

    def __init__(
        self, step: Step, members: int, state: Tensor, actions: Tensor, prediction: Prediction
    ) -> None:
        self._step = step
        self._carry = state.expand(members, *state.shape), torch.zeros(members, len(state))
        self._state = state
        self._actions = actions
        self._prediction = prediction
        self._summaries: list[Tensor] = []

    @property
    def is_complete(self) -> bool:
        """Whether all steps are taken."""
        return len(self._summaries) == len(self._actions)

    def advance(self, steps: int, watched: int = -1) -> int:
        """Take up to so many more steps."""
        taken = len(self._summaries)
        with torch.inference_mode():
            for action in self._actions[taken : taken + steps]:
                states, log_alive, summary = self._step(*self._carry, action)
                self._carry = states, log_alive
                self._summaries.append(summary)
        if self.is_complete:
            _write(self._prediction, self._state, torch.stack(self._summaries))
        return len(self._summaries) - taken


def _write(prediction: Prediction, state: Tensor, summaries: Tensor) -> None:
    """Write starts [B or more, S] and what the members say, [H, B or more, S + 4]; no padding."""
    rows = len(prediction.uncertainty)
    after, rewards, dones, _, spread = split_summary(summaries[:, :rows].swapaxes(0, 1))
    prediction.states[:, 0] = state[:rows].numpy()
    prediction.states[:, 1:] = after.numpy()
    prediction.rewards[:] = rewards.numpy()
    prediction.dones[:] = dones.numpy()
    prediction.uncertainty[:] = spread.amax(1).numpy()


Replay = Callable[[], None]
Capture = Callable[[Callable[[], None]], Replay]
"""From work on fixed tensors to a call that does it again."""

_STRIDES = (16, 8, 4, 2, 1)
"""Steps that one graph takes. Any horizon is a few of them, the usual one of 16 is one."""


def cuda_capture(work: Callable[[], None]) -> Replay:
    """Record work as a CUDA graph; the first runs, on a stream beside, choose its kernels."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


class GraphedSteps:
    """Rollouts of one number of rows as recorded graphs: no host between steps.

    What a GPU does without `models.backends.fused`.

    One copy in, one copy out and one wait for every `_STRIDES[0]` steps. The tensors are fixed, so
    one rollout must be complete before the next begins.

    Args:
        step: All members' step, its weights on the device.
        rows: B.
        state_dim: S.
        action_dim: A.
        capture: Records.
        wait: Returns when the device has done all it was given.
    """

    def __init__(
        self,
        step: EnsembleStep,
        rows: int,
        state_dim: int,
        action_dim: int,
        capture: Capture = cuda_capture,
        wait: Callable[[], None] = torch.cuda.synchronize,
    ) -> None:
        device, longest = step.stacked.state_scale.device, _STRIDES[0]
        is_pinned = device.type == "cuda"
        self._step = step
        self._wait = wait
        self._shapes = (rows, state_dim), (longest, rows, action_dim)
        numbers = rows * (state_dim + longest * action_dim)
        self._host_in = torch.zeros(numbers, pin_memory=is_pinned)
        self._device_in = torch.zeros(numbers, device=device)
        columns = state_dim + SUMMARY_EXTRAS
        self._host_out = torch.zeros(longest, rows, columns, pin_memory=is_pinned)
        self._device_out = torch.zeros(longest, rows, columns, device=device)
        self._carry = step.begin(torch.zeros(rows, state_dim, device=device))
        self._taken = torch.zeros(longest, rows, action_dim, device=device)
        self._given = torch.zeros_like(self._device_out)
        with torch.inference_mode():
            self._replays = {k: capture(partial(self._take, k)) for k in _STRIDES}

    def rollout(self, states: Array, actions: Array, prediction: Prediction) -> None:
        """Take all steps.

        Args:
            states: [up to B, S].
            actions: [up to B, H, A].
            prediction: Written, but for `is_finite`.
        """
        longest, count = _STRIDES[0], len(states)
        host_state, host_actions = self._parts(self._host_in)
        device_state, device_actions = self._parts(self._device_in)
        host_state.zero_()
        host_state.numpy()[:count] = states
        given = []
        for first in range(0, actions.shape[1], longest):
            part = actions[:, first : first + longest].swapaxes(0, 1)
            host_actions.zero_()
            host_actions.numpy()[: len(part), :count] = part
            self._device_in.copy_(self._host_in, non_blocking=True)
            if first == 0:
                self._carry[0].copy_(device_state.expand_as(self._carry[0]))
                self._carry[1].zero_()
            self._replay(device_actions, len(part))
            self._host_out.copy_(self._device_out, non_blocking=True)
            self._wait()
            given.append(self._host_out[: len(part)].clone())
        _write(prediction, host_state, torch.cat(given))

    def _parts(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return states and actions as views of the memory that is copied at once."""
        state, actions = self._shapes
        return numbers[: state[0] * state[1]].view(state), numbers[state[0] * state[1] :].view(
            actions
        )

    def _replay(self, actions: Tensor, steps: int) -> None:
        done = 0
        for stride in _STRIDES:
            while steps - done >= stride:
                self._taken[:stride].copy_(actions[done : done + stride])
                self._replays[stride]()
                self._device_out[done : done + stride].copy_(self._given[:stride])
                done += stride

    def _take(self, stride: int) -> None:
        """Do what is recorded: `stride` steps on the fixed tensors."""
        states, log_alive = self._carry
        for k in range(stride):
            states, log_alive, summary = self._step(states, log_alive, self._taken[k])
            self._given[k].copy_(summary)
        self._carry[0].copy_(states)
        self._carry[1].copy_(log_alive)


class Whole(Protocol):
    """Who takes rollouts whole: `GraphedSteps`, `models.backends.fused.FusedRollouts`."""

    def rollout(self, states: Array, actions: Array, prediction: Prediction) -> None:
        """Take all steps: states [B, S], actions [B, H, A]; the prediction is written."""


class WholeRollout:
    """One rollout taken whole, however few steps are asked for: on a GPU it is short.

    Args:
        whole: Takes it.
        states: [B, S].
        actions: [B, H, A].
        prediction: Written.
    """

    def __init__(self, whole: Whole, states: Array, actions: Array, prediction: Prediction) -> None:
        self._whole = whole
        self._given = states, actions
        self._prediction = prediction
        self.is_complete = False

    def advance(self, steps: int, watched: int = -1) -> int:
        """Take all steps."""
        self._whole.rollout(*self._given, self._prediction)
        self.is_complete = True
        return int(self._given[1].shape[1])
