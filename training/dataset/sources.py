"""A data set of either format, as training, calibration and evaluation take it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.spec import Spec
from training.dataset.episodes import FORMAT, Episodes, load_episodes
from training.dataset.store import EpisodeStore, load_store, read_manifest
from training.dataset.tracker_models import DRAWN
from training.dataset.trackers import Tracking
from training.dataset.windows import (
    Windows,
    cut_windows,
    make_windows,
    split_at_random,
    split_episodes,
)
from training.simulation.fleets import CARS, check_fleet, spec_of
from training.simulation.simulator import CAUSES, HIGHWAY

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Labels:
    """What was noted of E episodes beside their frames.

    Attributes:
        cause: [E], why it ended: index into `causes`, 0 if it did not.
        causes: The first one is `none`.
        behaviours: Meaning of `Windows.behaviour`.
        environments: Meaning of `Windows.environment`.
        provoked: [E] bool, whether the end was provoked by others.
        calm: What driving is called in which alarms are false unless it ends.
        is_calm: [E] bool, whether an episode is of that kind.
    """

    cause: NDArray[np.integer[Any]]
    causes: tuple[str, ...]
    behaviours: tuple[str, ...]
    environments: tuple[str, ...]
    provoked: NDArray[np.bool_]
    calm: str
    is_calm: NDArray[np.bool_]


class Dataset(Protocol):
    """Episodes in memory, whatever they were recorded by."""

    @property
    def spec(self) -> Spec:
        """Meaning of the windows' features."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the data, hexadecimal."""

    @property
    def manifest(self) -> dict[str, Any]:
        """How it was made, for the record."""

    @property
    def labels(self) -> Labels:
        """What was noted of the episodes."""

    def __len__(self) -> int:
        """Return the number of episodes."""

    @property
    def key_kind(self) -> str:
        """What `keys` are made of: "seed" or "content"."""

    def keys(self) -> NDArray[np.uint64]:
        """Return a number for each episode that it has in other data sets, too."""

    def split(self, seed: int) -> dict[str, Indices]:
        """Split the episodes at random.

        Returns:
            `train`, `validation`, `calibration` and `test`, and `unseen`: those that are kept for
            the test of generalisation.
        """

    def windows(self, episodes: Indices, horizon: int, stride: int) -> Windows:
        """Cut windows that start every `stride` steps of the given episodes."""


@dataclass(frozen=True)
class Simulated:
    """What `world-model collect` recorded.

    Attributes:
        store: The episodes.
        spec: Of the windows.
        tracking: By which trackers their first states are seen; None: all is true.
    """

    store: EpisodeStore
    spec: Spec = HIGHWAY
    tracking: Tracking | None = None

    @property
    def fingerprint(self) -> str:
        """See `Dataset`."""
        return self.store.fingerprint

    @property
    def manifest(self) -> dict[str, Any]:
        """See `Dataset`."""
        return self.store.manifest

    @property
    def labels(self) -> Labels:
        """See `Dataset`."""
        store = self.store
        return Labels(
            cause=store.cause,
            causes=CAUSES,
            behaviours=store.behaviour_names,
            environments=store.environment_names,
            provoked=store.provoked > 0,
            calm="careful driving",
            is_calm=store.behaviour == store.behaviour_names.index("careful"),
        )

    def __len__(self) -> int:
        return len(self.store.frame_count)

    @property
    def key_kind(self) -> str:
        """See `Dataset`."""
        return "seed"

    def keys(self) -> NDArray[np.uint64]:
        """See `Dataset`: the same seed is the same traffic, whatever else was asked for."""
        return self.store.seed.astype(np.uint64)

    def split(self, seed: int) -> dict[str, Indices]:
        """See `Dataset`."""
        return split_episodes(self.store, seed)

    def windows(self, episodes: Indices, horizon: int, stride: int) -> Windows:
        """See `Dataset`."""
        spec, tracking = self.spec, self.tracking
        return make_windows(self.store, episodes, horizon, stride, spec=spec, tracking=tracking)


