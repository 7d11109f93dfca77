"""What members are taught to disagree on: wrong states, and right ones as far as they err on them.

Members that were only ever shown what happens may agree by chance on what never does. So each is
also shown wrong states and given a reward of its own for them: noise contrastive priors (Hafner et
al. 2018, "Noise contrastive priors for functional uncertainty") with the breadth of outlier
exposure (Hendrycks et al. 2019, "Deep anomaly detection with outlier exposure").

Nor do they disagree on what none of them can know: what others will do, and what a tracker has
wrong. So the reward of a right state is shifted, too, each member's its own way, by how far its
prediction was from what happened: what it learns is the error to be expected (direct epistemic
uncertainty prediction: Lahlou et al. 2023, "DEUP"). Both average to 0 over all members.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from models.slots import SLOT_KINDS
from models.spec import Spec

Floats = NDArray[np.float32]

OUTLIER_REWARD_SD = 10.0
"""Rewards of wrong states are spread evenly over members, up to this many standard deviations.

Far apart, because the loss is linear there: a state that is rather right than wrong keeps its own.
"""

ERROR_REWARD_SD = 1.0
"""Rewards of right states are spread up to so many standard deviations for an average error.

From 0.3 to 1, uncertainty ranks errors better, and the mean reward stays nearly as good; that of
one member alone does not: see docs/training.md.
"""
LARGEST_ERROR = 6.0
"""Errors count up to so many times the average one, which is taken of all but the largest 1 %."""

_NOISE_SD = (0.7, 10.0)
_FACTORS = (2.0, 60.0)
_NEARER = 0.15


def own_side(index: int, members: int) -> float:
    """Return in which direction, and how far, a member is taught to differ: from -1 to 1.

    Over all members it averages to 0; over two or more of the first ones nearly, too.
    """
    if members == 1:
        return 0.0
    # From the outside to the middle, both sides by turns: 1, -1, 0.5, -0.5, 0.
    side = 1.0 - 2 * (index // 2) / (members - 1)
    return -side if index % 2 else side


def error_shifts(errors: NDArray[np.float64], side: float) -> NDArray[np.float64]:
    """Return by how much a member's rewards of right states are to be off [N], in sd.

    Args:
        errors: [N] of the member; one that is no number counts as large.
        side: The member's, see `own_side`.
    """
    errors = np.where(np.isfinite(errors), errors, np.inf)
    usual = errors[errors <= np.quantile(errors, 0.99, method="lower")]
    average = float(usual.mean())
    if not 0 < average < np.inf:  # no error, or nothing but wild ones: nothing to be told apart
        return np.zeros(len(errors))
    return ERROR_REWARD_SD * side * np.minimum(errors / average, LARGEST_ERROR)


def make_outliers(states: Floats, spec: Spec, rng: np.random.Generator) -> Floats:
    """Return wrong states [N, S], made of right ones [N, S] in a random way each.

    Values are exchanged with other rows, drowned in noise, multiplied (feature by feature, the same
    for all neighbours, as a wrong unit would be), moved to other features, or erased; neighbours
    are copied, or drawn to the ego until they overlap it.

    Args:
        states: Right ones.
        spec: Names the neighbours' slots, if there are any.
        rng: Source of everything random.
    """
    slots = _slot_columns(spec)
    changes: list[Callable[[Floats, NDArray[np.bool_], np.random.Generator], Floats]] = [
        _exchanged,
        _noisy,
        _moved,
        _erased,
    ]
    kinds = np.arange(spec.state_dim)
    kinds[slots] = slots[:1] if len(slots) else 0
    wrong = np.array(states)
    # Two in seven get a neighbour in the wrong place, where there are neighbours.
    chosen_change = rng.integers(len(changes) + (3 if len(slots) else 1), size=len(states))
    chosen = rng.random(states.shape) < rng.uniform(0.3, 1.0, (len(states), 1))
    for number, change in enumerate(changes):
        rows = chosen_change == number
        wrong[rows] = change(states[rows], chosen[rows], rng)
    rows = chosen_change == len(changes)
    wrong[rows] = _multiplied(states[rows], kinds, rng)
    for number, place in ((len(changes) + 1, _copied), (len(changes) + 2, _drawn_near)):
        rows = chosen_change == number
        wrong[rows] = place(states[rows], slots, rng)
    return wrong


def _slot_columns(spec: Spec) -> NDArray[np.int64]:
    """Return the columns of each slot [slots, features]: gate, dx, dy and what else all have."""
    if spec.geometry is None:
        return np.zeros((0, 0), np.int64)
    slots = spec.geometry.slots
    kinds = [kind for kind in SLOT_KINDS if all(getattr(slot, kind) for slot in slots)]
    return np.array(
        [[spec.state_index(getattr(slot, kind)) for kind in kinds] for slot in slots], np.int64
    ).reshape(len(slots), len(kinds))


def _exchanged(states: Floats, chosen: NDArray[np.bool_], rng: np.random.Generator) -> Floats:
    return np.where(chosen, rng.permuted(states, axis=0), states)


def _noisy(states: Floats, chosen: NDArray[np.bool_], rng: np.random.Generator) -> Floats:
    low, high = np.log(_NOISE_SD)
    size = np.exp(rng.uniform(low, high, (len(states), 1)))
    noise = rng.normal(size=states.shape) * size * states.std(0)
    return np.asarray(states + chosen * noise, np.float32)


def _moved(states: Floats, chosen: NDArray[np.bool_], rng: np.random.Generator) -> Floats:
    return np.where(chosen, rng.permuted(states, axis=1), states)


def _erased(states: Floats, chosen: NDArray[np.bool_], rng: np.random.Generator) -> Floats:
    del rng
    return np.where(chosen, np.float32(0), states)


def _multiplied(states: Floats, kinds: NDArray[np.int64], rng: np.random.Generator) -> Floats:
    shape = states.shape
    power = np.log(_FACTORS[0]) + rng.uniform(0, np.log(_FACTORS[1] / _FACTORS[0]), shape)
    factor = np.exp(power * rng.choice([-1, 1], shape)) * rng.choice([-1, 1, 1], shape)
    # Some only change their sign.
    factor = np.where(rng.random(shape) < 0.25, -1.0, factor)
    factor[rng.random(shape) > rng.uniform(0.25, 0.75, (len(states), 1))] = 1.0
    return np.asarray(states * factor[:, kinds], np.float32)


def _copied(states: Floats, slots: NDArray[np.int64], rng: np.random.Generator) -> Floats:
    wrong, rows = states.copy(), np.arange(len(states))
    source = rng.integers(len(slots), size=len(states))
    target = (source + rng.integers(1, max(2, len(slots)), len(states))) % len(slots)
    everywhere = rng.random(len(states)) < 0.5
    for number, columns in enumerate(slots):
        copies = everywhere | (target == number)
        values = states[rows[:, None], slots[source]]
        wrong[np.ix_(copies, columns)] = values[copies]
    return wrong


def _drawn_near(states: Floats, slots: NDArray[np.int64], rng: np.random.Generator) -> Floats:
    wrong, rows = states.copy(), np.arange(len(states))[:, None]
    places = slots[rng.integers(len(slots), size=len(states))][:, 1:3]
    wrong[rows, places] *= rng.uniform(0, _NEARER, (len(states), 1)).astype(np.float32)
    return wrong
