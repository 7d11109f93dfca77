"""From pieces of jobs to the arrays of one engine call, and back. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from service.interface import Array, Prediction
from service.queues import Job, JobResult, Launch, Piece


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


def checked(run: Callable[[Array, Array], Prediction], states: Array, actions: Array) -> Prediction:
    """Run a launch and refuse an answer whose arrays do not belong to its rows."""
    prediction = run(states, actions)
    rows, horizon = actions.shape[:2]
    expected = {
        "states": (rows, horizon + 1, states.shape[1]),
        "rewards": (rows, horizon),
        "dones": (rows, horizon),
        "uncertainty": (rows,),
    }
    for name, shape in expected.items():
        if getattr(prediction, name).shape != shape:
            raise BadOutputError(
                f"{name} has shape {getattr(prediction, name).shape}, expected {shape}"
            )
    return replace(prediction, is_finite=_is_finite(prediction))


def _is_finite(prediction: Prediction) -> bool:
    parts = (prediction.states, prediction.rewards, prediction.dones)
    return all(bool(np.isfinite(part).all()) for part in parts)


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
