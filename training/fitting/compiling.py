"""A member's step as machine code, for runs that are long enough to be worth compiling it."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from models.network.unroll import Step
from models.network.world_model import WorldModel

WORTH_ROWS = 2_000_000
"""Rows of a member from which compiling pays: it takes a minute or two, and halves the rest."""

_COMPILING = (torch._dynamo.exc.TorchDynamoException, OSError, ImportError)
"""What fails in compiling; its files and libraries fail with errors of Python."""

log = logging.getLogger(__name__)


def training_step(model: WorldModel, rows: int) -> Step:
    """Return `model.predict`, compiled by TorchInductor where that is faster.

    Its numbers differ from the model's by rounding. Without a C++ compiler, or where compiling
    fails, as without a folder for its files that can be written, a warning says so and training
    goes on with the model itself. On a GPU nothing is compiled.

    Args:
        model: A member, on its device.
        rows: How many rows the member is trained with.
    """
    if rows < WORTH_ROWS or model.state_mean.device.type != "cpu":
        return model.predict
    try:
        # One process: a pool of compilers would outlive an interrupted run.
        compiled: Step = torch.compile(model.predict, dynamic=False, options={"compile_threads": 1})
    except _COMPILING as exc:  # it has no folder for its files
        _warn(exc)
        return model.predict
    step = compiled

    def checked(state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        nonlocal step
        # Code is compiled for each layout in memory, and for a few only.
        state, action = state.contiguous(), action.contiguous()
        try:
            return step(state, action)
        except _COMPILING as exc:
            if step is not compiled:
                raise
            found = model.predict(state, action)  # if it is the model that fails, so does this
            _warn(exc)
            step = model.predict
            return found

    return checked


def _warn(exc: Exception) -> None:
    log.warning(
        "training without machine code, half as fast: %s. TorchInductor needs a C++ compiler (g++) "
        "and a folder that it can write (TORCHINDUCTOR_CACHE_DIR)",
        _first_line(exc),
    )


def _first_line(exc: Exception) -> str:
    """Return what kind of error it is, and the first line of what it says."""
    first = next(iter(str(exc).strip().splitlines()), "").rstrip(".")
    kind = type(exc).__name__
    return first if first.startswith(kind) else f"{kind}: {first}"
