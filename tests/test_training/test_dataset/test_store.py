from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.test_training.driving import drive, mixed_episodes, save_store
from training.dataset.sources import fleet_of
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
        for name in ("vehicle_id", "size", "kind", "ego_size", "ego_kind", "source"):
            np.testing.assert_array_equal(getattr(store, name)[i], getattr(episode, name))


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
    assert store.kind_names[store.ego_kind[0]] == "car"
    assert store.source_names[store.source[0]] == "highway-env"


@pytest.mark.parametrize(
    ("name", "value"), [("size", 0.0), ("ego_size", -1.0), ("size", np.nan), ("size", 1e6)]
)
def test_store_refuses_somebody_without_a_size(tmp_path: Path, name: str, value: float) -> None:
    episode = drive(0)
    wrong: Any = np.where(getattr(episode, name) > 0, value, 0).astype(np.float32)
    with pytest.raises(ValueError, match=f"{name} holds .* for somebody who is there"):
        save_store(tmp_path, [replace(episode, **{name: wrong})])


@pytest.mark.parametrize("name", ["kind", "ego_kind"])
def test_store_refuses_a_kind_that_the_manifest_does_not_name(tmp_path: Path, name: str) -> None:
    episode = drive(0)
    unknown: Any = np.full_like(episode.kind, 99) if name == "kind" else 99
    with pytest.raises(ValueError, match=f"{name} is 99, but must be from 0 to 7"):
        save_store(tmp_path, [replace(episode, **{name: unknown})])


@pytest.mark.parametrize("code", [-1, -100])
@pytest.mark.parametrize("name", ["kind", "ego_kind"])
def test_store_refuses_a_kind_below_all(tmp_path: Path, name: str, code: int) -> None:
    episode = drive(0)
    wrong: Any = np.where(episode.kind >= 0, code, -1) if name == "kind" else code
    wrong = wrong.astype(np.int8) if name == "kind" else wrong
    with pytest.raises(ValueError, match=f"{name} is {code}, but must be from 0 to 7"):
        save_store(tmp_path, [replace(episode, **{name: wrong})])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["ego", "ego_features", "vehicles", "action", "reward"])
def test_store_refuses_numbers_that_are_not_finite(tmp_path: Path, name: str, value: float) -> None:
    episode = drive(0)
    wrong = getattr(episode, name).copy()
    wrong.flat[-1] = value
    with pytest.raises(ValueError, match=f"{name} holds numbers that are not finite"):
        save_store(tmp_path, [replace(episode, **{name: wrong})])


def test_store_refuses_actions_and_flags_that_are_none(tmp_path: Path) -> None:
    episode = drive(0)
    action, present = episode.action.copy(), episode.present.copy()
    action[0, 0] = 1.5
    present[0, np.flatnonzero(present[0])[0]] = 7
    with pytest.raises(ValueError, match=r"action holds 1\.5, but must be from -1 to 1"):
        save_store(tmp_path / "a", [replace(episode, action=action)])
    with pytest.raises(ValueError, match="present is 7, but must be 0 or 1"):
        save_store(tmp_path / "b", [replace(episode, present=present)])


@pytest.mark.parametrize("fleet", ["x", [1], None, 3])
def test_an_unknown_fleet_is_refused(fleet: object) -> None:
    with pytest.raises(ValueError, match="unknown fleet"):
        fleet_of({"fleet": fleet})


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
    with pytest.raises(ValueError, match="schema version 99, but must have 3"):
        load_store(tmp_path)


def test_shard_note_holds_settings_and_counts(tmp_path: Path) -> None:
    path = shard_path(tmp_path, 3)
    episodes = mixed_episodes(6)
    note = write_shard(path, episodes, {"seed": 5}, [12, 2**62])
    assert path.name == "shard-00003.safetensors"
    assert read_shard_note(path) == note
    assert note.settings == {"seed": 5}
    assert note.left_out == (12, 2**62)
    assert note.counts == {
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
