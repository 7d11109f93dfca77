from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.test_training.driving import mixed_episodes, save_store
from tests.test_training.toy import toy_spec
from training.dataset.overlap import collected_seeds, held_out, origin_note
from training.dataset.sources import Dataset, open_dataset
from training.dataset.writer import EpisodeWriter

SIZE = 4
MANIFEST = {"seed": 7, "episodes_per_shard": SIZE, "shards": ["a", "b"]}
"""Of a collection of 8 episodes."""


def simulated(folder: Path, seeds: list[int]) -> Dataset:
    """Return recordings of the given seeds."""
    driven = zip(mixed_episodes(len(seeds)), seeds, strict=True)
    save_store(folder, [replace(episode, seed=seed) for episode, seed in driven])
    return open_dataset(folder)


def own(folder: Path, numbers: list[int], recordings: dict[str, str] | None = None) -> Dataset:
    """Return episodes of another spec, each decided by its number."""
    with EpisodeWriter(folder, toy_spec(), recordings=recordings) as writer:
        for number in numbers:
            states = np.random.default_rng(number).uniform(-1, 1, (4, 4))
            writer.add(states, np.zeros((3, 2)), np.zeros(3), ended=number % 2 == 0)
    return open_dataset(folder)


def seeds_of_collection() -> list[int]:
    return [int(seed) for i in range(2) for seed in collected_seeds(7, i, SIZE)]


def test_the_training_data_itself_are_split_as_the_training_did(tmp_path: Path) -> None:
    data = own(tmp_path, list(range(20)))

    held = held_out({**origin_note(data), "split_seed": 3}, data)

    assert held.note["origin"] == "own split"
    assert held.warnings == []
    for name, part in data.split(3).items():
        assert np.array_equal(held.episodes[name], part)


def test_the_same_seeds_in_another_data_set_are_found_and_left_out(tmp_path: Path) -> None:
    known = seeds_of_collection()
    data = simulated(tmp_path, [*known[:6], *range(100, 112)])

    held = held_out({"dataset": MANIFEST, "fingerprint": "another"}, data)

    assert held.note == {
        "origin": "other data",
        "episodes": 18,
        "may_be_trained_on": 6,
        "calibrated": 0,
    }
    assert held.warnings[0].startswith("6 of 18 episodes may have been trained on")
    assert sorted(np.concatenate(list(held.episodes.values()))) == list(range(6, 18))


def test_other_seeds_share_nothing(tmp_path: Path) -> None:
    data = simulated(tmp_path, list(range(100, 112)))

    held = held_out({"dataset": MANIFEST, "fingerprint": "another"}, data)

    assert (held.note["origin"], held.note["may_be_trained_on"]) == ("other data", 0)
    assert held.warnings == []


def test_data_that_are_all_known_are_refused(tmp_path: Path) -> None:
    data = simulated(tmp_path, seeds_of_collection()[:5])

    with pytest.raises(ValueError, match="all 5 episodes may have been trained on"):
        held_out({"dataset": MANIFEST, "fingerprint": "another"}, data)


def test_own_episodes_are_known_by_their_content(tmp_path: Path) -> None:
    trained = origin_note(own(tmp_path / "old", list(range(10))))
    data = own(tmp_path / "new", list(range(7, 25)))

    held = held_out(trained, data)

    assert held.note["may_be_trained_on"] == 3
    assert sorted(np.concatenate(list(held.episodes.values()))) == list(range(3, 18))


def test_a_collection_is_noted_by_its_recipe_and_other_seeds_one_by_one(tmp_path: Path) -> None:
    data = simulated(tmp_path / "some", [1, 2, 3])
    note = origin_note(data)
    assert note["episode_keys"]["kind"] == "seed"
    again = simulated(tmp_path / "more", [3, 2, 9, 8])
    assert held_out(note, again).note["may_be_trained_on"] == 2


@pytest.mark.parametrize("training", [{}, {"split_seed": 1}, {"dataset": {"seed": 1}}])
def test_a_checkpoint_that_does_not_say_is_told_of(
    tmp_path: Path, training: dict[str, Any]
) -> None:
    held = held_out(training, own(tmp_path, list(range(10))))

    assert held.note["origin"] == "unknown"
    assert "nobody knows which of the 10 episodes" in held.warnings[0]


def test_recorded_traffic_is_no_simulated_one(tmp_path: Path) -> None:
    data = own(tmp_path, list(range(10)), {"a.csv": "aa"})
    held = held_out({"dataset": MANIFEST, "fingerprint": "another"}, data)
    assert held.note["origin"] == "other data"
    assert (held.note["may_be_trained_on"], held.warnings) == (0, [])


def test_the_same_recordings_through_another_filter_are_known(tmp_path: Path) -> None:
    trained = origin_note(own(tmp_path / "old", [1, 2], {"a.csv": "aa", "b.csv": "bb"}))
    other = own(tmp_path / "new", list(range(50, 60)), {"c.csv": "cc"})
    assert held_out(trained, other).warnings == []
    same = own(tmp_path / "same", list(range(50, 60)), {"c.csv": "cc", "renamed.csv": "bb"})
    with pytest.raises(ValueError, match="all 10 episodes may have been trained on"):
        held_out(trained, same)


@pytest.mark.parametrize("recordings", [None, 5, ["aa"], {"a": ["b"]}])
def test_a_manifest_that_says_nonsense_of_recordings_is_taken_as_it_is(
    tmp_path: Path, recordings: object
) -> None:
    data = own(tmp_path, list(range(10)))
    data.manifest["recordings"] = recordings
    assert len(held_out(origin_note(data), data).warnings) == 0


def test_episodes_that_calibrate_used_are_counted_and_kept(tmp_path: Path) -> None:
    data = own(tmp_path / "ours", list(range(10)))
    more = own(tmp_path / "more", list(range(5, 20)))
    training = {**origin_note(own(tmp_path / "old", [90, 91])), "recalibrated": origin_note(data)}

    for each, count in ((data, 10), (more, 5)):
        held = held_out(training, each)
        assert held.note["calibrated"] == count
        assert len(np.concatenate(list(held.episodes.values()))) == len(each)
        assert f"fitted to {count} of {len(each)} episodes by calibrate" in held.warnings[0]
