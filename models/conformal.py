"""What calibration episodes can guarantee about the crash threshold. NumPy only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray

LOWEST_ALPHA, HIGHEST_ALPHA = 0.0001, 0.5
"""Miss rates that somebody may want: of 10,000 crashes at least one, of two not both."""


@dataclass(frozen=True)
class Guarantee:
    """An episode that ends gets no alarm in time with at most a given probability.

    Attributes:
        alpha: That probability, the miss rate.
        lead_s: In time means this long before the end, or earlier.
        episodes: Calibration episodes that end, and whose end could be seen coming in time.
        threshold: Highest crash threshold that keeps the guarantee; None if the episodes are too
            few for any.

    Raises:
        ValueError: There is a threshold, and the episodes are too few for any.
    """

    alpha: Annotated[float, Interval(ge=LOWEST_ALPHA, le=HIGHEST_ALPHA)]
    lead_s: Annotated[float, Interval(ge=0, le=3600)]
    episodes: Annotated[int, Interval(ge=0, le=10**12)]
    threshold: Annotated[float, Interval(ge=0, le=1)] | None

    def __post_init__(self) -> None:
        if self.threshold is not None and not _rank(self.episodes, self.alpha):
            raise ValueError(
                f"threshold is {self.threshold:g}, but must be null: episodes is {self.episodes}, "
                f"and an alpha of {self.alpha:g} needs {self.episodes_needed}"
            )

    @property
    def episodes_needed(self) -> int:
        """Fewest episodes with which there can be a guarantee."""
        count = math.ceil(min(1 / self.alpha, 1e15)) - 1  # the division may end in infinity
        # Division rounds: 49 times the float next to 1 / 49 is less than 1.
        return count if _rank(count, self.alpha) else count + 1

    def holds_for(self, crash_threshold: float | None) -> bool:
        """Say whether a crash threshold, None if there is none, keeps the guarantee."""
        return (
            crash_threshold is not None
            and self.threshold is not None
            and crash_threshold <= self.threshold
        )


def conformal_threshold(scores: NDArray[np.float64], miss_rate: float) -> float | None:
    """Return the highest threshold that misses a new episode with at most a given probability.

    Split conformal prediction (Vovk, Gammerman, Shafer 2005; Angelopoulos and Bates 2021, "A
    gentle introduction to conformal prediction"): among n exchangeable scores and a new one, the
    new one is below the k-th smallest of the n with probability at most k / (n + 1).

    Args:
        scores: [n], highest crash probability that each episode that ends was given in time.
        miss_rate: Allowed probability, alpha.

    Returns:
        The floor(alpha (n + 1))-th smallest score; None if n is too small for any guarantee.
    """
    k = _rank(len(scores), miss_rate)
    return float(np.sort(scores)[k - 1]) if k >= 1 else None


def has_values_beyond(count: int, share: float) -> bool:
    """Return whether a quantile of values has one of them beyond it, so that not one decides it.

    Args:
        count: Number of values.
        share: Of them that lie below the quantile.
    """
    # Rounded: 1 - 0.999 is 0.0010000000000000009 in binary.
    return round(count * (1 - share), 9) >= 1


def _rank(count: int, miss_rate: float) -> int:
    return int(miss_rate * (count + 1))
