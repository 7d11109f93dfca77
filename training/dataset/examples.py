"""Held-out episodes as JSON files, for examples, tests and people.

Each file holds one episode as a monitor would see it: at every step the state with the nearest
neighbours of that moment, and the action that was taken.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.checkpoint import load_checkpoint
from models.spec import Spec
from training.dataset.features import tracked_states
from training.dataset.overlap import held_out
from training.dataset.sources import Simulated
from training.dataset.store import EpisodeStore, load_store
from training.simulation.simulator import CAUSES

_MIN_STEPS = 32


def choose_examples(
    store: EpisodeStore, episodes: NDArray[np.int64], count: int
) -> dict[str, list[int]]:
    """Choose episodes by their recorded outcome alone, never by what a model predicts for them.

    Args:
        store: Where the episodes are.
        episodes: Held-out ones.
        count: Number a kind.

    Returns:
        `crash`, `off_road` and `careful` (driven carefully to the time limit): store indices,
        spread over the environments in turn.
    """
    careful = store.behaviour == store.behaviour_names.index("careful")
    kinds = {
        "crash": store.cause == CAUSES.index("crash"),
        "off_road": store.cause == CAUSES.index("off_road"),
        "careful": careful & (store.truncated > 0),
    }
    is_long = store.frame_count > _MIN_STEPS
    chosen = {}
    for kind, mask in kinds.items():
        candidates = episodes[mask[episodes] & is_long[episodes]]
        queues = [
            list(candidates[store.environment[candidates] == code])
            for code in np.unique(store.environment[candidates])
        ]
        turns = [queue[i] for i in range(count) for queue in queues if i < len(queue)]
        chosen[kind] = [int(episode) for episode in turns[:count]]
    return chosen


def export_examples(
    store: EpisodeStore, episodes: NDArray[np.int64], spec: Spec, folder: Path, *, count: int = 8
) -> list[Path]:
    """Write chosen episodes as `crash-1.json`, ..., replacing those of before.

    Args:
        store: Where the episodes are.
        episodes: Held-out ones.
        spec: Names the features.
        folder: Where to write.
        count: Number a kind; see `choose_examples`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind, indices in choose_examples(store, episodes, count).items():
        for old in folder.glob(f"{kind.replace('_', '-')}-*.json"):
            old.unlink()
        for number, index in enumerate(indices, start=1):
            path = folder / f"{kind.replace('_', '-')}-{number}.json"
            path.write_text(json.dumps(_document(store, index, spec)) + "\n")
            paths.append(path)
    return paths


def export_held_out(checkpoint: Path, data: Path, folder: Path) -> list[Path]:
    """Write episodes of the data set's test split that the checkpoint was not trained on."""
    loaded, store = load_checkpoint(checkpoint), load_store(data)
    parts = held_out(loaded.training, Simulated(store)).episodes
    return export_examples(store, parts["test"], loaded.spec, folder)


def _document(store: EpisodeStore, index: int, spec: Spec) -> dict[str, Any]:
    start, steps = int(store.frame_start[index]), int(store.frame_count[index]) - 1
    states = tracked_states(store, np.arange(start, start + steps + 1), 0, spec)[:, 0]
    return {
        "environment": store.environment_names[store.environment[index]],
        "behaviour": store.behaviour_names[store.behaviour[index]],
        "seed": int(store.seed[index]),
        "outcome": CAUSES[store.cause[index]],
        "dt_s": spec.dt_s,
        "state_features": [feature.name for feature in spec.state],
        "action_features": [feature.name for feature in spec.action],
        "states": _decimals(states),
        "actions": _decimals(store.action[start : start + steps]),
        "rewards": _decimals(store.reward[start : start + steps]),
    }


def _decimals(values: NDArray[np.float32]) -> Any:
    """Return nested lists of the shortest decimals that read back as the same float32."""
    if values.ndim > 1:
        return [_decimals(row) for row in values]
    return [float(str(value)) for value in values]
