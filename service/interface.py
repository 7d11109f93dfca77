"""The seam between engine, scheduler and routes: arrays in, arrays out, and who they belong to.

NumPy only, so that whoever imports it loads neither torch nor a web framework.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from models.conformal import Guarantee
from models.prediction import Array, Prediction
from models.safety import SafetyLimits
from models.spec import Spec
from service.costs import Costs

__all__ = ["Array", "Costs", "EngineLike", "Headers", "ModelInfo", "Prediction", "Running"]

Headers = Mapping[bytes, bytes]
"""HTTP headers by name in lower case; for `http` and `telemetry`, which may not meet."""


@dataclass(frozen=True)
class ModelInfo:
    """What clients and dashboards may know about the loaded model.

    Attributes:
        name: Name of the checkpoint.
        version: Hash of all that decides the answers; `model_version` in answers.
        device: "cpu", or the accelerator's name.
        members: Served members of the ensemble.
        spec: Meaning of the features.
        limits: What safety verdicts are judged by.
        metrics: How the checkpoint did on held-out episodes.
        guarantee: What is promised about the crash threshold; None if nothing was noted.
    """

    name: str
    version: str
    device: str
    members: int
    spec: Spec
    limits: SafetyLimits
    metrics: Mapping[str, Any]
    guarantee: Guarantee | None = None


class Running(Protocol):
    """Rows that an engine has begun to compute."""

    @property
    def is_complete(self) -> bool:
        """Whether all rows have taken all their steps."""

    def advance(self, steps: int, watched: int = -1) -> int:
        """Compute up to so many more steps; return how many.

        Args:
            steps: At most.
            watched: File descriptor; when it is readable, those who can stop early. None if -1.
        """

    def result(self) -> Prediction:
        """Return the prediction, once it is complete."""


class EngineLike(Protocol):
    """What the app needs of an engine; `service.engine.Engine` and the tests' fake have it.

    `begin`, `canary` and the methods of what is running are called from one thread at a time.
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

    def begin(self, states: Array, actions: Array, part_rows: int) -> Running:
        """Take rows to compute: states [B, S], actions [B, H, A].

        Args:
            states: Start of each row.
            actions: Of each row.
            part_rows: Rows that take their steps together, before the next ones do.
        """

    def canary(self) -> None:
        """Make one small real forward pass; raise if it fails."""

    def vram(self) -> Mapping[str, int] | None:
        """Return bytes of device memory by kind; None without a GPU. Any thread."""

    def utilization(self) -> float | None:
        """Return the share of time in which a GPU computes; None if unknown. Any thread."""

    def report_errors_to(self, count: Callable[[str], None]) -> None:
        """Have errors that the engine survives counted by kind."""
