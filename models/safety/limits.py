"""What a verdict is judged by, and what it may say against a sequence."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from models.safety.expected_error import ExpectedError
from models.safety.physics import PhysicalMotion

Floats = NDArray[np.floating]

RULES = (
    "crash_probability",
    "input_out_of_range",
    "input_impossible",
    "not_finite",
    "not_calibrated",
    "crash_not_excluded",
    "predicted_contact",
    "physics_contact",
    "uncertain",
    "uncertainty_unavailable",
    "horizon_not_evaluated",
)
"""Every rule that a `Reason` can name."""

NOT_CALIBRATED = "the checkpoint has no calibrated crash threshold"


@dataclass(frozen=True)
class Reason:
    """A rule that fired, one of `RULES`, and what it saw."""

    rule: str
    message: str


@dataclass(frozen=True)
class SafetyLimits:
    """What a verdict is judged by; part of a checkpoint.

    Attributes:
        crash_threshold: Crash probability from which a sequence is unsafe; None if the model
            was never calibrated.
        uncertainty_limit: Uncertainty up to which "no crash" is trusted; None if it was never
            calibrated or the served ensemble has one member.
        state_low: [S], smallest trained values; -inf where unknown.
        state_high: [S], largest trained values; inf where unknown.
        horizon: Longest evaluated number of steps.
        feature_names: S names of the state features.
        dt_s: Length of a step.
        safe_below: Crash probability below which a sequence may be safe; from there to the
            threshold it is unknown. None: nothing is unknown for that.
        expected_error: How wrong the neighbours' places will probably be; None if nobody knows.
        error_limit_m: Expected error up to which "no crash" is trusted; None: any.
        slots: Columns of presence, dx and dy of each neighbour, [slots, 3]; of one without a
            presence, that of its length comes first.
        apart_m: Width of a vehicle whose size is not known: centres of two cannot be closer.
        headings: Column of each neighbour's heading; empty if the features do not show whether
            one touches the ego.
        length_m: Length of a vehicle whose size is not known.
        edges: Columns of distances to road edges, negative beyond them.
        uncalibrated: Why there is no crash threshold, for a person.
        sides: Columns of the distances to the left and to the right edge of one road; empty if they
            are not known.
        sizes: Columns of each neighbour's length and width, none for one of whom they are not
            features; empty if they are for nobody.
        ego_size: Columns of the ego's length and width; empty if they are not features.
        largest_m: The longest and the widest that somebody can be.
        physics: Motion without anything learned; None: there is none for these features.
        has_disagreement: Whether several members answer: one disagrees with nobody, which is not
            certainty.
    """

    crash_threshold: float | None
    uncertainty_limit: float | None
    state_low: Floats
    state_high: Floats
    horizon: int
    feature_names: tuple[str, ...]
    dt_s: float
    safe_below: float | None = None
    expected_error: ExpectedError | None = None
    error_limit_m: float | None = None
    slots: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 3), np.int64))
    apart_m: float = 0.0
    headings: tuple[int, ...] = ()
    length_m: float = 0.0
    edges: tuple[int, ...] = ()
    uncalibrated: str = NOT_CALIBRATED
    sides: tuple[int, ...] = ()
    sizes: tuple[tuple[int, ...], ...] = ()
    ego_size: tuple[int, ...] = ()
    largest_m: tuple[float, float] = (np.inf, np.inf)
    physics: PhysicalMotion | None = None
    has_disagreement: bool = True

    def __post_init__(self) -> None:
        dim = len(self.feature_names)
        for name in ("state_low", "state_high"):
            # Another size would be broadcast: one bound for all features.
            if np.shape(getattr(self, name)) != (dim,):
                raise ValueError(f"{name} has shape {np.shape(getattr(self, name))}, not ({dim},)")
        if self.slots.shape[1:] != (3,) or not np.isin(self.slots, range(dim)).all():
            raise ValueError(f"slots must be columns below {dim}, [slots, 3], got {self.slots}")
        if self.expected_error is not None and self.expected_error.least_state_dim > dim:
            raise ValueError(
                f"the expected error reads {self.expected_error.least_state_dim} features, the "
                f"state has {dim}"
            )
        for name in ("headings", "edges", "sides", "ego_size"):
            if not set(getattr(self, name)) <= set(range(dim)):
                raise ValueError(f"{name} must be columns below {dim}, got {getattr(self, name)}")
        self._check_sizes(dim)
        if self.headings and (len(self.headings) != len(self.slots) or not self.length_m > 0):
            raise ValueError(
                f"{len(self.headings)} headings and the length_m {self.length_m} do not fit "
                f"{len(self.slots)} slots"
            )

    def for_fewer(self, members: int, held: int) -> SafetyLimits:
        """Return what verdicts are judged by if only the first members of an ensemble answer.

        They have no thresholds: those of all were fitted to the mean and the spread of all.

        Args:
            members: That answer.
            held: That the thresholds were calibrated for.
        """
        return replace(
            self,
            crash_threshold=None,
            safe_below=None,
            expected_error=None,
            error_limit_m=None,
            uncertainty_limit=None,
            has_disagreement=members > 1,
            uncalibrated=f"{members} of {held} members answer, and the checkpoint's thresholds "
            "hold for all together",
        )

    def _check_sizes(self, dim: int) -> None:
        """Refuse columns of sizes that would be of somebody else, or ask nothing."""
        if len(self.sizes) not in (0, len(self.slots)):
            raise ValueError(f"{len(self.sizes)} sizes do not fit {len(self.slots)} slots")
        for columns in (*self.sizes, self.ego_size):
            if len(columns) not in (0, 2) or not set(columns) <= set(range(dim)):
                raise ValueError(f"sizes must be pairs of columns below {dim}, got {columns}")
        if any(self.sizes) and not self.headings:
            raise ValueError("sizes need headings: how far who reaches depends on them")

    @cached_property
    def places(self) -> list[tuple[int, int, int, int, int | None, tuple[int, ...]]]:
        """Number and columns of each slot: gate, dx, dy, heading or None, and those of its size.

        As numbers of Python's, which are quicker to use one by one.
        """
        count = len(self.slots)
        headings, sizes = self.headings or (None,) * count, self.sizes or ((),) * count
        return [
            (number, *columns, heading, size)
            for number, (columns, heading, size) in enumerate(
                zip(self.slots.tolist(), headings, sizes, strict=True), 1
            )
        ]

    @cached_property
    def motion_columns(self) -> NDArray[np.int64]:
        """Columns of dx of each neighbour with a heading, then of dy, of heading, and of edges."""
        places = self.slots[: len(self.headings), 1:].T.ravel().tolist()
        return np.array([*places, *self.headings, *self.edges], np.int64)

    @cached_property
    def size_columns(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Columns of length and width of the ego and of each neighbour, [1 + slots, 2].

        And of whom they are no features, [1 + slots, 1]; columns are 0 there.
        """
        pairs = [self.ego_size, *(size for *_, size in self.places)]
        columns = np.array([pair or (0, 0) for pair in pairs], np.int64)
        return columns, np.array([[not pair] for pair in pairs])
