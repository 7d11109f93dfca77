"""How wrong a prediction will probably be, from the state it starts in. NumPy only.

Members agree on what none of them can know: what others will do, and what a tracker has wrong. How
large the errors are that this causes is learned from errors made: regression trees, boosted
(Friedman 2001, "Greedy function approximation: a gradient boosting machine"), of the logarithm of
the error (direct epistemic uncertainty prediction: Lahlou et al. 2023, "DEUP"). Trees find what a
network of the state's features does not: whether a heading or a curvature is nearly zero, on the
scale of a milliradian, tells a car that keeps its lane, and how noisy a tracker is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

DEEPEST, MOST_TREES = 10, 1000
_CHUNK_ROWS = 1024
"""Trees times rows of numbers are made: many rows are taken by parts."""
_LARGEST_LOG = 700.0
"""Of an error in m; beyond, there is no such float."""


@dataclass(frozen=True, eq=False)
class ExpectedError:
    """Complete binary trees of one depth D; their sum is the logarithm of the error in m.

    Node i has the children 2i + 1 and 2i + 2; a state goes to the second if the node's feature is
    above the node's threshold.

    Attributes:
        feature: int32 [T, 2^D - 1], column of the state.
        threshold: float32 [T, 2^D - 1]; infinite where all states go to the first child.
        value: float32 [T, 2^D], of the leaves from left to right.
        base: What is added to the sum.

    Raises:
        ValueError: Shapes do not fit each other, or values make no sense.
    """

    feature: NDArray[np.int32]
    threshold: NDArray[np.float32]
    value: NDArray[np.float32]
    base: float

    def __post_init__(self) -> None:
        if self.value.ndim != 2 or not 1 <= len(self.value) <= MOST_TREES:
            raise ValueError(
                f"value has shape {self.value.shape}, but must be 1 to {MOST_TREES} trees by leaves"
            )
        trees, leaves = self.value.shape
        if leaves not in [2**depth for depth in range(1, DEEPEST + 1)]:
            raise ValueError(f"value has {leaves} leaves, not a power of 2 up to {2**DEEPEST}")
        for name in ("feature", "threshold"):
            if (shape := getattr(self, name).shape) != (trees, leaves - 1):
                raise ValueError(f"{name} has shape {shape}, not {(trees, leaves - 1)}")
        if self.feature.min() < 0:
            raise ValueError(f"feature holds {self.feature.min()}, but must be a column")
        if np.isnan(self.threshold).any():
            raise ValueError("threshold holds values that are no numbers")
        largest = abs(self.base) + np.abs(self.value).max(1).sum(dtype=np.float64)
        if not largest <= _LARGEST_LOG:
            raise ValueError(
                f"value and base add up to {largest:g}, the largest is {_LARGEST_LOG:g}"
            )

    @property
    def least_state_dim(self) -> int:
        """Number of features that a state must have at least."""
        return int(self.feature.max()) + 1

    def __call__(self, states: Floats) -> Floats:
        """Return the error to be expected of each of K predictions, in m.

        Args:
            states: [K, S], the states that they start in.

        Returns:
            [K], finite: a number that is none is above no threshold.
        """
        if len(states) > _CHUNK_ROWS:
            parts = range(0, len(states), _CHUNK_ROWS)
            return np.concatenate([self(states[first : first + _CHUNK_ROWS]) for first in parts])
        feature, threshold, value, first_node, first_leaf = self._flat
        node = np.zeros((len(states), len(first_node)), np.int64)
        # Positions in all states as one row: `take` is several times as fast as indexing by rows.
        first_feature = np.arange(len(states))[:, None] * states.shape[1]
        for _ in range(self._depth):
            at = node + first_node
            is_above = states.take(feature.take(at) + first_feature) > threshold.take(at)
            node = 2 * node + 1 + is_above
        logarithm: Floats = self.base + value.take(node + first_leaf).sum(1, dtype=np.float64)
        return np.exp(logarithm)

    @property
    def _depth(self) -> int:
        return int(self.value.shape[1]).bit_length() - 1

    @cached_property
    def _flat(
        self,
    ) -> tuple[NDArray[np.int64], Floats, Floats, NDArray[np.int64], NDArray[np.int64]]:
        """All trees as one row each of features, thresholds and values; where each tree begins."""
        trees, nodes = self.feature.shape
        tree = np.arange(trees)
        return (
            self.feature.ravel().astype(np.int64),
            self.threshold.ravel(),
            self.value.ravel(),
            tree * nodes,
            tree * (nodes + 1) - nodes,
        )
