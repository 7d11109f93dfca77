"""Launches tried before anything is served: each row count is warmed, verified, timed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import structlog

from models.backends.backend import Backend
from models.network.rows import ROW_TILE
from models.safety import SafetyLimits
from models.spec import Spec
from service.engine.launch_rows import probe_rows
from service.engine.parts import DeviceFullError, Parts
from service.interface import Array, Costs, Prediction

log = structlog.get_logger()

_PROBE_STEPS = 2
_TIMED_STEPS = 4
_TIMED_WHOLE = 16
"""Where launches cannot be left between steps: the cost of a launch is shared by all its steps."""

_TIMED_LAUNCHES = 5

_ROWS_BY_FEWER, _WHOLE_ROWS_BY_FEWER = 64, 256
"""Where rows are padded: those of launches by fewer members than all, the latter where launches
cannot be left between steps."""

_USUAL_ROWS = (1, 256, 4096)
"""Of a safety check, a planner, and a big planner."""

RowBits = set[tuple[int, bytes]]
"""Which bits each row got, by the row's number."""


@dataclass(frozen=True)
class WarmUp:
    """How the launches of a backend are tried.

    Attributes:
        backend: Computes them.
        spec: Ranges that rows are made from.
        limits: Trained ranges, narrower.
        count_error: Counts errors that are survived, by kind.
        members: How many of the ensemble compute, the first ones; None: all.
    """

    backend: Backend
    spec: Spec
    limits: SafetyLimits
    count_error: Callable[[str], None]
    members: int | None = None

    def costs(
        self, launch_rows: Sequence[int], longest_step_s: float, *, is_divisible: bool
    ) -> Costs:
        """Return the costs of row counts at which a row has the same bits.

        Every launch is filled with the same few rows, turned by one place from tile to tile: bits
        may depend neither on the number of rows nor on the place among them. Where they do depend
        on the number, as with matrix products of PyTorch on a GPU, some row counts agree with one
        another; the best such group is kept.

        Args:
            launch_rows: Row counts, ascending.
            longest_step_s: Row counts end where a step takes longer.
            is_divisible: Whether a launch can be left between steps.

        Raises:
            DeviceFullError, MemoryError: Not even the smallest launch fits the memory.
        """
        rows = probe_rows(ROW_TILE, _PROBE_STEPS, self.spec, self.limits)
        is_reproducible = self._is_reproducible(ROW_TILE)
        bits: dict[int, RowBits] = {}
        step_s: dict[int, float] = {}
        for count in launch_rows:
            try:
                bits[count] = self._probed(count, *rows, turn=1)
                step_s[count] = self._step_s(count, is_divisible=is_divisible)
            except (DeviceFullError, MemoryError) as exc:  # what compares bits needs memory, too
                if not step_s:
                    raise
                reason = str(exc) or type(exc).__name__
                log.warning("bigger launches dropped", rows=count, reason=reason)
                break
            if step_s[count] > longest_step_s:
                break
        kept = _best_group(bits, step_s) if is_reproducible else list(step_s)
        if dropped := [count for count in step_s if count not in kept]:
            log.warning("launch shapes dropped", rows=dropped, reason="a row's bits differ")
        return Costs(tuple(kept), tuple(step_s[count] for count in kept), is_divisible=is_divisible)

    def costs_of_fewer(self, of_all: Costs, members: int, *, is_padded: bool) -> tuple[Costs, ...]:
        """Return the costs of launches by 1, 2, ... members, up to all but one: `Costs.fewer`.

        Launches by one member are timed; those by more are taken to lie evenly between one and all,
        or the start would take several times as long.

        Code of our own computes a row alike in any launch, whoever computes, and launches have the
        same row counts. Where rows are padded it is PyTorch that computes, and for each number of
        members another group of row counts might agree. So launches by fewer have one row count
        there. Each number of members is tried in it, which also records a GPU's graphs: that must
        not be done beside other calls of the device.

        Args:
            of_all: Costs of launches by all.
            members: E.
            is_padded: Whether the backend fills up rows.

        Raises:
            DeviceFullError, MemoryError: The launches do not fit the memory.
        """
        if members == 1:
            return ()
        counts, is_divisible = of_all.launch_rows, of_all.is_divisible
        if is_padded:
            wanted = _ROWS_BY_FEWER if is_divisible else _WHOLE_ROWS_BY_FEWER
            counts = (next((x for x in counts if x >= wanted), counts[-1]),)
            for k in range(1, members):
                replace(self, members=k)._is_reproducible(counts[0])
        one = replace(self, members=1)
        by_one = [one._step_s(count, is_divisible=is_divisible) for count in counts]
        rises = [
            (of_all.step_s_of[x] - s) / (members - 1) for x, s in zip(counts, by_one, strict=True)
        ]
        return tuple(
            Costs(
                counts,
                tuple(s + k * rise for s, rise in zip(by_one, rises, strict=True)),
                is_divisible=is_divisible,
            )
            for k in range(members - 1)
        )

    def _is_reproducible(self, launch_rows: int) -> bool:
        """Tell whether a row has the same bits at two places of a launch; warn if not."""
        rows = probe_rows(ROW_TILE, _PROBE_STEPS, self.spec, self.limits)
        bits = (self._probed(launch_rows, *rows, turn=turn) for turn in (1, 0))
        if next(bits) == next(bits):
            return True
        log.warning(
            "rows are not reproducible",
            reason="bits depend on the place in a launch",
            members=self.members,
        )
        return False

    def _launched(self, launch_rows: int, states: Array, actions: Array) -> Prediction:
        """Return the prediction of as many rows as one launch takes."""
        return Parts(
            self.backend,
            (launch_rows,),
            states,
            actions,
            launch_rows,
            self.count_error,
            self.members,
        ).run()

    def _probed(self, launch_rows: int, states: Array, actions: Array, *, turn: int) -> RowBits:
        """Fill a launch with rows; return which bits each of them got."""
        places = np.arange(launch_rows)
        which = (places + turn * (1 + places // len(states))) % len(states)
        seen = self._launched(launch_rows, states[which], actions[which])
        numbers = np.column_stack(
            [seen.states.reshape(launch_rows, -1), seen.rewards, seen.dones, seen.uncertainty]
        )
        return {(int(row), numbers[place].tobytes()) for place, row in enumerate(which)}

    def _step_s(self, launch_rows: int, *, is_divisible: bool) -> float:
        """Return the median time of a step of a launch, with its share of the copies."""
        steps = _TIMED_STEPS if is_divisible else _TIMED_WHOLE
        rows = probe_rows(launch_rows, steps, self.spec, self.limits)
        times = []
        for _ in range(_TIMED_LAUNCHES):
            started = time.perf_counter()
            self._launched(launch_rows, *rows)
            times.append(time.perf_counter() - started)
        return float(np.median(times)) / steps


def _best_group(bits: Mapping[int, RowBits], step_s: Mapping[int, float]) -> list[int]:
    """Return the row counts, ascending, that give a row the same bits and take least time together.

    Args:
        bits: What rows got, by row count; a launch of few rows has some of them only.
        step_s: Seconds of a step by row count.
    """
    groups = [
        [count for count in step_s if bits[count] <= reference]
        for count, reference in bits.items()
        if count in step_s and len(reference) == ROW_TILE
    ]

    def usual_s(group: list[int]) -> float:
        costs = Costs(tuple(group), tuple(step_s[count] for count in group))
        return math.prod(costs.launch_s(rows, 1) for rows in _USUAL_ROWS)

    return min(groups, key=usual_s)
