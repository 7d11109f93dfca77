"""What is in a data set, what is wrong with it, and what can be trained on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.conformal import Guarantee
from models.spec import Feature, Spec
from training.dataset.episodes import (
    FORMAT,
    OPTIONAL_ARRAYS,
    SLOT_IDS,
    TRUE_STATES,
    EpisodeError,
    begins_step,
    paths_of,
    read_head,
    read_shard,
    shard_faults,
)
from training.dataset.sources import Simulated
from training.dataset.store import load_store, read_manifest
from training.dataset.windows import ENOUGH_EPISODES, SPLIT_SHARES, split_at_random
from training.fitting.options import TrainOptions

_MOST_FAULTS = 20
_USUAL = TrainOptions()


@dataclass(frozen=True)
class Report:
    """What a data set holds.

    Attributes:
        text: For a person, several lines.
        faults: One sentence each, at most `_MOST_FAULTS`.
    """

    text: str
    faults: tuple[str, ...]


@dataclass
class _Range:
    """Smallest, largest and mean value of each feature of a kind, over all frames."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    total: NDArray[np.float64]
    count: int = 0

    @classmethod
    def of(cls, dim: int) -> _Range:
        return cls(np.full(dim, np.inf), np.full(dim, -np.inf), np.zeros(dim))

    def add(self, values: NDArray[np.float32]) -> None:
        self.low = np.fmin(self.low, values.min(0, initial=np.inf))
        self.high = np.fmax(self.high, values.max(0, initial=-np.inf))
        self.total += values.sum(0, dtype=np.float64)
        self.count += len(values)


@dataclass
class _Seen:
    """What was found in the shards that were read."""

    states: _Range
    actions: _Range
    rewards: _Range
    steps: list[NDArray[np.int64]] = field(default_factory=list)
    terminated: list[NDArray[np.uint8]] = field(default_factory=list)
    given: frozenset[str] = frozenset()


def check(folder: Path, seed: int = 0) -> Report:
    """Look at a data set of episodes of any spec, a shard at a time.

    Args:
        folder: What `training.dataset.writer.EpisodeWriter` wrote, or `world-model collect`.
        seed: Of the split, as for training.
    """
    try:
        if read_manifest(folder).get("format") != FORMAT:
            return Report(_simulated(Simulated(load_store(folder)), seed), ())
        spec, manifest = read_head(folder)
    except ValueError as exc:
        return Report(f"{folder} cannot be read", (str(exc),))
    faults: list[str] = []
    try:
        paths = paths_of(folder, manifest)
    except EpisodeError as exc:
        faults.append(str(exc))
        paths = [folder / name for name in manifest["shards"]]
    seen = _Seen(_Range.of(spec.state_dim), _Range.of(spec.action_dim), _Range.of(1))
    for path in paths:
        _look(path, spec, seen, faults)
    faults += _missing(seen, seed)
    return Report(_described(spec, manifest, seen, seed), tuple(faults[:_MOST_FAULTS]))


def _missing(seen: _Seen, seed: int) -> list[str]:
    """Say what a training would lack."""
    if not seen.steps:
        return []
    terminated = np.concatenate(seen.terminated)
    faults = []
    if not terminated.any():
        faults.append("no episode ends: there is nothing to learn an end from")
    parts = split_at_random(np.arange(len(terminated)), seed)
    if empty := [name for name, part in parts.items() if not len(part)]:
        faults.append(
            f"{len(terminated)} episodes are too few: the split leaves none for {empty[0]}; "
            f"{ENOUGH_EPISODES} are always enough"
        )
    return faults


def _look(path: Path, spec: Spec, seen: _Seen, faults: list[str]) -> None:
    """Read a shard and note what it holds."""
    try:
        arrays = read_shard(path, spec)
    except EpisodeError as exc:
        faults.append(str(exc))
        return
    faults.extend(f"{path}, {fault}" for fault in islice(shard_faults(arrays, spec), _MOST_FAULTS))
    counts = arrays["frame_count"]
    given = frozenset(OPTIONAL_ARRAYS) & arrays.keys()
    if seen.steps and given != seen.given:
        faults.append(f"{path}: {min(given ^ seen.given)} must be in all shards or in none")
    seen.given = given
    begins = begins_step(len(arrays["rewards"]), arrays["frame_start"] + counts - 1)
    seen.states.add(arrays["states"])
    seen.actions.add(arrays["actions"][begins])
    seen.rewards.add(arrays["rewards"][begins][:, None])
    seen.steps.append(counts - 1)
    seen.terminated.append(arrays["terminated"])


