"""Episodes of any spec on disk: a folder of safetensors shards and one `dataset.json`.

This is the format for data of one's own; `docs/own-data.md` shows its use. An episode of T steps
has T + 1 states. `dataset.json` holds

    format, version   "world-model-episodes", 1
    spec              meaning of the features, as in a checkpoint's spec.json
    origin            where the episodes come from, for people
    recordings        if of recorded traffic: SHA-256 sums of its files, by name
    counts            episodes, steps, ended
    shards            names of the files, in order
    fingerprint       SHA-256 over the shards' own SHA-256 sums

and a shard of E episodes with F frames the arrays of `EPISODE_ARRAYS` and `FRAME_ARRAYS`;
`slot_ids` is there only if the identities of neighbours are known, `true_states` only if `states`
are what was measured and not the truth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.checkpoint import read_spec_of
from models.slots import is_filled
from models.spec import Slot, Spec
from training.dataset.arrays import read_arrays
from training.dataset.store import (
    MANIFEST,
    read_manifest,
    shard_names,
    shard_paths,
)

FORMAT, VERSION = "world-model-episodes", 1

EPISODE_ARRAYS: dict[str, np.dtype[Any]] = {
    "frame_start": np.dtype(np.int64),
    "frame_count": np.dtype(np.int64),
    "terminated": np.dtype(np.uint8),
}
"""[E]: first frame of the episode within the shard; T + 1; 1 if it ended at its last frame, 0 if
only the recording did."""
FRAME_ARRAYS: dict[str, np.dtype[Any]] = {
    "states": np.dtype(np.float32),
    "actions": np.dtype(np.float32),
    "rewards": np.dtype(np.float32),
}
"""[F, S], [F, A], [F]; the action and reward of the step that begins at the frame, zeros in an
episode's last."""
SLOT_IDS = "slot_ids"
"""[F, slots] int64: who is in each slot; -1 in an empty one."""
NOBODY = -1
TRUE_STATES = "true_states"
"""[F, S] float32: the truth where `states` are what was measured at the moment, with its noise and
lag. Windows start in `states`, and these are their targets; slots hold the same neighbours."""
OPTIONAL_ARRAYS: dict[str, np.dtype[Any]] = {
    SLOT_IDS: np.dtype(np.int64),
    TRUE_STATES: np.dtype(np.float32),
}
"""Each in all shards or in none."""


class EpisodeError(ValueError):
    """Episodes break the format or their spec; the message is one sentence."""


class Fault(NamedTuple):
    """What is wrong with a number of a frame.

    Attributes:
        array: Of `FRAME_ARRAYS`, or `true_states`.
        row: Of the array.
        problem: What is there, and what is allowed.
    """

    array: str
    row: int
    problem: str

    def __str__(self) -> str:
        return f"{self.array}[{self.row}]: {self.problem}"


