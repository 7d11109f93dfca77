"""What an evaluation is made on: windows of whole episodes, and whether they show enough."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.checkpoint import Checkpoint
from training.dataset.overlap import HeldOut
from training.dataset.sources import Dataset
from training.dataset.windows import ENOUGH_EPISODES, Windows
from training.evaluation.judgements import STRIDE, Trial
from training.evaluation.methods import Lineup
from training.evaluation.state_errors import survivors

CALIBRATION_STRIDE = 4
"""Quantiles gain nothing from windows that overlap even more."""
_EPISODES_AT_ONCE = 10


class Cutter:
    """Cuts windows of episodes: of all, or of as many at random as a quick evaluation takes.

    Args:
        data: Where the episodes are.
        horizon: Steps of a window.
        most: Windows of whole episodes that are enough; None: all.
    """

    def __init__(self, data: Dataset, horizon: int, most: int | None) -> None:
        self.data = data
        self._horizon = horizon
        self._most = most

    def of(self, data: Dataset) -> Cutter:
        """Return one that cuts windows of other data in the same way."""
        return Cutter(data, self._horizon, self._most)

    def __call__(self, episodes: NDArray[np.int64], stride: int) -> Windows:
        """Return windows of the episodes, in their order."""
        if self._most is None:
            return self.data.windows(episodes, self._horizon, stride)
        order = np.random.default_rng(0).permutation(episodes)
        parts: list[Windows] = []
        for start in range(0, len(order), _EPISODES_AT_ONCE):
            some = np.sort(order[start : start + _EPISODES_AT_ONCE])
            parts.append(self.data.windows(some, self._horizon, stride))
            if sum(map(len, parts)) >= self._most:
                break
        joined = Windows.joined(parts)
        return joined.take(np.lexsort((joined.start_step, joined.episode)))


def prepared(
    folder: Path, checkpoint: Checkpoint, cut: Cutter, held: HeldOut, bootstrap: int
) -> tuple[Trial, str]:
    """Return the trial of all methods on test windows, and "".

    If that cannot be, return the trial of the model alone on all that it was not trained on, and
    what is lacking.

    Raises:
        ValueError: No window goes on for the whole horizon.
    """
    parts, dt_s = held.episodes, checkpoint.spec.dt_s
    known: dict[str, Windows] = {}
    lacking = _lacking_split(folder, len(cut.data), parts)
    for name, stride in (("validation", STRIDE), ("calibration", CALIBRATION_STRIDE)):
        if not lacking:
            windows = cut(parts[name], stride)
            known[name] = windows.take(windows.is_known)
            lacking = _lacking_outcomes(known[name], name, dt_s)
    if not lacking:
        lineup = Lineup.fit(checkpoint, known["validation"], known["calibration"])
        test = Trial.of(cut.data, lineup, cut(parts["test"], STRIDE), bootstrap)
        lacking = _lacking_outcomes(test.windows, "test", dt_s)
        if not lacking:
            return test, ""
    is_own = held.note["origin"] == "own split"
    untrained = [part for name, part in parts.items() if not (is_own and name == "train")]
    windows = cut(np.sort(np.concatenate(untrained)), STRIDE)
    if not survivors(windows).any():
        raise ValueError(lacking)
    return Trial.of(cut.data, Lineup(checkpoint, {}, {}), windows, bootstrap), lacking


def _lacking_split(folder: Path, count: int, parts: dict[str, NDArray[np.int64]]) -> str:
    for name in ("validation", "calibration", "test"):
        if not len(parts[name]):
            return (
                f"{folder} holds {count} episodes, of which the split leaves none for {name}: "
                f"record {ENOUGH_EPISODES} or more, of both that end and that do not"
            )
    return ""


def _lacking_outcomes(windows: Windows, part: str, dt_s: float) -> str:
    ends, count = windows.ends, len(np.unique(windows.episode))
    if ends.any() and not ends.all():
        return ""
    needed = "episodes that end" if not ends.any() else "episodes that go on for longer"
    return (
        f"the {part} split has {len(windows)} windows of known outcome within "
        f"{windows.horizon * dt_s:g} s, of {count} episodes, {int(ends.sum())} of which "
        f"terminate: {needed} are needed, too"
    )
