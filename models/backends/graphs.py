"""PyTorch's kernels on a GPU, replayed as recorded graphs: what a GPU does without `fused`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from models.backends.backend import WholeRollout
from models.backends.eager import write_summaries
from models.backends.memory import host_memory
from models.network.ensemble import SUMMARY_EXTRAS, EnsembleStep, WorldModelEnsemble
from models.prediction import Array, Prediction

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


class Graphs:
    """The `Backend` of a GPU without NVIDIA's compiler: graphs by numbers of rows and of members.

    Args:
        ensemble: On the device; its present weights are taken.
        capture: Records work; see `cuda_capture`.
        wait: Returns when the device has done all it was given.
    """

    label = "graphs"
    is_padded = True
    blank = staticmethod(Prediction.blank)

    def __init__(
        self,
        ensemble: WorldModelEnsemble,
        capture: Capture = cuda_capture,
        wait: Callable[[], None] = torch.cuda.synchronize,
    ) -> None:
        self._steps = [ensemble.step(k + 1) for k in range(ensemble.member_count)]
        self._capture = capture
        self._wait = wait
        self._recorded: dict[tuple[int, int], RecordedSteps] = {}

    def start(
        self,
        states: Array,
        actions: Array,
        launch_rows: int,
        prediction: Prediction,
        members: int | None = None,
    ) -> WholeRollout:
        """Return a rollout of which no step is taken yet; see `Backend`."""
        members = members or len(self._steps)
        key = launch_rows, members
        if key not in self._recorded:
            dims = states.shape[1], actions.shape[2]
            self._recorded[key] = RecordedSteps(
                self._steps[members - 1], launch_rows, *dims, self._capture, self._wait
            )
        return WholeRollout(self._recorded[key].compute, states, actions, prediction)


class RecordedSteps:
    """Rollouts of one number of rows as recorded graphs: no host between steps.

    One copy in, one copy out and one wait for every `_STRIDES[0]` steps. The tensors are fixed, so
    one rollout must be complete before the next begins.

    Args:
        step: Of the members that compute, its weights on the device.
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
        capture: Capture,
        wait: Callable[[], None],
    ) -> None:
        device, longest = step.stacked.state_scale.device, _STRIDES[0]
        is_pinned = device.type == "cuda"
        self._step = step
        self._wait = wait
        self._shapes = (rows, state_dim), (longest, rows, action_dim)
        numbers = rows * (state_dim + longest * action_dim)
        self._host_in = host_memory(numbers, is_pinned=is_pinned)
        self._device_in = torch.zeros(numbers, device=device)
        columns = state_dim + SUMMARY_EXTRAS
        self._host_out = host_memory(longest, rows, columns, is_pinned=is_pinned)
        self._device_out = torch.zeros(longest, rows, columns, device=device)
        self._carry = step.start(torch.zeros(rows, state_dim, device=device))
        self._actions = torch.zeros(longest, rows, action_dim, device=device)
        self._summaries = torch.zeros_like(self._device_out)
        with torch.inference_mode():
            self._replays = {k: capture(partial(self._take, k)) for k in _STRIDES}

    def compute(self, states: Array, actions: Array, prediction: Prediction) -> None:
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
        summaries = []
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
            summaries.append(self._host_out[: len(part)].clone())
        write_summaries(prediction, host_state, torch.cat(summaries))

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
                self._actions[:stride].copy_(actions[done : done + stride])
                self._replays[stride]()
                self._device_out[done : done + stride].copy_(self._summaries[:stride])
                done += stride

    def _take(self, stride: int) -> None:
        """Do what is recorded: `stride` steps on the fixed tensors."""
        states, log_alive = self._carry
        for k in range(stride):
            states, log_alive, summary = self._step(states, log_alive, self._actions[k])
            self._summaries[k].copy_(summary)
        self._carry[0].copy_(states)
        self._carry[1].copy_(log_alive)
