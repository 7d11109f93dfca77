from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.test_training.driving import drive, mixed_episodes, save_store
from training.dataset.store import (
    EPISODE_ARRAYS,
    FRAME_ARRAYS,
    MANIFEST,
    load_store,
    read_shard_note,
    shard_path,
    write_shard,
)


def test_store_returns_what_was_written(tmp_path: Path) -> None:
    episodes = mixed_episodes(9)
    store = save_store(tmp_path, episodes, per_shard=4)
    for i, episode in enumerate(episodes):
        frames = slice(store.frame_start[i], store.frame_start[i] + store.frame_count[i])
        for name in FRAME_ARRAYS:
            np.testing.assert_array_equal(getattr(store, name)[frames], getattr(episode, name))
        assert store.seed[i] == episode.seed
        assert store.cause[i] == episode.cause
        np.testing.assert_array_equal(store.vehicle_id[i], episode.vehicle_id)


def test_store_arrays_have_their_documented_types(tmp_path: Path) -> None:
    store = save_store(tmp_path, mixed_episodes(3))
    for name, (dtype, shape) in {**EPISODE_ARRAYS, **FRAME_ARRAYS}.items():
        array = getattr(store, name)
        assert array.dtype == dtype, name
        assert array.shape[1:] == shape, name


def test_store_keeps_terminated_and_truncated_apart(tmp_path: Path) -> None:
    store = save_store(tmp_path, [drive(0, ahead_m=14.0), drive(1, ahead_m=90.0)])
    assert store.terminated.tolist() == [1, 0]
    assert store.truncated.tolist() == [0, 1]


def test_store_names_what_its_codes_mean(tmp_path: Path) -> None:
    store = save_store(tmp_path, mixed_episodes(3))
    assert store.environment_names[store.environment[0]] == "highway"
    assert store.behaviour_names[store.behaviour[0]] == "aggressive"


def test_store_of_equal_episodes_has_equal_fingerprint(tmp_path: Path) -> None:
    stores = [save_store(tmp_path / name, mixed_episodes(4)) for name in "ab"]
    other = save_store(tmp_path / "c", mixed_episodes(5))
    assert stores[0].fingerprint == stores[1].fingerprint != other.fingerprint
    assert len(stores[0].fingerprint) == 64


def test_store_refuses_a_changed_shard(tmp_path: Path) -> None:
    save_store(tmp_path, mixed_episodes(3))
    write_shard(shard_path(tmp_path, 0), mixed_episodes(2), {"seed": 0})
    with pytest.raises(ValueError, match="changed: its shards have the fingerprint"):
        load_store(tmp_path)


def test_store_refuses_a_missing_shard(tmp_path: Path) -> None:
    save_store(tmp_path, mixed_episodes(3))
    shard_path(tmp_path, 0).unlink()
    with pytest.raises(ValueError, match="lacks the shard"):
        load_store(tmp_path)


def test_store_refuses_an_unfinished_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no finished dataset"):
        load_store(tmp_path)


def test_store_refuses_a_manifest_that_is_not_json(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_store(tmp_path)


def test_store_refuses_another_schema_version_naming_both(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(ValueError, match="schema version 99, this code reads 2"):
        load_store(tmp_path)


def test_shard_note_holds_settings_and_counts(tmp_path: Path) -> None:
    path = shard_path(tmp_path, 3)
    episodes = mixed_episodes(6)
    counts = write_shard(path, episodes, {"seed": 5})
    assert path.name == "shard-00003.safetensors"
    assert read_shard_note(path) == ({"seed": 5}, counts)
    assert counts == {
        "episodes": 6,
        "transitions": sum(episode.steps for episode in episodes),
        "crash": 2,
        "off_road": 1,
    }


def test_shard_is_never_half_written(tmp_path: Path) -> None:
    write_shard(shard_path(tmp_path, 0), mixed_episodes(2), {})
    assert [path.name for path in tmp_path.iterdir()] == ["shard-00000.safetensors"]


def test_shard_note_of_a_foreign_file_is_refused(tmp_path: Path) -> None:
    path = shard_path(tmp_path, 0)
    path.write_bytes(b"not a shard")
    with pytest.raises(ValueError, match="not a readable shard"):
        read_shard_note(path)
