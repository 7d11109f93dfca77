"""From jobs to the arrays of one engine call, and back. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from service.interface import Array, Prediction
from service.jobs import Job, Launch


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
    state_dim = launch.jobs[0].states.shape[1]
    expected = {
        "states": (rows, horizon + 1, state_dim),
        "rewards": (rows, horizon),
        "dones": (rows, horizon),
        "uncertainty": (rows,),
    }
    for name, shape in expected.items():
        if getattr(prediction, name).shape != shape:
            raise BadOutputError(
                f"{name} has shape {getattr(prediction, name).shape}, expected {shape}"
            )
    return prediction if _is_finite(prediction) else replace(prediction, is_finite=False)


def _is_finite(prediction: Prediction) -> bool:
    # A sum of squares is one pass; if it is not finite, some number may only have been big.
    parts = (prediction.states, prediction.rewards, prediction.dones)
    return all(math.isfinite(np.vdot(x, x)) or bool(np.isfinite(x).all()) for x in parts)


def portions(launch: Launch, prediction: Prediction) -> Iterator[tuple[Job, Prediction]]:
    """Give each job its own rows, as views."""
    if len(launch.jobs) == 1:
        yield launch.jobs[0], prediction
        return
    states, rewards, dones = prediction.states, prediction.rewards, prediction.dones
    row = 0
    for job in launch.jobs:
        rows = slice(row, row + job.rows)
        row = rows.stop
        part = Prediction(states[rows], rewards[rows], dones[rows], prediction.uncertainty[rows])
        if not prediction.is_finite:
            part.is_finite = _is_finite(part)
        yield job, part
