"""What a crash probability is attributed to, as plain arrays. NumPy only."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Group:
    """Features that belong together, and their share.

    Attributes:
        name: "neighbour_1" and so on for those in the slots, "road", "actions", or "others".
        contribution: Sum over its features.
        without: The crash probability if this group alone is taken away: the neighbour's slot is
            empty, or the features are the baseline's.
    """

    name: str
    contribution: float
    without: float


@dataclass(frozen=True)
class Attribution:
    """What the crash probability of one sequence is attributed to. Numbers may be NaN.

    Attributes:
        baseline: Its name, of `models.attribution.scene`.
        baseline_state: [S].
        baseline_action: [A], of every step.
        crash_probability: Of the sequence.
        baseline_probability: Of the baseline.
        state: [S], contributions; with those of the actions they add up to the difference of the
            two probabilities, but for the `residual`.
        actions: [H, A], contributions.
        state_gradients: [S], derivatives of the crash probability at the sequence, for a change of
            one spread.
        action_gradients: [H, A], likewise.
        state_spreads: [S], standard deviations of the training states.
        action_spreads: [A], half of each one's range.
        state_changed: [S, 2, 2]: the feature one spread lower, and one higher, within its range;
            of each the value and the crash probability. NaN where there is no such value.
        action_changed: [A, 2], crash probabilities with the feature one spread lower, and one
            higher, in all steps, within its range.
        groups: The largest contribution first.
    """

    baseline: str
    baseline_state: Floats
    baseline_action: Floats
    crash_probability: float
    baseline_probability: float
    state: Floats
    actions: Floats
    state_gradients: Floats
    action_gradients: Floats
    state_spreads: Floats
    action_spreads: Floats
    state_changed: Floats
    action_changed: Floats
    groups: tuple[Group, ...]

    @property
    def residual(self) -> float:
        """What the contributions lack, as a path of few points is no integral."""
        difference = self.crash_probability - self.baseline_probability
        return float(difference - self.state.sum() - self.actions.sum())


Pieces = Generator[None, None, Attribution]
"""An attribution under way: each `next` computes for milliseconds, the end returns it."""
