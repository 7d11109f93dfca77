"""Windows of which only the outcomes matter."""

from __future__ import annotations

import numpy as np

from models.highway import highway_spec
from training.dataset.sources import Labels
from training.dataset.windows import Windows
from training.simulation.simulator import CAUSES

HORIZON = 4


def outcome_windows(end_steps: list[int], episodes: list[int] | None = None) -> Windows:
    """Windows of 4 steps; a number is the step at which one terminates, 0 if it does not.

    Each is an episode of its own unless `episodes` says otherwise; an episode's windows start one
    step apart.
    """
    ends = np.array(end_steps)
    count = len(ends)
    episode = np.array(episodes if episodes is not None else range(count))
    terminated = (np.arange(1, HORIZON + 1) == ends[:, None]) & (ends[:, None] > 0)
    return Windows(
        states=np.zeros((count, HORIZON + 1, highway_spec().state_dim), np.float32),
        actions=np.zeros((count, HORIZON, 3), np.float32),
        rewards=np.zeros((count, HORIZON), np.float32),
        terminated=terminated,
        valid=np.ones((count, HORIZON), bool),
        episode=episode,
        environment=np.zeros(count, np.uint8),
        behaviour=np.zeros(count, np.uint8),
        start_step=np.array([int(np.sum(episode[:i] == episode[i])) for i in range(count)]),
    )


def labels_of(causes: list[int]) -> Labels:
    """Labels of episodes of which only the causes of their ends matter, indices into `CAUSES`."""
    nothing = np.zeros(len(causes), bool)
    names = ("only",)
    return Labels(np.array(causes), CAUSES, names, names, nothing, "careful driving", ~nothing)
