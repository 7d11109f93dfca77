"""Who crashed with whom, by kinds of road users."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.dataset.store import EpisodeStore
from training.simulation.rectangles import rectangle_gap
from training.simulation.simulator import CAUSES

Floats = NDArray[np.floating[Any]]

GROUPS = {
    "car or van": ("car", "van"),
    "truck or bus": ("bus", "truck", "truck with trailer"),
    "motorcycle": ("motorcycle",),
    "bicycle": ("bicycle",),
    "pedestrian": ("pedestrian",),
}
"""Kinds that are counted together."""

NOBODY = -1
CRASH = CAUSES.index("crash")


@dataclass(frozen=True)
class Parties:
    """Who drove, and who was hit, in E episodes.

    Attributes:
        ego: [E] index into `GROUPS`; `NOBODY` of a kind that is in none.
        hit: [E] likewise; `NOBODY` where the episode ends in no crash.
    """

    ego: NDArray[np.int64]
    hit: NDArray[np.int64]

    def pairs(self, episode: NDArray[np.integer[Any]]) -> dict[str, NDArray[np.bool_]]:
        """Return which windows [N], of episodes [N] that crash, are of each pair there is."""
        names, ego, hit = [*GROUPS], self.ego[episode], self.hit[episode]
        found = {}
        for i, one in enumerate(names):
            for j, other in enumerate(names):
                rows = (ego == i) & (hit == j)
                if rows.any():
                    found[f"{one} with {other}"] = rows
        return found


def parties_of(store: EpisodeStore) -> Parties:
    """Return who drove and who was hit: whose rectangle overlaps the ego's most at the end."""
    group = np.full(len(store.kind_names) + 1, NOBODY, np.int64)  # the last one: no kind
    for number, kinds in enumerate(GROUPS.values()):
        for kind in set(kinds) & {*store.kind_names}:
            group[store.kind_names.index(kind)] = number
    hit = np.full(len(store.cause), NOBODY, np.int64)
    crashes = np.flatnonzero(store.cause == CRASH)
    if len(crashes):
        column = _gaps_at_end(store, crashes).argmin(1)
        hit[crashes] = group[store.kind[crashes, column]]
    return Parties(group[store.ego_kind], hit)


def _gaps_at_end(store: EpisodeStore, episodes: NDArray[np.int64]) -> Floats:
    """Return the gaps of the ego to everybody [n, V] in the last frames; infinite to nobody."""
    last = store.frame_start[episodes] + store.frame_count[episodes] - 1
    ego, others = store.ego[last].astype(np.float64), store.vehicles[last].astype(np.float64)
    offset = others[..., :2] - ego[:, None, :2]
    cos, sin = np.cos(ego[:, 2:3]), np.sin(ego[:, 2:3])
    gaps = rectangle_gap(
        cos * offset[..., 0] + sin * offset[..., 1],
        cos * offset[..., 1] - sin * offset[..., 0],
        others[..., 2] - ego[:, 2:3],
        (store.ego_size[episodes, None, 0], store.ego_size[episodes, None, 1]),
        (store.size[episodes, :, 0], store.size[episodes, :, 1]),
    )
    return np.where(store.present[last] > 0, gaps, np.inf)
