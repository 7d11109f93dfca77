"""Recorded episodes on disk: a folder of safetensors shards and one `dataset.json`.

World frame with vehicle identities, because features can be derived from it but not the other
way round: slots sorted by distance change in half of all 16-step windows. An episode of T
transitions has T + 1 frames; the last is where it was terminated or truncated.

Arrays of a shard: E episodes, F frames (`EPISODE_ARRAYS`, `FRAME_ARRAYS`, `EpisodeStore`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from models.checkpoint.files import json_text, read_json
from models.road_users import LONGEST_M
from training.dataset.arrays import Layout, read_arrays
from training.running.files import whole_file
from training.simulation.fleets import KINDS
from training.simulation.simulator import CAUSES, MAX_VEHICLES, SOURCES, Episode

SCHEMA_VERSION = 3
MANIFEST = "dataset.json"

MOST_SHARDS = 10_000
_LONGEST_NAME = 200

EPISODE_ARRAYS: Layout = {
    "seed": ("int64", ()),
    "environment": ("uint8", ()),
    "behaviour": ("uint8", ()),
    "frame_start": ("int64", ()),
    "frame_count": ("int32", ()),
    "terminated": ("uint8", ()),
    "truncated": ("uint8", ()),
    "cause": ("uint8", ()),
    "provoked": ("uint8", ()),
    "vehicle_id": ("int32", (MAX_VEHICLES,)),
    "size": ("float32", (MAX_VEHICLES, 2)),
    "kind": ("int8", (MAX_VEHICLES,)),
    "ego_size": ("float32", (2,)),
    "ego_kind": ("int8", ()),
    "source": ("uint8", ()),
}
FRAME_ARRAYS: Layout = {
    "ego": ("float32", (4,)),
    "ego_features": ("float32", (6,)),
    "vehicles": ("float32", (MAX_VEHICLES, 4)),
    "present": ("uint8", (MAX_VEHICLES,)),
    "action": ("float32", (3,)),
    "reward": ("float32", ()),
}


@dataclass(frozen=True)
class EpisodeStore:
    """All shards of a folder in memory, E episodes and F frames.

    Attributes:
        seed: [E] int64, reproduces the episode.
        environment: [E] uint8, index into `environment_names`.
        behaviour: [E] uint8, index into `behaviour_names`.
        frame_start: [E] int64, first frame of the episode in the frame arrays.
        frame_count: [E] int32, T + 1.
        terminated: [E] uint8, 1 if it ended in a crash or off the road.
        truncated: [E] uint8, 1 if time ran out.
        cause: [E] uint8, 0 none, 1 crash, 2 off the road.
        provoked: [E] uint8, 1 if the car that was hit had begun a sudden manoeuvre shortly before.
        vehicle_id: [E, 16] int32, -1 where a column is unused.
        size: [E, 16, 2] float32, length and width of a column's road user, m; 0 where unused.
        kind: [E, 16] int8, index into `kind_names`, -1 where unused.
        ego_size: [E, 2] float32, length and width of the ego, m.
        ego_kind: [E] int8, index into `kind_names`.
        source: [E] uint8, index into `source_names`.
        ego: [F, 4] float32, x, y (m, relative to the episode's first), heading (rad), speed (m/s).
        ego_features: [F, 6] float32, the ego part of the state.
        vehicles: [F, 16, 4] float32, like `ego`, same origin.
        present: [F, 16] uint8, whether the column holds a vehicle.
        action: [F, 3] float32, taken at the frame; zeros in the last frame of an episode.
        reward: [F] float32, of the transition that starts at the frame; 0 in the last.
        environment_names: Meaning of `environment`.
        behaviour_names: Meaning of `behaviour`.
        kind_names: Meaning of `kind`.
        source_names: Meaning of `source`.
        fingerprint: SHA-256 over the shards, hexadecimal.
        manifest: What `dataset.json` says.
    """

    seed: NDArray[np.int64]
    environment: NDArray[np.uint8]
    behaviour: NDArray[np.uint8]
    frame_start: NDArray[np.int64]
    frame_count: NDArray[np.int32]
    terminated: NDArray[np.uint8]
    truncated: NDArray[np.uint8]
    cause: NDArray[np.uint8]
    provoked: NDArray[np.uint8]
    vehicle_id: NDArray[np.int32]
    size: NDArray[np.float32]
    kind: NDArray[np.int8]
    ego_size: NDArray[np.float32]
    ego_kind: NDArray[np.int8]
    source: NDArray[np.uint8]
    ego: NDArray[np.float32]
    ego_features: NDArray[np.float32]
    vehicles: NDArray[np.float32]
    present: NDArray[np.uint8]
    action: NDArray[np.float32]
    reward: NDArray[np.float32]
    environment_names: tuple[str, ...]
    behaviour_names: tuple[str, ...]
    kind_names: tuple[str, ...]
    source_names: tuple[str, ...]
    fingerprint: str
    manifest: dict[str, Any]


def shard_path(folder: Path, index: int) -> Path:
    """Return where a shard of a folder lies."""
    return folder / f"shard-{index:05d}.safetensors"


def episodes_to_arrays(episodes: list[Episode]) -> dict[str, NDArray[Any]]:
    """Lay episodes end to end in the arrays of a shard."""
    counts = [len(episode.ego) for episode in episodes]
    ended = np.array([episode.cause > 0 for episode in episodes])
    columns: dict[str, Any] = {
        "seed": [episode.seed for episode in episodes],
        "environment": [episode.environment for episode in episodes],
        "behaviour": [episode.behaviour for episode in episodes],
        "frame_start": np.cumsum([0, *counts[:-1]]),
        "frame_count": counts,
        "terminated": ended,
        "truncated": ~ended,
        "cause": [episode.cause for episode in episodes],
        "provoked": [episode.provoked for episode in episodes],
        "ego_kind": [episode.ego_kind for episode in episodes],
        "source": [episode.source for episode in episodes],
    }
    for name in ("vehicle_id", "size", "kind", "ego_size"):
        columns[name] = np.stack([getattr(episode, name) for episode in episodes])
    for name in FRAME_ARRAYS:
        columns[name] = np.concatenate([getattr(episode, name) for episode in episodes])
    layout = {**EPISODE_ARRAYS, **FRAME_ARRAYS}
    return {name: np.asarray(values, layout[name][0]) for name, values in columns.items()}


class ShardNote(NamedTuple):
    """What a shard says about itself.

    Attributes:
        settings: How its episodes were made.
        counts: Of episodes, transitions, crash, off_road.
        left_out: Seeds of episodes that should be there, but that the simulator does not survive.
    """

    settings: dict[str, Any]
    counts: dict[str, int]
    left_out: tuple[int, ...] = ()


def write_shard(
    path: Path, episodes: list[Episode], settings: dict[str, Any], left_out: Sequence[int] = ()
) -> ShardNote:
    """Write a shard so that it is either whole or absent.

    Args:
        path: Where.
        episodes: What, in order.
        settings: How they were made; kept in the shard, so that resumption can compare.
        left_out: See `ShardNote`.
    """
    counts = {"episodes": len(episodes), "transitions": sum(e.steps for e in episodes)}
    counts |= {CAUSES[cause]: sum(e.cause == cause for e in episodes) for cause in (1, 2)}
    # Not where there are none: those bytes are older than this.
    more = {"left_out": [*left_out]} if left_out else {}
    said = json.dumps({"settings": settings, "counts": counts, **more}, sort_keys=True)
    with whole_file(path) as partial:
        # One key: safetensors writes several in random order, and equal data must be equal bytes.
        save_file(episodes_to_arrays(episodes), partial, metadata={"note": said})
    return ShardNote(settings, counts, (*left_out,))


def read_shard_note(path: Path) -> ShardNote:
    """Return what a shard was written with.

    Raises:
        ValueError: The file is no shard of ours.
    """
    try:
        with safe_open(path, framework="numpy") as shard:
            note = json.loads((shard.metadata() or {})["note"])
        settings, counts = note["settings"], note["counts"]
        if not (isinstance(settings, dict) and isinstance(counts, dict)):
            raise TypeError("its note holds no settings and counts")
        left_out = (*map(int, note.get("left_out", ())),)
        return ShardNote(settings, {name: int(x) for name, x in counts.items()}, left_out)
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, RecursionError) as exc:
        raise ValueError(f"{path} is not a readable shard ({exc}); delete it") from exc


def shard_names(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Return the names of the shards that a `dataset.json` lists.

    Raises:
        ValueError: It lists none, too many, one twice, or what is no name of a file beside it.
    """
    path, names = folder / MANIFEST, manifest.get("shards")
    if not (isinstance(names, list) and names and all(map(_is_name, names))):
        raise ValueError(f"{path}: shards must be a list of file names, at least one")
    if len(names) > MOST_SHARDS:
        raise ValueError(f"{path}: shards holds {len(names)} names, but at most {MOST_SHARDS}")
    # Episodes that are there twice would be trained on, and judged by, at the same time.
    if len({*names}) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{path}: shards holds {repeated!r} more than once")
    return names


def _is_name(value: Any) -> bool:
    return (
        isinstance(value, str)
        and 0 < len(value) <= _LONGEST_NAME
        and value != ".."
        and Path(value).name == value
        and value.isprintable()
    )


def shard_paths(folder: Path, manifest: Mapping[str, Any]) -> list[Path]:
    """Return the shards' files.

    Raises:
        ValueError: One is missing, or they are not those that `dataset.json` was written for.
    """
    paths = [folder / name for name in shard_names(folder, manifest)]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise ValueError(f"{folder} lacks the shard {missing[0]} that {MANIFEST} names")
    if "fingerprint" not in manifest:
        raise ValueError(f"{folder / MANIFEST} lacks the fingerprint")
    found, expected = shards_fingerprint(paths), manifest["fingerprint"]
    if found != expected:
        raise ValueError(
            f"{folder} changed: its shards have the fingerprint {found}, {MANIFEST} says {expected}"
        )
    return paths


def shards_fingerprint(paths: list[Path]) -> str:
    """Return the SHA-256, hexadecimal, over the shards' own SHA-256 sums in order."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as shard:
            total.update(hashlib.file_digest(shard, "sha256").digest())
    return total.hexdigest()


def write_manifest(folder: Path, paths: list[Path], manifest: dict[str, Any]) -> None:
    """Write the `dataset.json` of recordings of the simulator."""
    head = {"schema_version": SCHEMA_VERSION, "kinds": list(KINDS), "sources": list(SOURCES)}
    write_document(folder, paths, {**head, **manifest})


def write_document(folder: Path, paths: list[Path], manifest: dict[str, Any]) -> None:
    """Write `dataset.json` whole or not at all: what is given, the shards, the fingerprint."""
    document = {
        **manifest,
        "shards": [path.name for path in paths],
        "fingerprint": shards_fingerprint(paths),
    }
    text = json_text(document, folder / MANIFEST)
    with whole_file(folder / MANIFEST) as partial:
        partial.write_text(text)


def load_manifest(folder: Path) -> dict[str, Any]:
    """Return the `dataset.json` of recordings of the simulator.

    Raises:
        ValueError: It is missing, broken, or of another schema version.
    """
    manifest = read_manifest(folder)
    if manifest.get("schema_version") != SCHEMA_VERSION:
        found = manifest.get("schema_version")
        raise ValueError(
            f"{folder / MANIFEST} has schema version {found}, but must have {SCHEMA_VERSION}, the "
            "first one with sizes: record it anew with world-model collect"
        )
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return `dataset.json`, of whatever format.

    It goes into the checkpoints that are trained on the data, so it must be JSON as they hold it.

    Raises:
        ValueError: It is missing or broken.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise ValueError(f"{folder} holds no finished dataset ({MANIFEST} is missing)")
    return read_json(path)


def load_store(folder: Path) -> EpisodeStore:
    """Read a finished dataset into memory.

    Args:
        folder: What `collect` filled.

    Raises:
        ValueError: The dataset is unfinished or broken, or its shards changed since.
    """
    manifest = load_manifest(folder)
    names: dict[str, tuple[str, ...]] = {"cause": CAUSES}
    for kind in ("environment", "behaviour", "kind", "source"):
        found = manifest.get(f"{kind}s")
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise ValueError(f"{folder / MANIFEST}: {kind}s must be a list of names")
        names[kind] = tuple(found)
    shards, frames = list[dict[str, NDArray[Any]]](), 0
    for path in shard_paths(folder, manifest):
        arrays = read_arrays(path, EPISODE_ARRAYS, FRAME_ARRAYS)
        for array, known in (*names.items(), ("ego_kind", names["kind"])):
            _check_codes(path, array, arrays, len(known))
        _check_sizes(path, arrays)
        _check_values(path, arrays)
        arrays["frame_start"] = arrays["frame_start"] + frames
        frames += len(arrays["reward"])
        shards.append(arrays)
    return EpisodeStore(
        **{name: np.concatenate([x[name] for x in shards]) for name in shards[0]},
        environment_names=names["environment"],
        behaviour_names=names["behaviour"],
        kind_names=names["kind"],
        source_names=names["source"],
        fingerprint=manifest["fingerprint"],
        manifest=manifest,
    )


def _check_codes(path: Path, name: str, arrays: Mapping[str, NDArray[Any]], count: int) -> None:
    """Refuse codes that stand for nothing.

    Raises:
        ValueError: One is not below the count, or below 0 where somebody is.
    """
    codes = arrays[name]
    least = np.where(arrays["vehicle_id"] >= 0, 0, -1) if name == "kind" else 0
    is_wrong = (codes >= count) | (codes < least)
    if is_wrong.any():
        raise ValueError(
            f"{path}: {name} is {codes[is_wrong][0]}, but must be from 0 to {count - 1}"
        )


def _check_values(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Refuse numbers that nobody recorded.

    Raises:
        ValueError: A number is not finite, an action is no share of what can be done, or a flag is
            neither 0 nor 1.
    """
    for name, values in arrays.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError(f"{path}: {name} holds numbers that are not finite")
    largest = float(np.abs(arrays["action"]).max(initial=0.0))
    if largest > 1:
        raise ValueError(f"{path}: action holds {largest:g}, but must be from -1 to 1")
    for name in ("terminated", "truncated", "provoked", "present"):
        if (arrays[name] > 1).any():
            raise ValueError(f"{path}: {name} is {arrays[name].max()}, but must be 0 or 1")


def _check_sizes(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Refuse road users without a size that can be: they would be nobody, or everywhere.

    Raises:
        ValueError: A size of somebody, or of the ego, is none that somebody has.
    """
    episode = np.repeat(np.arange(len(arrays["frame_count"])), arrays["frame_count"])
    is_there = np.zeros(arrays["kind"].shape, np.bool_)
    np.logical_or.at(is_there, episode, arrays["present"] > 0)
    for name, sizes in (("size", arrays["size"][is_there]), ("ego_size", arrays["ego_size"])):
        is_wrong = ~((sizes > 0) & (sizes <= LONGEST_M))
        if is_wrong.any():
            raise ValueError(
                f"{path}: {name} holds {sizes[is_wrong][0]:g} for somebody who is there, but must "
                f"be above 0 and up to {LONGEST_M:g} m"
            )