def _described(spec: Spec, manifest: dict[str, Any], seen: _Seen, seed: int) -> str:
    if not seen.steps:
        return "no shard could be read"
    steps, terminated = np.concatenate(seen.steps), np.concatenate(seen.terminated)
    parts = split_at_random(np.arange(len(steps)), seed)
    lines = [
        f"Spec {spec.name!r}: {spec.state_dim} state and {spec.action_dim} action features, steps "
        f"of {spec.dt_s:g} s",
        f"Origin: {manifest.get('origin') or 'not noted'}",
        f"{len(steps)} episodes of {steps.min()} to {steps.max()} steps, {steps.sum()} steps "
        f"({steps.sum() * spec.dt_s:.0f} s) in all; {terminated.sum()} end",
        *_lengths(steps, terminated > 0),
        "",
        *_table([*spec.state], seen.states),
        *_table([*spec.action], seen.actions),
        f"reward: {seen.rewards.low[0]:.4g} to {seen.rewards.high[0]:.4g}, mean "
        f"{seen.rewards.total[0] / max(1, seen.rewards.count):.4g}",
        "",
        *_outlook(steps, terminated, parts),
    ]
    if spec.geometry is not None and spec.geometry.slots and SLOT_IDS not in seen.given:
        lines.append(
            "No slot_ids: each slot is taken for one neighbour throughout an episode. If your "
            "slots change hands, give the writer slot_ids."
        )
    if TRUE_STATES in seen.given:
        lines.append(f"{TRUE_STATES} are what predictions are compared with; above are states.")
    return "\n".join(lines)


def _lengths(steps: NDArray[np.int64], ends: NDArray[np.bool_]) -> list[str]:
    """Say how long episodes of both kinds are: if they were mixed up, it shows."""
    kinds = ((ends, "end"), (~ends, "do not end"))
    return [
        f"{is_kind.sum()} episodes {what}, after {steps[is_kind].min()} to {steps[is_kind].max()} "
        "steps"
        for is_kind, what in kinds
        if is_kind.any()
    ]


def _table(features: Sequence[Feature], found: _Range) -> list[str]:
    """Return a line a feature: what was found, beside what the spec allows."""
    width = max(len(feature.name) for feature in features)
    lines = []
    for i, feature in enumerate(features):
        note = "  constant: it tells nothing" if found.low[i] == found.high[i] else ""
        lines.append(
            f"{feature.name:<{width}}  {found.low[i]:>11.4g} to {found.high[i]:<11.4g} mean "
            f"{found.total[i] / max(1, found.count):<11.4g} of {feature.low:g} to "
            f"{feature.high:g} {feature.unit}{note}"
        )
    return lines


def _outlook(
    steps: NDArray[np.int64], terminated: NDArray[np.uint8], parts: dict[str, NDArray[np.int64]]
) -> list[str]:
    """Say what the episodes are enough for."""
    calibration = parts["calibration"]
    in_time = (terminated[calibration] > 0) & (steps[calibration] >= _USUAL.lead_steps)
    needed = Guarantee(_USUAL.miss_rate, 0.0, 0, None).episodes_needed
    lines = [
        "Split: " + ", ".join(f"{len(part)} {name}" for name, part in parts.items()),
        f"Calibration episodes that end, {_USUAL.lead_steps} steps or more after their start: "
        f"{in_time.sum()}; {needed} are needed to guarantee a miss rate of {_USUAL.miss_rate:g}",
    ]
    if in_time.sum() < needed:
        lines.append(
            "Too few: there would be no crash threshold, and no verdict but unknown. Record about "
            f"{math.ceil((needed - in_time.sum()) / SPLIT_SHARES['calibration'])} more episodes "
            "that end, or allow more misses (--miss-rate of calibrate)."
        )
    return lines


def _simulated(data: Simulated, seed: int) -> str:
    parts, store = data.split(seed), data.store
    crashes, off_road = ((store.cause == i).sum() for i in (1, 2))
    return (
        f"Recorded by world-model collect: {len(data)} episodes, {(store.frame_count - 1).sum()} "
        f"steps; {crashes} end in a crash, {off_road} off the road\n"
        "Split: " + ", ".join(f"{len(part)} {name}" for name, part in parts.items())
    )
