"""What a predicted sequence amounts to: survival, crash probability, return. NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def log_step_survival(dones: Floats) -> NDArray[np.float64]:
    """Return log P(alive after step k | alive before it) [...] for hazards [...].

    It is at most 0 for all numbers in [0, 1], and for no others: positive below, NaN above.
    """
    # A hazard of 1 is log 0 = -inf, and exp brings back 0.
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log1p(-np.asarray(dones, np.float64))


def log_survival(dones: Floats) -> NDArray[np.float64]:
    """Return log P(alive after step k) [..., H] for hazards [..., H] in [0, 1]."""
    return np.cumsum(log_step_survival(dones), axis=-1)


def survival(dones: Floats) -> NDArray[np.float64]:
    """Return P(alive after step k) [..., H] for hazards [..., H]."""
    return np.exp(log_survival(dones))


def crash_probability_by_step(dones: Floats) -> NDArray[np.float64]:
    """Return P(ended by step k) [..., H] = 1 - prod(1 - done) for hazards [..., H]."""
    return -np.expm1(log_survival(dones))


def crash_probability(dones: Floats) -> NDArray[np.float64]:
    """Return P(ended within the sequence) [...] for hazards [..., H]."""
    return np.asarray(-np.expm1(log_survival(dones)[..., -1]))


def expected_returns(rewards: Floats, dones: Floats) -> NDArray[np.float64]:
    """Return the expected sum of rewards [...]: step k counts if alive before it.

    Args:
        rewards: [..., H].
        dones: [..., H], hazards.
    """
    later = survival(dones[..., :-1]) * rewards[..., 1:]
    return np.asarray(rewards[..., 0] + later.sum(axis=-1))
