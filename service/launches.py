"""From pieces of jobs to the arrays of one engine call, and back. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from service.interface import Array, Prediction
from service.jobs import Job, JobResult, Launch, Piece


class BadOutputError(Exception):
    """The engine returned arrays of the wrong shape."""


def gather(launch: Launch) -> tuple[Array, Array]:
    """Return states [B, S] and actions [B, H, A] of all pieces, in their order."""
    if len(launch.pieces) == 1:
        piece = launch.pieces[0]
        return (
            piece.job.states[piece.start : piece.stop],
            piece.job.actions[piece.start : piece.stop],
        )
    return (
        np.concatenate([p.job.states[p.start : p.stop] for p in launch.pieces]),
        np.concatenate([p.job.actions[p.start : p.stop] for p in launch.pieces]),
    )


def checked(prediction: Prediction, launch: Launch) -> Prediction:
    """Return a launch's prediction, knowing whether it is finite.

    Raises:
        BadOutputError: Its arrays do not belong to the launch's rows.
    """
    rows, horizon = launch.rows, launch.horizon
    state_dim = launch.pieces[0].job.states.shape[1]
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


def joined(job: Job) -> JobResult:
    """Return the result of a job whose parts are all there, in row order."""
    prediction = job.parts[0]
    if len(job.parts) > 1:
        prediction = Prediction(
            np.concatenate([part.states for part in job.parts]),
            np.concatenate([part.rewards for part in job.parts]),
            np.concatenate([part.dones for part in job.parts]),
            np.concatenate([part.uncertainty for part in job.parts]),
            all(part.is_finite for part in job.parts),
        )
    assert job.started_s is not None
    return JobResult(
        prediction=prediction,
        queue_s=job.started_s - job.submitted_s,
        compute_s=job.compute_s,
        launches=len(job.parts),
        launch_rows=job.launch_rows,
    )


def portions(launch: Launch, prediction: Prediction) -> Iterator[tuple[Piece, Prediction]]:
    """Give each piece its own rows, as views."""
    if len(launch.pieces) == 1:
        yield launch.pieces[0], prediction
        return
    row = 0
    for piece in launch.pieces:
        rows = slice(row, row + piece.stop - piece.start)
        row = rows.stop
        part = Prediction(
            prediction.states[rows],
            prediction.rewards[rows],
            prediction.dones[rows],
            prediction.uncertainty[rows],
        )
        yield piece, part if prediction.is_finite else replace(part, is_finite=_is_finite(part))