@dataclass(frozen=True)
class Own:
    """What `training.dataset.writer.EpisodeWriter` wrote."""

    episodes: Episodes

    @property
    def spec(self) -> Spec:
        """See `Dataset`."""
        return self.episodes.spec

    @property
    def fingerprint(self) -> str:
        """See `Dataset`."""
        return self.episodes.fingerprint

    @property
    def manifest(self) -> dict[str, Any]:
        """See `Dataset`."""
        return self.episodes.manifest

    @property
    def labels(self) -> Labels:
        """See `Dataset`; of others' recordings nothing is noted but whether they end."""
        ended = self.episodes.terminated
        return Labels(
            cause=ended,
            causes=("none", "end"),
            behaviours=("all",),
            environments=("all",),
            provoked=np.zeros(len(ended), np.bool_),
            calm="episodes that do not end",
            is_calm=np.ones(len(ended), np.bool_),
        )

    def __len__(self) -> int:
        return len(self.episodes.frame_count)

    @property
    def key_kind(self) -> str:
        """See `Dataset`."""
        return "content"

    def keys(self) -> NDArray[np.uint64]:
        """See `Dataset`: a hash of states and actions."""
        found = self.episodes
        frames = (
            slice(start, start + count)
            for start, count in zip(found.frame_start, found.frame_count, strict=True)
        )
        digests = [
            hashlib.blake2b(
                found.states[rows].tobytes() + found.actions[rows].tobytes(), digest_size=8
            ).digest()
            for rows in frames
        ]
        return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)

    def split(self, seed: int) -> dict[str, Indices]:
        """See `Dataset`; none is unseen."""
        return {**split_at_random(np.arange(len(self)), seed), "unseen": np.zeros(0, np.int64)}

    def windows(self, episodes: Indices, horizon: int, stride: int) -> Windows:
        """See `Dataset`."""
        return cut_windows(self.episodes, episodes, horizon, stride)


def fleet_of(manifest: Mapping[str, Any]) -> str:
    """Return the fleet of recordings, for more of the same kind.

    Raises:
        ValueError: It is none that is known.
    """
    fleet = manifest.get("fleet", CARS)  # those before there were others
    check_fleet(fleet)
    return str(fleet)


def tracks_of(fleet: str, tracks: str | None = None) -> str | None:
    """Return by which trackers a fleet is seen, see `open_dataset`.

    Args:
        fleet: One of `fleets.FLEETS`.
        tracks: What was asked for, if anything.
    """
    return tracks or (None if fleet == CARS else DRAWN)


def open_dataset(folder: Path, tracks: str | None = None) -> Dataset:
    """Read a finished data set of either format into memory.

    Args:
        folder: Of the data set.
        tracks: By which trackers simulated episodes are seen, see `Tracking.model`; None: all that
            is seen is true of cars of one size, and mixed fleets are seen by drawn trackers.

    Raises:
        ValueError: It is unfinished or broken, or has changed since it was written; or trackers are
            asked for, and it holds what was measured by others.
    """
    if read_manifest(folder).get("format") == FORMAT:
        if tracks is not None:
            raise ValueError(
                f"{folder} holds recordings, which were seen as they are: tracks {tracks!r} can be "
                "asked for with those of world-model collect only"
            )
        return Own(load_episodes(folder))
    store = load_store(folder)
    fleet = fleet_of(store.manifest)
    model = tracks_of(fleet, tracks)
    return Simulated(store, spec_of(fleet), Tracking(model=model) if model else None)


def require_simulated(folder: Path, what: str) -> None:
    """Refuse data sets that `world-model collect` did not record.

    Args:
        folder: Of the data set.
        what: Needs the simulator, for the message.

    Raises:
        ValueError: It holds episodes of another origin, or no data set.
    """
    if read_manifest(folder).get("format") == FORMAT:
        raise ValueError(f"{what} needs recordings of world-model collect, {folder} holds others")
