"""Neighbours of any spec against physics with the same information.

The ego moves as the bicycle of the spec's kinematics by its recorded actions. Neighbours go on with
the speed and heading that the first state has of them, or keep acceleration and turn rate as well,
as far as the state has these. No probabilities: of any data, those without ends, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.network.kinematics import KinematicStep
from models.spec import Spec
from training.dataset.windows import Windows
from training.evaluation.methods import MODEL
from training.evaluation.state_errors import Sums, compare_final_errors, position_errors

Floats = NDArray[np.floating[Any]]

CONSTANT_VELOCITY = "constant velocity"
CONSTANT_RATES = "constant rates"
"""Neighbours keep accelerations and turn rates, where the spec has them."""

_CHUNK_WINDOWS = 8192


def has_neighbours(spec: Spec) -> bool:
    """Return whether physics can predict a spec's neighbours."""
    return spec.kinematics is not None and bool(spec.geometry and spec.geometry.slots)


def rollout(spec: Spec, start: Floats, actions: Floats, *, keeps_rates: bool) -> Floats:
    """Return states by physics, in double precision.

    Args:
        spec: See `has_neighbours`.
        start: [N, S].
        actions: [N, H, A].
        keeps_rates: Whether neighbours keep acceleration and turn rate, or speed and heading.

    Returns:
        [N, H + 1, S], the start included.
    """
    assert spec.geometry is not None
    step, states = KinematicStep(spec), torch.from_numpy(np.array(start, np.float64))
    if not keeps_rates:
        for slot in spec.geometry.slots:
            for name in (slot.acceleration, slot.yaw_rate):
                if name is not None:
                    states[:, spec.state_index(name)] = 0.0
    held = torch.from_numpy(np.array(actions, np.float64))
    rows = [states]
    with torch.inference_mode():
        for k in range(held.shape[1]):
            rows.append(step(rows[-1], held[:, k]))
        return np.asarray(torch.stack(rows, dim=1).numpy())


def _states(spec: Spec, windows: Windows, predicted: Floats, name: str, rows: slice) -> Floats:
    """Return what a method predicts of some of the windows, [n, H + 1, S]."""
    if name == MODEL:
        return predicted[rows]
    starts, actions = windows.states[rows, 0], windows.actions[rows]
    return rollout(spec, starts, actions, keeps_rates=name == CONSTANT_RATES)


def neighbour_errors(spec: Spec, windows: Windows, predicted: Floats, draws: int) -> dict[str, Any]:
    """Compare the model's neighbours with those of physics.

    Args:
        spec: See `has_neighbours`.
        windows: N of them, recorded to their end.
        predicted: [N, H + 1, S] by the model.
        draws: Resamples of episodes for the intervals.

    Returns:
        By method the `mean` error of their positions after the last step in m, its `interval`,
        the model's error minus this one (`lead`), and its interval, and the mean errors `by_step`
        [H + 1], the start included.
    """
    names, index = np.unique(windows.episode, return_inverse=True)
    sums: dict[str, Sums] = {}
    curves: dict[str, Floats] = {}
    for name in (MODEL, CONSTANT_VELOCITY, CONSTANT_RATES):
        above, below = np.zeros((2, len(names)))
        by_step, count = np.zeros((2, windows.horizon + 1))
        for start in range(0, len(windows), _CHUNK_WINDOWS):
            rows = slice(start, start + _CHUNK_WINDOWS)
            error, there = position_errors(
                _states(spec, windows, predicted, name, rows), windows.states[rows], spec
            )
            error = np.where(there, error, 0.0)
            by_step += error.sum((0, 2))
            count += there.sum((0, 2))
            above += np.bincount(index[rows], error[:, -1].sum(-1), len(names))
            below += np.bincount(index[rows], there[:, -1].sum(-1), len(names))
        sums[name] = {"neighbour_m": (above, below)}
        curves[name] = by_step / np.maximum(count, 1)
    found = compare_final_errors(sums, draws, MODEL)
    return {
        name: {**by_quantity["neighbour_m"], "by_step": curves[name].tolist()}
        for name, by_quantity in found.items()
    }
