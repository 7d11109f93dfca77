from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.test_training.driving import OTHER_COLUMN, drive, save_store
from training.evaluation.kinds import GROUPS, NOBODY, parties_of
from training.simulation.fleets import KINDS
from training.simulation.simulator import Episode

TRUCK, MOTORCYCLE, BUS = (KINDS.index(kind) for kind in ("truck", "motorcycle", "bus"))
NAMES = [*GROUPS]


def crash_beside_a_motorcycle(seed: int) -> Episode:
    """A bus that runs into a truck; a motorcycle beside the two is nearer by its centre."""
    episode = drive(seed, ahead_m=14.0)
    assert episode.cause > 0
    vehicles, present = episode.vehicles.copy(), episode.present.copy()
    kind, size = episode.kind.copy(), episode.size.copy()
    vehicles[:, 0] = episode.ego + np.array([0.0, 3.0, 0.0, 0.0])
    present[:, 0] = 1
    kind[0], size[0] = MOTORCYCLE, (2.2, 0.8)
    kind[OTHER_COLUMN] = TRUCK
    return replace(episode, vehicles=vehicles, present=present, kind=kind, size=size, ego_kind=BUS)


def test_parties_are_those_whose_rectangles_overlap(tmp_path: Path) -> None:
    episodes = [crash_beside_a_motorcycle(0), drive(1, ahead_m=90.0), drive(2, steer=0.9)]
    found = parties_of(save_store(tmp_path, episodes))
    assert [e.cause for e in episodes] == [1, 0, 2]
    assert found.hit.tolist() == [NAMES.index("truck or bus"), NOBODY, NOBODY]
    assert found.ego.tolist() == [NAMES.index(x) for x in ("truck or bus", *["car or van"] * 2)]


def test_pairs_name_who_drives_first(tmp_path: Path) -> None:
    episodes = [crash_beside_a_motorcycle(0), drive(1, ahead_m=14.0), drive(2, ahead_m=90.0)]
    found = parties_of(save_store(tmp_path, episodes))
    pairs = found.pairs(np.array([0, 0, 1, 0]))
    assert {name: rows.tolist() for name, rows in pairs.items()} == {
        "car or van with car or van": [False, False, True, False],
        "truck or bus with truck or bus": [True, True, False, True],
    }


def test_all_kinds_are_in_a_group() -> None:
    assert sorted(kind for kinds in GROUPS.values() for kind in kinds) == sorted(KINDS)
