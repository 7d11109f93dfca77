"""Launch shapes tried out before anything is served: warmed, verified, timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import structlog

from models.safety import SafetyLimits
from models.spec import Spec
from service.costs import Costs
from service.engine.launch_rows import ROW_TILE, probe_rows
from service.interface import Array, Prediction

log = structlog.get_logger()

_PROBE_STEPS = 2
_TIMED_STEPS = 4
_TIMED_WHOLE = 16
"""Where launches cannot be left between steps: what one costs beside them is shared by them all."""

_TIMED_LAUNCHES = 5


@dataclass(frozen=True)
class Trial:
    """How launch shapes are tried.

    Attributes:
        rollout: (shape, states of as many rows, actions) -> prediction by one launch of it.
        spec: Ranges that rows are made from.
        limits: Trained ranges, narrower.
    """

    rollout: Callable[[int, Array, Array], Prediction]
    spec: Spec
    limits: SafetyLimits

    def costs(self, shapes: Sequence[int], longest_step_s: float, *, is_divisible: bool) -> Costs:
        """Return the costs of the shapes in which a row has the bits it has in others.

        Every shape is filled with the same few rows, turned by one place from tile to tile: bits
        may depend neither on the shape nor on the place in it.

        Args:
            shapes: Ascending.
            longest_step_s: Shapes end where a step takes longer.
            is_divisible: Whether a launch can be left between steps.
        """
        rows = probe_rows(ROW_TILE, _PROBE_STEPS, self.spec, self.limits)
        first = self._probed(ROW_TILE, *rows, turn=0)
        is_reproducible = self._probed(ROW_TILE, *rows, turn=1) == first
        if not is_reproducible:
            log.warning("rows are not reproducible", reason="bits depend on the place in a launch")
        kept: dict[int, float] = {}
        for shape in shapes:
            if is_reproducible and not self._probed(shape, *rows, turn=1) <= first:
                log.warning("launch shape dropped", rows=shape, reason="a row's bits differ")
                continue
            kept[shape] = self._step_s(shape, _TIMED_STEPS if is_divisible else _TIMED_WHOLE)
            if kept[shape] > longest_step_s:
                break
        return Costs(tuple(kept), tuple(kept.values()), is_divisible=is_divisible)

    def _probed(
        self, shape: int, states: Array, actions: Array, *, turn: int
    ) -> set[tuple[int, bytes]]:
        """Fill a shape with rows; return which bits each of them got."""
        places = np.arange(shape)
        which = (places + turn * (1 + places // len(states))) % len(states)
        seen = self.rollout(shape, states[which], actions[which])
        numbers = np.column_stack(
            [seen.states.reshape(shape, -1), seen.rewards, seen.dones, seen.uncertainty]
        )
        return {(int(row), numbers[place].tobytes()) for place, row in enumerate(which)}

    def _step_s(self, shape: int, steps: int) -> float:
        """Return the median time of a step of so many, with its share of the copies."""
        rows = probe_rows(shape, steps, self.spec, self.limits)
        times = []
        for _ in range(_TIMED_LAUNCHES):
            started = time.perf_counter()
            self.rollout(shape, *rows)
            times.append(time.perf_counter() - started)
        return float(np.median(times)) / steps
