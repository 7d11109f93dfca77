"""What a checkpoint's verdicts amount to on windows whose outcome is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.checkpoint import Checkpoint
from models.safety import SAFE, UNKNOWN, assess
from training.dataset.windows import Windows
from training.fitting.calibrate import predict_windows


@dataclass(frozen=True)
class Rates:
    """Shares of windows, each None if there is no such window or no crash threshold.

    Attributes:
        ending: Number of windows within which the episode ends.
        harmless: Number of the others.
        threshold: The crash threshold; None if there is none.
        recall: Of those that end, how many reach the threshold.
        safe_of_ending: Of those that end, how many are called safe.
        false_alarms: Of the others, how many reach the threshold.
        unknown: Of the others, how many verdicts are unknown.
    """

    ending: int
    harmless: int
    threshold: float | None
    recall: float | None
    safe_of_ending: float | None
    false_alarms: float | None
    unknown: float | None

    def __str__(self) -> str:
        """Say it in one sentence."""
        if self.threshold is None:
            return "there is no crash threshold: every verdict is unknown"
        return (
            f"the threshold {self.threshold:.4g} is reached by {_share(self.recall)} of "
            f"{self.ending} windows that end and by {_share(self.false_alarms)} of "
            f"{self.harmless} others; of the first {_share(self.safe_of_ending)} are called safe, "
            f"of the others {_share(self.unknown)} are unknown"
        )


def rates_of(checkpoint: Checkpoint, windows: Windows) -> Rates:
    """Judge windows as the service would.

    Args:
        checkpoint: Whose limits count.
        windows: Of known outcome.
    """
    found = predict_windows(checkpoint.ensemble, windows)
    verdicts = assess(
        found.states,
        found.dones,
        found.uncertainty,
        checkpoint.limits,
        actions=windows.actions,
    )
    alarmed = np.array([x.time_to_crash_s is not None for x in verdicts])
    safe, unknown = (np.array([x.verdict == y for x in verdicts]) for y in (SAFE, UNKNOWN))
    threshold, ends = checkpoint.limits.crash_threshold, windows.ends

    def share(hits: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> float | None:
        return float(hits.mean()) if len(hits) and threshold is not None else None

    return Rates(
        ending=int(ends.sum()),
        harmless=int((~ends).sum()),
        threshold=threshold,
        recall=share(alarmed[ends]),
        safe_of_ending=share(safe[ends]),
        false_alarms=share(alarmed[~ends]),
        unknown=share(unknown[~ends]),
    )


def _share(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.3g} %"
