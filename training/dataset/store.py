"""Recorded episodes on disk: a folder of safetensors shards and one `dataset.json`.

World frame with vehicle identities, because features can be derived from it but not the other
way round: slots sorted by distance change in half of all 16-step windows. An episode of T
transitions has T + 1 frames; the last is where it was terminated or truncated.

Arrays of a shard with E episodes and F frames (dtype and shape in `EPISODE_ARRAYS` and
`FRAME_ARRAYS`; meanings in `EpisodeStore`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from training.simulation.simulator import CAUSES, MAX_VEHICLES, Episode

SCHEMA_VERSION = 2
MANIFEST = "dataset.json"

EPISODE_ARRAYS: dict[str, tuple[str, tuple[int, ...]]] = {
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
}
FRAME_ARRAYS: dict[str, tuple[str, tuple[int, ...]]] = {
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
        ego: [F, 4] float32, x, y (m, relative to the episode's first), heading (rad), speed (m/s).
        ego_features: [F, 6] float32, the ego part of the state.
        vehicles: [F, 16, 4] float32, like `ego`, same origin.
        present: [F, 16] uint8, whether the column holds a vehicle.
        action: [F, 3] float32, taken at the frame; zeros in the last frame of an episode.
        reward: [F] float32, of the transition that starts at the frame; 0 in the last.
        environment_names: Meaning of `environment`.
        behaviour_names: Meaning of `behaviour`.
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
    ego: NDArray[np.float32]
    ego_features: NDArray[np.float32]
    vehicles: NDArray[np.float32]
    present: NDArray[np.uint8]
    action: NDArray[np.float32]
    reward: NDArray[np.float32]
    environment_names: tuple[str, ...]
    behaviour_names: tuple[str, ...]
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
        "vehicle_id": np.stack([episode.vehicle_id for episode in episodes]),
    }
    for name in FRAME_ARRAYS:
        columns[name] = np.concatenate([getattr(episode, name) for episode in episodes])
    layout = {**EPISODE_ARRAYS, **FRAME_ARRAYS}
    return {name: np.asarray(values, layout[name][0]) for name, values in columns.items()}


def write_shard(path: Path, episodes: list[Episode], settings: dict[str, Any]) -> dict[str, int]:
    """Write a shard so that it is either whole or absent.

    Args:
        path: Where; a temporary file beside it is written first, then renamed.
        episodes: What, in order.
        settings: How they were made; kept in the shard, so that resumption can compare.

    Returns:
        Counts: episodes, transitions, crash, off_road.
    """
    counts = {"episodes": len(episodes), "transitions": sum(e.steps for e in episodes)}
    for cause in (1, 2):
        counts[CAUSES[cause]] = sum(episode.cause == cause for episode in episodes)
    # One key only: safetensors writes several in random order, and equal data must be equal bytes.
    note = {"note": json.dumps({"settings": settings, "counts": counts}, sort_keys=True)}
    temporary = path.with_suffix(".partial")
    save_file(episodes_to_arrays(episodes), temporary, metadata=note)
    temporary.replace(path)
    return counts


def read_shard_note(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the settings and counts a shard was written with.

    Raises:
        ValueError: The file is no shard of ours.
    """
    try:
        with safe_open(path, framework="numpy") as shard:
            note = json.loads((shard.metadata() or {})["note"])
        return note["settings"], note["counts"]
    except (SafetensorError, KeyError, json.JSONDecodeError) as exc:
        raise ValueError(f"{path} is not a readable shard ({exc}); delete it") from exc


def shards_fingerprint(paths: list[Path]) -> str:
    """Return the SHA-256, hexadecimal, over the shards' own SHA-256 sums in order."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as shard:
            total.update(hashlib.file_digest(shard, "sha256").digest())
    return total.hexdigest()


def write_manifest(folder: Path, paths: list[Path], manifest: dict[str, Any]) -> None:
    """Write the `dataset.json` of recordings of the simulator."""
    write_document(folder, paths, {"schema_version": SCHEMA_VERSION, **manifest})


def write_document(folder: Path, paths: list[Path], manifest: dict[str, Any]) -> None:
    """Write `dataset.json` whole or not at all: what is given, the shards, the fingerprint."""
    document = {
        **manifest,
        "shards": [path.name for path in paths],
        "fingerprint": shards_fingerprint(paths),
    }
    temporary = folder / f"{MANIFEST}.partial"
    temporary.write_text(json.dumps(document, indent=2) + "\n")
    temporary.replace(folder / MANIFEST)


def load_manifest(folder: Path) -> dict[str, Any]:
    """Return the `dataset.json` of recordings of the simulator.

    Raises:
        ValueError: It is missing, broken, or of another schema version.
    """
    manifest = read_manifest(folder)
    if manifest.get("schema_version") != SCHEMA_VERSION:
        found = manifest.get("schema_version")
        raise ValueError(
            f"{folder / MANIFEST} has schema version {found}, this code reads {SCHEMA_VERSION}"
        )
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return `dataset.json`, of whatever format.

    Raises:
        ValueError: It is missing or broken.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError as exc:
        raise ValueError(f"{folder} holds no finished dataset ({MANIFEST} is missing)") from exc
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"{path} is not JSON: {exc}") from exc
    if not isinstance(manifest, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return manifest


def load_store(folder: Path) -> EpisodeStore:
    """Read a finished dataset into memory.

    Args:
        folder: What `collect` filled.

    Raises:
        ValueError: The dataset is unfinished or broken, or its shards changed since.
    """
    manifest = load_manifest(folder)
    paths = [folder / name for name in manifest["shards"]]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise ValueError(f"{folder} lacks shards named in {MANIFEST}: {missing[:3]}")
    fingerprint = shards_fingerprint(paths)
    if fingerprint != manifest["fingerprint"]:
        expected = manifest["fingerprint"]
        raise ValueError(f"{folder} changed: fingerprint {fingerprint}, {MANIFEST} says {expected}")
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in {**EPISODE_ARRAYS, **FRAME_ARRAYS}}
    frames = 0
    for path in paths:
        with safe_open(path, framework="numpy") as shard:
            for name, arrays in parts.items():
                arrays.append(shard.get_tensor(name))
        parts["frame_start"][-1] = parts["frame_start"][-1] + frames
        frames += len(parts["reward"][-1])
    return EpisodeStore(
        **{name: np.concatenate(arrays) for name, arrays in parts.items()},
        environment_names=tuple(manifest["environments"]),
        behaviour_names=tuple(manifest["behaviours"]),
        fingerprint=fingerprint,
        manifest=manifest,
    )
