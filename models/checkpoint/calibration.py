"""The limits that held-out data fixed, and the evidence for them.

A limit is served only if enough data support it, or if its owner asked for it by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any

from annotated_types import Interval

from models.checkpoint.files import checked, checked_part
from models.conformal import Guarantee, has_values_beyond
from models.spec import Number

HIGHEST_THRESHOLD = 0.5
"""What is more likely to crash than not is never safe."""
DONE_SCALES, DONE_SHIFTS = (0.1, 10.0), (-4.0, 4.0)
"""Smallest and largest scale and shift of hazard logits, for the fit and for what is loaded.

A calibration corrects probabilities and does not replace them: a step that the network finds as
likely to be the last as not keeps a hazard of 1.8 % at least (the logistic function of -4), and a
likelier one keeps more."""
ALLOW_UNGUARANTEED = "allow_unguaranteed"
"""Note of a calibration that limits were asked for which few data cannot support."""

Count = Annotated[int, Interval(ge=0, le=10**12)]
Share = Annotated[float, Interval(ge=0, le=1)]
DoneScale = Annotated[float, Interval(ge=DONE_SCALES[0], le=DONE_SCALES[1])]
DoneShift = Annotated[float, Interval(ge=DONE_SHIFTS[0], le=DONE_SHIFTS[1])]


@dataclass(frozen=True)
class Notes:
    """What the notes of a calibration may hold beside the guarantee; None where nothing was noted.

    Attributes:
        windows: Calibration windows.
        episodes: Episodes that they come from.
        windows_that_end: Windows with the end of their episode.
        false_alarm_rate: Share of harmless windows that was to be called unsafe.
        false_alarm_threshold: Crash threshold that does so.
        realised_false_alarm_rate: That share at the crash threshold.
        doubt_rate: Share of harmless windows that may be unknown, being just below the threshold.
        uncertainty_quantile: Share of windows below the uncertainty limit.
        windows_with_neighbours: Calibration windows in which somebody is near.
        error_quantile: Share of those below the limit of the expected error.
        done_scale: Of hazard logits.
        done_shift: Of hazard logits.
        allow_unguaranteed: Whether limits were asked for that few data cannot support.
    """

    windows: Count | None = None
    episodes: Count | None = None
    windows_that_end: Count | None = None
    false_alarm_rate: Share | None = None
    false_alarm_threshold: Share | None = None
    realised_false_alarm_rate: Share | None = None
    doubt_rate: Share | None = None
    uncertainty_quantile: Share | None = None
    windows_with_neighbours: Count | None = None
    error_quantile: Share | None = None
    done_scale: DoneScale | None = None
    done_shift: DoneShift | None = None
    allow_unguaranteed: bool = False


def _read_notes(notes: dict[str, Any]) -> Notes:
    return checked_part(Notes, notes, "notes")


def _read_guarantee(notes: dict[str, Any]) -> Guarantee | None:
    note = notes.get("conformal")
    return None if note is None else checked(Guarantee, note, "notes.conformal")


@dataclass(frozen=True)
class Calibration:
    """What validation data fixed.

    Attributes:
        crash_threshold: Crash probability from which a sequence is unsafe; None: uncalibrated.
        uncertainty_limit: Largest uncertainty at which "no crash" is trusted; None: unknown.
        state_low: Smallest trained value a feature; empty if unknown.
        state_high: Largest trained value a feature; empty if unknown.
        horizon: Longest evaluated number of steps; 0 if never evaluated.
        notes: How the numbers were obtained.
        safe_below: Crash probability below which a sequence may be safe; from there to the
            threshold it is unknown. None: nothing is unknown for that.
        error_limit_m: Largest expected error at which "no crash" is trusted; None: any.
    """

    crash_threshold: Annotated[float, Interval(gt=0, le=HIGHEST_THRESHOLD)] | None = None
    uncertainty_limit: Annotated[float, Interval(gt=0, le=1e12)] | None = None
    state_low: tuple[Number, ...] = ()
    state_high: tuple[Number, ...] = ()
    horizon: Annotated[int, Interval(ge=0, le=100_000)] = 0
    notes: dict[str, Any] = field(default_factory=dict)
    safe_below: Annotated[float, Interval(gt=0, le=HIGHEST_THRESHOLD)] | None = None
    error_limit_m: Annotated[float, Interval(gt=0, le=1e12)] | None = None

    def __post_init__(self) -> None:
        _compare_counts(_read_notes(self.notes), _read_guarantee(self.notes))
        low, high = self.state_low, self.state_high
        if len(low) != len(high):
            raise ValueError(f"state_low has {len(low)} values, state_high {len(high)}")
        if self.crash_threshold is not None and not low:
            raise ValueError(
                f"crash_threshold is {self.crash_threshold}, but must be null where state_low is "
                "empty: no state is known to be one that the model predicts well"
            )
        if self.safe_below is not None and not (
            self.crash_threshold is not None and self.safe_below <= self.crash_threshold
        ):
            raise ValueError(
                f"safe_below is {self.safe_below}, but must not be above crash_threshold, "
                f"{self.crash_threshold}"
            )
        for i, (least, most) in enumerate(zip(low, high, strict=True)):
            if not least <= most:
                raise ValueError(
                    f"state_low[{i}] is {least}, but must not be above state_high[{i}], {most}"
                )

    @cached_property
    def guarantee(self) -> Guarantee | None:
        """What is guaranteed about the crash threshold; None if nothing was noted."""
        return _read_guarantee(self.notes)

    @property
    def served_threshold(self) -> float | None:
        """The crash threshold, if it keeps a guarantee or was asked for by name without one.

        Checkpoints of earlier versions may hold one that was set on too few episodes; a file may
        have been written by hand.
        """
        guarantee = self.guarantee
        is_guaranteed = guarantee is not None and guarantee.holds_for(self.crash_threshold)
        return self.crash_threshold if is_guaranteed or self._notes.allow_unguaranteed else None

    @property
    def served_uncertainty_limit(self) -> float | None:
        """The uncertainty limit, if enough windows support it or it was asked for by name."""
        notes = self._notes
        is_supported = self._supports(notes.windows, notes.uncertainty_quantile)
        return self.uncertainty_limit if is_supported else None

    @property
    def served_error_limit_m(self) -> float | None:
        """The limit of the expected error, as for uncertainty."""
        notes = self._notes
        is_supported = self._supports(notes.windows_with_neighbours, notes.error_quantile)
        return self.error_limit_m if is_supported else None

    def _supports(self, windows: int | None, quantile: float | None) -> bool:
        """Return whether windows are enough for a quantile, or limits were asked for by name."""
        if self._notes.allow_unguaranteed:
            return True
        return windows is not None and quantile is not None and has_values_beyond(windows, quantile)

    @property
    def refused(self) -> dict[str, float]:
        """Limits that are there, but are not served, as too little supports them; by name."""
        served = {
            "crash_threshold": self.served_threshold,
            "uncertainty_limit": self.served_uncertainty_limit,
            "error_limit_m": self.served_error_limit_m,
        }
        return {name: limit for name, limit in self.held.items() if served[name] is None}

    @property
    def held(self) -> dict[str, float]:
        """Limits that are there, by name."""
        limits = {
            "crash_threshold": self.crash_threshold,
            "uncertainty_limit": self.uncertainty_limit,
            "error_limit_m": self.error_limit_m,
        }
        return {name: limit for name, limit in limits.items() if limit is not None}

    @cached_property
    def _notes(self) -> Notes:
        return _read_notes(self.notes)


def _compare_counts(notes: Notes, guarantee: Guarantee | None) -> None:
    """Refuse counts of parts that are above those of what they are parts of."""
    ending = None if guarantee is None else guarantee.episodes
    for part, count, whole, limit in (
        ("episodes", notes.episodes, "windows", notes.windows),
        ("windows_that_end", notes.windows_that_end, "windows", notes.windows),
        ("windows_with_neighbours", notes.windows_with_neighbours, "windows", notes.windows),
        ("conformal.episodes", ending, "episodes", notes.episodes),
        ("conformal.episodes", ending, "windows_that_end", notes.windows_that_end),
        ("conformal.episodes", ending, "windows", notes.windows),
    ):
        if count is not None and limit is not None and count > limit:
            raise ValueError(
                f"notes.{part} is {count}, but must not be above notes.{whole}, {limit}"
            )
