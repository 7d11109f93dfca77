"""Which episodes of a data set a model may know: by seed if simulated, else by content.

Recorded traffic is known by its files, too: the same vehicles through another filter are other
states, but no other traffic.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.dataset.sources import Dataset, Indices

_BYTES = 6
"""Of a key that are noted: among millions of episodes, hardly two are alike by chance."""

Keys = NDArray[np.uint64]


@dataclass(frozen=True)
class HeldOut:
    """Episodes of a data set that a model can be judged by.

    Attributes:
        episodes: By part of the split; without those that may have been trained on.
        note: For the report: `origin` is "own split" (the data that it was trained on), "other
            data" or "unknown"; then how many `episodes` there are, how many were left out because
            they `may_be_trained_on`, and to how many probabilities and limits were `calibrated`.
        warnings: Sentences for people; empty if there is nothing to say.
    """

    episodes: dict[str, Indices]
    note: dict[str, Any]
    warnings: list[str]


def origin_note(data: Dataset) -> dict[str, Any]:
    """Return what a checkpoint has to hold on the episodes that it was fitted to."""
    note = {"dataset": data.manifest, "fingerprint": data.fingerprint}
    known = _known(note)
    if known is not None and np.array_equal(known, _cut(data.keys())):
        return note  # they follow from the recipe
    octets = _cut(data.keys()).astype("<u8").view(np.uint8).reshape(-1, 8)
    text = base64.b64encode(octets[:, :_BYTES].tobytes())
    return {**note, "episode_keys": {"kind": data.key_kind, "base64": text.decode()}}


def held_out(training: Mapping[str, Any], data: Dataset) -> HeldOut:
    """Split a data set as a checkpoint's training did, and leave out what it may know.

    Args:
        training: The checkpoint's `training`.
        data: Episodes to judge it by.

    Raises:
        ValueError: All episodes may have been trained on.
    """
    parts = data.split(int(training.get("split_seed", 0)))
    count, is_trained = len(data), np.zeros(len(data), np.bool_)
    warnings = []
    if training.get("fingerprint") == data.fingerprint:
        origin = "own split"
    else:
        found = _overlap(training, data)
        origin = "unknown" if found is None else "other data"
        is_trained = is_trained if found is None else found
    if origin == "unknown":
        warnings.append(
            f"nobody knows which of the {count} episodes the model was trained on (the checkpoint "
            "does not say, or notes them in another way): the results may be too good"
        )
    if left_out := int(is_trained.sum()):
        warnings.append(
            f"{left_out} of {count} episodes may have been trained on (the checkpoint's training "
            "data have them, too) and are left out"
        )
        if left_out == count:
            raise ValueError(
                f"all {count} episodes may have been trained on, for the checkpoint's training "
                "data have them, too: record others (collect with another --seed), or name the "
                f"data set with the fingerprint {training.get('fingerprint')}, whose split is known"
            )
    calibrated = _calibrated(training, data)
    if calibrated:
        warnings.append(
            f"probabilities and limits were fitted to {calibrated} of {count} episodes by "
            "calibrate: rates on them may be too good"
        )
    kept = {name: part[~is_trained[part]] for name, part in parts.items()}
    note = {
        "origin": origin,
        "episodes": count,
        "may_be_trained_on": left_out,
        "calibrated": calibrated,
    }
    return HeldOut(kept, note, warnings)


def untrained(training: Mapping[str, Any], data: Dataset) -> Indices:
    """Return the episodes that fixed no weights of a checkpoint, as far as that is known, sorted.

    Raises:
        ValueError: All episodes may have been trained on.
    """
    held = held_out(training, data)
    is_own = held.note["origin"] == "own split"
    parts = [part for name, part in held.episodes.items() if not (is_own and name == "train")]
    return np.sort(np.concatenate(parts))


def _calibrated(training: Mapping[str, Any], data: Dataset) -> int:
    """Return the number of episodes that `calibrate` used, as far as it is known."""
    note = training.get("recalibrated")
    if not isinstance(note, Mapping):
        return 0
    if note.get("fingerprint") == data.fingerprint:
        return len(data)
    found = _overlap(note, data)
    return 0 if found is None else int(found.sum())


def _overlap(note: Mapping[str, Any], data: Dataset) -> NDArray[np.bool_] | None:
    """Return which episodes a note of `origin_note` covers; None if nobody knows."""
    known = _known(note)
    kind = note.get("episode_keys", {"kind": "seed"})["kind"]
    recorded = _recordings(data.manifest)
    if recorded & _recordings(note.get("dataset")):
        return np.ones(len(data), np.bool_)  # the same traffic, however it was filtered
    if recorded and known is not None and kind == "seed":
        return np.zeros(len(data), np.bool_)  # simulated episodes are no recorded ones
    if known is None or kind != data.key_kind:
        return None
    return np.isin(_cut(data.keys(), is_sorted=False), known)


def _recordings(manifest: object) -> set[str]:
    """Return the SHA-256 sums of the recordings that a data set was made of."""
    found = manifest.get("recordings") if isinstance(manifest, Mapping) else None
    return {*map(str, found.values())} if isinstance(found, Mapping) else set()


def _known(note: Mapping[str, Any]) -> Keys | None:
    """Return the sorted keys of a note; None if it holds none."""
    if "episode_keys" in note:
        raw = np.frombuffer(base64.b64decode(note["episode_keys"]["base64"]), np.uint8)
        padded = np.pad(raw.reshape(-1, _BYTES), ((0, 0), (0, 8 - _BYTES)))
        return np.ascontiguousarray(padded).view("<u8").ravel().astype(np.uint64)
    manifest = note.get("dataset")
    if not isinstance(manifest, Mapping) or not {"seed", "episodes_per_shard", "shards"} <= {
        *manifest
    }:
        return None
    size = manifest["episodes_per_shard"]
    shards = [collected_seeds(manifest["seed"], i, size) for i in range(len(manifest["shards"]))]
    return _cut(np.concatenate(shards))


def _cut(keys: Keys, *, is_sorted: bool = True) -> Keys:
    short = keys & np.uint64(2 ** (8 * _BYTES) - 1)
    return np.sort(short) if is_sorted else short


def collected_seeds(seed: int, shard: int, episodes: int) -> Keys:
    """Return the seeds of a shard's episodes, as `collect` draws them."""
    source = np.random.SeedSequence([seed, shard])
    # 63 bits, because seeds are stored as int64.
    return source.generate_state(episodes, np.uint64) >> np.uint64(1)
