"""From jobs to the arrays of one engine call, and back. Pure functions."""

from __future__ import annotations

import numpy as np

from service.interface import Array, Prediction
from service.scheduling.jobs import Launch


class BadOutputError(Exception):
    """The engine returned arrays of the wrong shape."""


def gather(launch: Launch) -> tuple[Array, Array]:
    """Return states [B, S] and actions [B, H, A] of all jobs, in their order."""
    jobs = launch.jobs
    if len(jobs) == 1:
        return jobs[0].states, jobs[0].actions
    return np.concatenate([j.states for j in jobs]), np.concatenate([j.actions for j in jobs])


def checked(prediction: Prediction, launch: Launch) -> Prediction:
    """Return a launch's prediction, knowing whether it is finite.

    Raises:
        BadOutputError: Its arrays do not belong to the launch's rows.
    """
    rows, horizon = launch.rows, launch.horizon
    path = rows, horizon + 1, launch.jobs[0].states.shape[1]
    expected = path, (rows, horizon), (rows, horizon), (rows,)
    p = prediction
    seen = p.states.shape, p.rewards.shape, p.dones.shape, p.uncertainty.shape
    if seen != expected:
        raise BadOutputError(
            f"states, rewards, dones and uncertainty have shapes {seen}, expected {expected}"
        )
    prediction.mark_finite()
    return prediction
