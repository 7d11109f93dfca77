from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.test_training.driving import drive, mixed_episodes, save_store
from training.dataset.store import EpisodeStore
from training.dataset.windows import SPLIT_SHARES, make_windows, split_episodes
from training.simulation.roads import ENVIRONMENTS
from training.simulation.simulator import ROADS

ROUNDABOUT = ENVIRONMENTS.index("roundabout")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    seen = mixed_episodes(100)
    unseen = [drive(1000 + i, environment=ROUNDABOUT) for i in range(10)]
    return save_store(tmp_path_factory.mktemp("store"), [*seen[:50], *unseen, *seen[50:]])


def test_episodes_are_split_without_overlap_and_by_share(store: EpisodeStore) -> None:
    parts = split_episodes(store, seed=0)

    assert sorted(np.concatenate(list(parts.values()))) == list(range(110))
    for name, share in SPLIT_SHARES.items():
        assert len(parts[name]) == pytest.approx(100 * share, abs=1)


def test_each_source_has_an_unseen_road(tmp_path: Path) -> None:
    roads = [ROADS.index(name) for name in ("highway", "harbour", "town", "roundabout") * 3]
    store = save_store(tmp_path, [drive(i, environment=road) for i, road in enumerate(roads)])

    parts = split_episodes(store, seed=0)

    names = {store.environment_names[code] for code in store.environment[parts["unseen"]]}
    assert names == {"harbour", "roundabout"}
    assert len(parts["unseen"]) == 6


def test_the_unseen_environment_is_in_no_other_part(store: EpisodeStore) -> None:
    parts = split_episodes(store, seed=0)

    assert (store.environment[parts["unseen"]] == ROUNDABOUT).all()
    assert parts["unseen"].tolist() == list(range(50, 60))


def test_a_split_repeats_for_its_seed_only(store: EpisodeStore) -> None:
    first, again, other = (split_episodes(store, seed)["test"] for seed in (1, 1, 2))

    assert first.tolist() == again.tolist() != other.tolist()


def test_windows_start_when_accelerations_are_known(store: EpisodeStore) -> None:
    windows = make_windows(store, np.arange(4), horizon=4, stride=3)

    assert windows.start_step.min() == 1
    steps = store.frame_count[:4] - 1
    assert (np.bincount(windows.episode) == -(-(steps - 1) // 3)).all()


def test_windows_mark_what_was_recorded_and_where_it_ended(tmp_path: Path) -> None:
    store = save_store(tmp_path, [drive(0, ahead_m=14.0), drive(1, ahead_m=130.0)])
    windows = make_windows(store, np.arange(2), horizon=8, stride=1)
    crashed = windows.take(windows.episode == 0)

    assert (windows.valid.sum(1) == np.minimum(8, store.frame_count[windows.episode] - 1
            - windows.start_step)).all()  # fmt: skip
    last = crashed.start_step + crashed.terminated.argmax(1) + 1
    assert (last[crashed.ends] == store.frame_count[0] - 1).all()
    assert not windows.take(windows.episode == 1).ends.any()
