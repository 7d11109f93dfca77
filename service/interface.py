"""The seam between engine, scheduling and HTTP: arrays in, arrays out, and who they belong to.

NumPy only, so that whoever imports it loads neither torch nor a web framework.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

from models.attribution.shares import Attribution, Pieces
from models.conformal import Guarantee
from models.prediction import Array, Prediction, version_of
from models.safety import SafetyLimits
from models.spec import Spec

__all__ = [
    "Array",
    "Attribution",
    "Costs",
    "EngineLike",
    "Headers",
    "ModelInfo",
    "Pieces",
    "Prediction",
    "Running",
]

Headers = Mapping[bytes, bytes]
"""HTTP headers by name in lower case; as `telemetry` gets them, which may not import `http`."""


@dataclass(frozen=True)
class ModelInfo:
    """What clients and dashboards may know about the loaded model.

    Attributes:
        name: Name of the checkpoint.
        version: Hash of all that decides the answers, and how many members of the checkpoint's do,
            if not all; `model_version` in answers by all that are served.
        device: "cpu", or the accelerator's name.
        members: Served members of the ensemble.
        spec: Meaning of the features.
        limits: What safety verdicts are judged by.
        metrics: How the checkpoint did on held-out episodes.
        guarantee: What is promised about the crash threshold; None if nothing was noted.
        refused: Limits of the checkpoint that are not served, as too little vouches for them; by
            name.
        held_members: Members of the checkpoint, if only some of them are served; else None.
        answer_digest: Of this engine's answers to fixed questions: engines that have the same one
            give the same bits.
    """

    name: str
    version: str
    device: str
    members: int
    spec: Spec
    limits: SafetyLimits
    metrics: Mapping[str, Any]
    guarantee: Guarantee | None = None
    refused: Mapping[str, float] = field(default_factory=dict)
    held_members: int | None = None
    answer_digest: str = ""

    def of(self, members: int | None) -> ModelInfo:
        """Return what is known about the first members alone.

        They are another version, without thresholds, just as if only they were served.

        Args:
            members: How many, fewer than are served; None: all that are served.
        """
        if members is None:
            return self
        held = self.held_members or self.members
        return replace(
            self,
            version=version_of(self.version, members, held),
            members=members,
            held_members=held,
            limits=self.limits.for_fewer(members, held),
            guarantee=None,
            answer_digest="",
        )


LITTLE_LONGER = 1.5
"""How much longer than the smallest launch one may take whatever it holds up."""


@dataclass(frozen=True)
class Costs:
    """Durations of launches, undisturbed.

    Attributes:
        launch_rows: Row counts of launches, ascending.
        step_s: Seconds of one step of a launch of each row count, with its share of the copies.
        is_divisible: Whether a launch can be left between steps and gone on with later.
        fewer: Costs of launches by 1, 2, ... members of the ensemble, up to all but one; none: they
            cost what those by all do.
    """

    launch_rows: tuple[int, ...]
    step_s: tuple[float, ...]
    is_divisible: bool = True
    fewer: tuple[Costs, ...] = ()

    def of(self, members: int | None) -> Costs:
        """Return the costs of launches by so many members; None: by all."""
        if members is None or members > len(self.fewer):
            return self
        return self.fewer[members - 1]

    def launch_s(self, rows: int, steps: int, most_rows: int | None = None) -> float:
        """Return how long `steps` steps of `rows` rows take, in as many launches as needed.

        Args:
            rows: Together.
            steps: Of each row.
            most_rows: Those of a launch; all launches but the last have so many. The biggest ones
                if None.
        """
        step_s_of, most = self.step_s_of, most_rows or self.launch_rows[-1]
        whole, rest = divmod(rows, most)
        seconds = whole * steps * step_s_of[most]
        if rest:
            seconds += steps * step_s_of[rest]
        return seconds

    @cached_property
    def step_s_of(self) -> list[float]:
        """Seconds of one step by the rows that take it, up to those of the biggest launch."""
        most = self.launch_rows[-1]
        return [self.step_s[bisect_left(self.launch_rows, rows)] for rows in range(most + 1)]

    def job_s(self, rows: int, horizon: int, seconds: float) -> float:
        """Return how long a job takes in equal launches, each of at most `most_rows`."""
        parts = -(-rows // self.most_rows(seconds, horizon))
        return parts * horizon * self.step_s_of[-(-rows // parts)]

    def most_rows(self, seconds: float, horizon: int) -> int:
        """Return the rows of the biggest launch that occupies the engine for no longer at once.

        Where launches can be left between steps, that is one step, and the smallest launch is
        always allowed. Else it is the whole horizon, and every launch is allowed that takes at most
        `LITTLE_LONGER` times as long as the smallest one: nobody would wait less for that one, and
        on a GPU it has few rows.
        """
        step_s = seconds
        if not self.is_divisible:
            step_s = max(seconds / horizon, LITTLE_LONGER * self.step_s[0])
        for rows, seconds_a_step in self._biggest_first:
            if seconds_a_step <= step_s:
                return rows
        return self.launch_rows[0]

    @cached_property
    def _biggest_first(self) -> list[tuple[int, float]]:
        return list(zip(reversed(self.launch_rows), reversed(self.step_s), strict=True))


class Running(Protocol):
    """Rows that an engine has begun to compute."""

    @property
    def is_complete(self) -> bool:
        """Whether all rows have taken all their steps."""

    def advance(self, steps: int, stop_when_readable: int | None = None) -> int:
        """Compute up to `steps` more steps; return how many.

        Args:
            steps: At most.
            stop_when_readable: File descriptor; when it is readable, an engine on a CPU stops
                early. None, or below 0: there is none.
        """

    def result(self) -> Prediction:
        """Return the prediction, once it is complete."""


class EngineLike(Protocol):
    """What the app needs of an engine; `service.engine.Engine` and the tests' fake have it.

    `begin`, `explain`, `canary` and the methods of what is running are called from one thread at a
    time.
    """

    @property
    def load_s(self) -> float:
        """Seconds from start to warm."""

    @property
    def costs(self) -> Costs:
        """What launches cost, undisturbed."""

    @property
    def is_quick_to_call(self) -> bool:
        """Whether a short call may be made on the event loop: it computes and never waits."""

    def describe(self) -> ModelInfo:
        """Return what is known about the model."""

    def begin(
        self, states: Array, actions: Array, part_rows: int, members: int | None = None
    ) -> Running:
        """Take rows to compute: states [B, S], actions [B, H, A].

        Args:
            states: Start of each row.
            actions: Of each row.
            part_rows: Rows that take their steps together, before the next ones do.
            members: How many compute, the first ones, fewer than are served; None: all.
        """

    def explain(self, state: Array, actions: Array, members: int | None = None) -> Pieces:
        """Return what attributes the crash probability of a sequence; nothing is computed yet.

        Args:
            state: [S].
            actions: [H, A].
            members: As for `begin`.
        """

    def canary(self) -> None:
        """Make one small real forward pass; raise if it fails."""

    @property
    def is_lost(self) -> bool:
        """Whether the device is gone for this process: only another one can use it."""

    def vram(self) -> Mapping[str, int] | None:
        """Return bytes of device memory by kind; None without a GPU. Any thread."""

    def utilization(self) -> float | None:
        """Return the share of time in which a GPU computes; None if unknown. Any thread."""

    def report_errors_to(self, count: Callable[[str], None]) -> None:
        """Have errors that the engine survives counted by kind."""