def begins_step(frames: int, last: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return [F] bool, whether a step begins at a frame.

    Args:
        frames: F.
        last: The episodes' last frames, in which none does.
    """
    begins = np.ones(frames, np.bool_)
    begins[last] = False
    return begins


def faults_in(
    arrays: Mapping[str, NDArray[Any]], spec: Spec, last: NDArray[np.int64]
) -> Iterator[Fault]:
    """Yield what is wrong with the numbers of frames, the first of each kind and feature.

    Args:
        arrays: Of `FRAME_ARRAYS`, and `true_states` if there are any, of one episode or more.
        spec: Of their features.
        last: The episodes' last frames, in which no step begins.
    """
    begins = begins_step(len(arrays["rewards"]), last)
    kinds = (("states", spec.state), ("actions", spec.action), (TRUE_STATES, spec.state))
    for name, features in kinds:
        if name not in arrays:
            continue
        for column, feature in enumerate(features):
            values = arrays[name][:, column]
            fits = (values >= np.float32(feature.low)) & (values <= np.float32(feature.high))
            is_wrong = ~fits & begins if name == "actions" else ~fits
            if is_wrong.any():
                row = int(np.argmax(is_wrong))
                yield Fault(
                    name,
                    row,
                    f"{feature.name} is {values[row]:g}, but the spec allows {feature.low:g} to "
                    f"{feature.high:g}{'' if feature.unit == '1' else f' {feature.unit}'}",
                )
    is_wrong = ~np.isfinite(arrays["rewards"])
    if is_wrong.any():
        row = int(np.argmax(is_wrong))
        yield Fault("rewards", row, f"is {arrays['rewards'][row]}, but must be finite")
    for array in ("states", TRUE_STATES):
        for slot in spec.geometry.slots if spec.geometry and array in arrays else ():
            for name, is_wrong, allowed in _slot_faults(arrays[array], slot, spec):
                if is_wrong.any():
                    row = int(np.argmax(is_wrong))
                    value = arrays[array][row, spec.state_index(name)]
                    yield Fault(array, row, f"{name} is {value:g}, but must be {allowed}")


def _slot_faults(
    states: NDArray[Any], slot: Slot, spec: Spec
) -> Iterator[tuple[str, NDArray[np.bool_], str]]:
    """Yield a feature, whether it is wrong in each state [F, S], and what is allowed."""
    if slot.presence is not None:
        presence = states[:, spec.state_index(slot.presence)]
        yield slot.presence, (presence != 0) & (presence != 1), "0 or 1"
    if slot.length is not None and slot.width is not None:
        is_there = is_filled(states, slot, spec)
        for name in (slot.length, slot.width):
            has_none = states[:, spec.state_index(name)] <= 0
            yield name, is_there & has_none, f"above 0 where {slot.gate} says that somebody is"


@dataclass(frozen=True)
class Episodes:
    """All shards of a folder in memory, E episodes and F frames; see `EPISODE_ARRAYS`.

    Attributes:
        spec: Meaning of the features.
        states: [F, S].
        actions: [F, A].
        rewards: [F].
        frame_start: [E], first frame of the episode.
        frame_count: [E], T + 1.
        terminated: [E].
        slot_ids: [F, slots], or None if a slot is one neighbour throughout an episode.
        true_states: [F, S] what the states were in truth, or None if `states` are that.
        fingerprint: SHA-256 over the shards, hexadecimal.
        manifest: What `dataset.json` says, but for the spec.
    """

    spec: Spec
    states: NDArray[np.float32]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float32]
    frame_start: NDArray[np.int64]
    frame_count: NDArray[np.int64]
    terminated: NDArray[np.uint8]
    slot_ids: NDArray[np.int64] | None
    true_states: NDArray[np.float32] | None
    fingerprint: str
    manifest: dict[str, Any]


def load_episodes(folder: Path) -> Episodes:
    """Read a finished data set into memory.

    Raises:
        EpisodeError: It is unfinished or broken, has changed since it was written, or holds what
            the spec does not allow; one sentence.
    """
    spec, manifest = read_head(folder)
    shards: list[dict[str, NDArray[Any]]] = []
    for index, path in enumerate(paths_of(folder, manifest)):
        arrays = read_shard(path, spec)
        for fault in shard_faults(arrays, spec):
            raise EpisodeError(f"{path}, {fault} (world-model check-data lists all faults)")
        for name in OPTIONAL_ARRAYS:
            if index and (name in arrays) != (name in shards[0]):
                raise EpisodeError(f"{path}: {name} must be in all shards or in none")
        shards.append(arrays)
    starts = np.cumsum([0, *(len(x["states"]) for x in shards[:-1])])
    for shard, start in zip(shards, starts, strict=True):
        shard["frame_start"] = shard["frame_start"] + start
    joined = {name: np.concatenate([x[name] for x in shards]) for name in shards[0]}
    return Episodes(
        spec=spec,
        slot_ids=joined.pop(SLOT_IDS, None),
        true_states=joined.pop(TRUE_STATES, None),
        fingerprint=manifest["fingerprint"],
        manifest={name: x for name, x in manifest.items() if name != "spec"},
        **joined,
    )


def read_head(folder: Path) -> tuple[Spec, dict[str, Any]]:
    """Return the spec and `dataset.json`.

    Raises:
        EpisodeError: The file is missing, broken, or of another format or version.
    """
    manifest = read_manifest(folder)
    path = folder / MANIFEST
    found = manifest.get("format"), manifest.get("version")
    if found != (FORMAT, VERSION) or isinstance(found[1], bool):
        raise EpisodeError(
            f"{path} has format {found[0]!r}, version {found[1]!r}; this code reads {FORMAT!r}, "
            f"version {VERSION}"
        )
    if not isinstance(manifest.get("spec"), dict):
        raise EpisodeError(f"{path} lacks the spec")
    try:
        shard_names(folder, manifest)
    except ValueError as exc:
        raise EpisodeError(str(exc)) from exc
    return read_spec_of(manifest["spec"], path), manifest


def paths_of(folder: Path, manifest: Mapping[str, Any]) -> list[Path]:
    """Return the shards' files.

    Raises:
        EpisodeError: One is missing, or they are not those that `dataset.json` was written for.
    """
    try:
        return shard_paths(folder, manifest)
    except ValueError as exc:
        raise EpisodeError(str(exc)) from exc


def read_shard(path: Path, spec: Spec) -> dict[str, NDArray[Any]]:
    """Return the arrays of a shard, of the right types and shapes.

    Raises:
        EpisodeError: It is none, or an array is missing, unknown, or of another type or shape.
    """
    slots = len(spec.geometry.slots) if spec.geometry else 0
    widths = {
        "states": (spec.state_dim,),
        "actions": (spec.action_dim,),
        SLOT_IDS: (slots,),
        TRUE_STATES: (spec.state_dim,),
    }
    of_episodes = {name: (kind.name, ()) for name, kind in EPISODE_ARRAYS.items()}
    of_frames = {
        name: (kind.name, widths.get(name, ()))
        for name, kind in {**FRAME_ARRAYS, **OPTIONAL_ARRAYS}.items()
    }
    try:
        arrays = read_arrays(path, of_episodes, of_frames, optional=OPTIONAL_ARRAYS)
    except ValueError as exc:
        raise EpisodeError(str(exc)) from exc
    if (arrays["terminated"] > 1).any():
        raise EpisodeError(f"{path}: terminated must be 0 or 1")
    return arrays


def shard_faults(arrays: Mapping[str, NDArray[Any]], spec: Spec) -> Iterator[str]:
    """Yield what is wrong with the numbers of a shard, each with its episode and step."""
    last = arrays["frame_start"] + arrays["frame_count"] - 1
    for fault in faults_in(arrays, spec, last):
        episode = int(np.searchsorted(arrays["frame_start"], fault.row, side="right")) - 1
        step = fault.row - int(arrays["frame_start"][episode])
        yield f"episode {episode}, {fault._replace(row=step)}"
