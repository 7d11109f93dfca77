"""Errors that an ensemble makes to trees that expect them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.tree import DecisionTreeRegressor

from models.network.ensemble import WorldModelEnsemble
from models.safety.expected_error import ExpectedError
from models.spec import Spec
from training.dataset.windows import Windows
from training.fitting.calibrate import DIVERGED, predict_windows
from training.fitting.member import end_errors

_TREES, _DEPTH, _RATE = 200, 6, 0.1
_SHARE, _FEATURE_SHARE, _LEAST_LEAF = 0.2, 0.4, 20
"""Of windows a tree, of features a split; fewest windows a leaf."""
_MOST_WINDOWS, _FEWEST_WINDOWS, _FEWEST_TO_SCALE = 100_000, 1000, 100
_LEAST_M = 0.01
"""Smaller errors are all alike."""

Floats = NDArray[np.floating]


def fit_expected_error(
    ensemble: WorldModelEnsemble, spec: Spec, train: Windows, validation: Windows, seed: int
) -> ExpectedError | None:
    """Fit trees to the errors of the neighbours' places at the end of windows.

    Args:
        ensemble: The trained members.
        spec: Says which features are places of neighbours.
        train: Windows that the trees are fitted to, up to a number.
        validation: Windows on which they are to be right on average.
        seed: Decides which windows.

    Returns:
        None where no features are places of neighbours, or windows are too few.

    Raises:
        ValueError: Predictions are not finite.
    """
    if spec.geometry is None or not spec.geometry.slots:
        return None
    rng = np.random.default_rng(seed)
    lasting = _lasting(train)
    if len(lasting) > _MOST_WINDOWS:
        lasting = np.sort(rng.choice(lasting, _MOST_WINDOWS, replace=False))
    checked = _errors(ensemble, spec, validation.take(_lasting(validation)))
    if len(lasting) < _FEWEST_WINDOWS or len(checked[1]) < _FEWEST_TO_SCALE:
        return None
    states, errors = _errors(ensemble, spec, train.take(lasting))
    if len(states) < _FEWEST_WINDOWS:
        return None
    boosted = GradientBoostingRegressor(
        n_estimators=_TREES,
        max_depth=_DEPTH,
        learning_rate=_RATE,
        subsample=_SHARE,
        max_features=_FEATURE_SHARE,
        min_samples_leaf=_LEAST_LEAF,
        random_state=seed,
    )
    boosted.fit(states, np.log(errors + _LEAST_M))
    # The mean of logarithms is that of a smaller error.
    return _scaled_to(_exported(boosted, states.shape[1]), *checked)


def scaled(
    trees: ExpectedError, ensemble: WorldModelEnsemble, spec: Spec, windows: Windows
) -> ExpectedError:
    """Return trees that are right on average on windows, if any of these go on among neighbours.

    Args:
        trees: Right up to a factor.
        ensemble: Whose errors they expect.
        spec: Says which features are places of neighbours.
        windows: Nothing else was fitted to them.

    Raises:
        ValueError: Predictions are not finite.
    """
    return _scaled_to(trees, *_errors(ensemble, spec, windows.take(_lasting(windows))))


def _scaled_to(trees: ExpectedError, states: NDArray[np.float32], errors: Floats) -> ExpectedError:
    if not len(errors):
        return trees
    factor = errors.mean() / trees(states).mean()
    return replace(trees, base=trees.base + float(np.log(factor)))


def _lasting(windows: Windows) -> NDArray[np.int64]:
    """Return the rows of windows that go on to their last step."""
    return np.flatnonzero(windows.valid[:, -1] & ~windows.ends)


def _errors(
    ensemble: WorldModelEnsemble, spec: Spec, windows: Windows
) -> tuple[NDArray[np.float32], Floats]:
    """Return first states [N, S] and errors [N] in m, of windows with a neighbour.

    Raises:
        ValueError: Predictions are not finite.
    """
    if not len(windows):
        return windows.states[:, 0], np.zeros(0)
    predicted, true = predict_windows(ensemble, windows).states[:, -1], windows.states[:, -1]
    if not np.isfinite(predicted).all():
        raise ValueError(DIVERGED)
    member = next(iter(ensemble.members))
    errors = end_errors(member, torch.tensor(predicted), torch.tensor(true), spec).numpy()
    return windows.states[errors > 0, 0], errors[errors > 0]


def _exported(boosted: GradientBoostingRegressor, features: int) -> ExpectedError:
    """Return boosted trees as complete ones; nodes that they lack send all states to the left."""
    leaves = 2**_DEPTH
    feature = np.zeros((_TREES, leaves - 1), np.int32)
    threshold = np.full((_TREES, leaves - 1), np.inf, np.float32)
    value = np.zeros((_TREES, leaves), np.float32)
    for number, (tree,) in enumerate(boosted.estimators_):
        _fill(tree, boosted.learning_rate, feature[number], threshold[number], value[number])
    zeros = np.zeros((1, features), np.float32)
    base = boosted.predict(zeros)[0] - sum(
        boosted.learning_rate * tree.predict(zeros)[0] for (tree,) in boosted.estimators_
    )
    return ExpectedError(feature, threshold, value, float(base))


def _fill(
    tree: DecisionTreeRegressor,
    rate: float,
    feature: NDArray[np.int32],
    threshold: NDArray[np.float32],
    value: NDArray[np.float32],
) -> None:
    """Write a tree into the rows of a complete one."""
    found = tree.tree_
    inner = len(feature)
    waiting = [(0, 0)]
    while waiting:
        node, place = waiting.pop()
        left, right = found.children_left[node], found.children_right[node]
        if left >= 0:
            feature[place] = found.feature[node]
            threshold[place] = _rounded_down(found.threshold[node])
            waiting += [(left, 2 * place + 1), (right, 2 * place + 2)]
            continue
        while place < inner:
            place = 2 * place + 1
        value[place - inner] = rate * found.value[node, 0, 0]


def _rounded_down(threshold: float) -> np.float32:
    """Return the largest float32 that is not above: the same ones are below or equal."""
    near = np.float32(threshold)
    return near if near <= threshold else np.nextafter(near, np.float32(-np.inf))
