from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from models.highway import highway_spec
from training.dataset.collect import collect
from training.dataset.examples import choose_examples, export_examples
from training.dataset.store import EpisodeStore, load_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    folder = tmp_path_factory.mktemp("store")
    collect(folder, transitions=2500, seed=5, workers=2, progress=False)
    return load_store(folder)


def test_examples_are_chosen_by_recorded_outcome(store: EpisodeStore) -> None:
    everyone = np.arange(len(store.cause))
    chosen = choose_examples(store, everyone, 2)

    assert set(chosen) == {"crash", "off_road", "careful"}
    assert all(store.cause[i] == 1 for i in chosen["crash"])
    assert all(store.cause[i] == 2 for i in chosen["off_road"])
    careful = store.behaviour_names.index("careful")
    assert all(store.truncated[i] and store.behaviour[i] == careful for i in chosen["careful"])
    assert chosen == choose_examples(store, everyone, 2)


def test_exported_examples_hold_the_recorded_numbers(store: EpisodeStore, tmp_path: Path) -> None:
    for name in ("crash-9.json", "config.json"):  # of an earlier call; of somebody else
        (tmp_path / name).write_text("{}")

    paths = export_examples(store, np.arange(len(store.cause)), highway_spec(), tmp_path, count=1)

    assert sorted(tmp_path.iterdir()) == sorted([*paths, tmp_path / "config.json"])
    for path in paths:
        document = json.loads(path.read_text())
        index = int(np.flatnonzero(store.seed == document["seed"])[0])
        start, count = store.frame_start[index], store.frame_count[index]
        actions = np.array(document["actions"], np.float32)
        assert np.array_equal(actions, store.action[start : start + count - 1])
        assert np.array(document["states"]).shape == (count, 34)
        speeds = np.array(document["states"], np.float32)[:, 0]
        assert np.array_equal(speeds, store.ego_features[start : start + count, 0])
        assert path.name.startswith(document["outcome"].replace("_", "-")) or (
            document["outcome"] == "none" and document["behaviour"] == "careful"
        )
