"""Tensors of a checkpoint: do they fit the model, are they finite, do normalisers make sense?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from models.checkpoint.calibration import DONE_SCALES, DONE_SHIFTS, Calibration
from models.checkpoint.files import CheckpointError
from models.network.world_model import NORMALISERS
from models.spec import Spec

_TINY, _HUGE = 1e-12, 1e12
_SENSIBLE = {
    "reward_scale": (_TINY, _HUGE),
    "done_scale": DONE_SCALES,
    "done_shift": DONE_SHIFTS,
}
"""What normalisers may hold; see `_normaliser_bounds` for those of features. Beyond, the last two
would make a likely crash look impossible, or turn the order of hazards around, whatever the network
predicts."""
_MOST_SPREADS, _LEAST_SPREAD = 100.0, 1e-6
"""A feature's scale beside the width of its range. Values that are normalised by much more all look
alike: the members answer the same to every state, and never disagree."""


def load_tensors(
    model: torch.nn.Module, tensors: dict[str, Tensor], source: Path | str, *, optional: bool
) -> None:
    """Copy tensors into a model, refusing what does not fit.

    Args:
        model: Receives the values.
        tensors: By name.
        source: Named in errors.
        optional: Whether normalisers may be missing and stay identity.

    Raises:
        CheckpointError: A tensor is missing, superfluous, of another shape, or not finite.
    """
    expected = model.state_dict()
    required = {n for n in expected if not (optional and n.rpartition(".")[2] in NORMALISERS)}
    if missing := sorted(required - tensors.keys()):
        raise CheckpointError(f"{source} lacks the tensor {missing[0]}")
    if extra := sorted(tensors.keys() - expected.keys()):
        raise CheckpointError(f"{source} holds {extra[0]}, which the model does not have")
    for name, tensor in tensors.items():
        compare_shape(source, name, tensor, expected[name].shape)
        if tensor.dtype != expected[name].dtype:
            raise CheckpointError(
                f"{source} holds {name} as {tensor.dtype}, the model needs {expected[name].dtype}"
            )
        check_values(source, name, tensor)
    model.load_state_dict(tensors, strict=not optional)


def check_values(source: Path | str, name: str, tensor: Tensor) -> None:
    """Refuse values that are not finite, or that make no sense in a normaliser of that name.

    Raises:
        CheckpointError: There is one; the sentence names it.
    """
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"{source} holds values in {name} that are not finite")
    low, high = _SENSIBLE.get(name.rpartition(".")[2], (-torch.inf, torch.inf))
    if len(wrong := tensor[(tensor < low) | (tensor > high)]):
        raise CheckpointError(
            f"{source}: {name} holds {wrong[0]:g}, but must be from {low:g} to {high:g}"
        )


def _normaliser_bounds(spec: Spec, calibration: Calibration) -> dict[str, tuple[Tensor, Tensor]]:
    """Return least and most of what the normalisers of each feature may hold, [S] each.

    The mean of values lies within their range, and their deviation is half of its width at most. A
    range is the spec's or the trained one, whatever is wider; normalisers that change nothing (0
    and 1) are always taken.
    """
    low, high = (
        torch.tensor([getattr(x, name) for x in spec.state], dtype=torch.float64)
        for name in ("low", "high")
    )
    if calibration.state_low:
        low = low.minimum(torch.tensor(calibration.state_low, dtype=torch.float64))
        high = high.maximum(torch.tensor(calibration.state_high, dtype=torch.float64))
    width = high - low
    most = _MOST_SPREADS * width.clamp(min=1.0)
    return {
        "state_mean": (low.clamp(max=0.0) - width, high.clamp(min=0.0) + width),
        "state_scale": (_LEAST_SPREAD * width.clamp(max=1.0), most),
        "delta_scale": (torch.zeros_like(width), most),
    }


def check_normalisers(
    source: Path | str, weights: dict[str, Tensor], spec: Spec, calibration: Calibration
) -> None:
    """Refuse normalisers that no values of the features have.

    Raises:
        CheckpointError: A mean lies far outside its feature's range, or a scale is far wider.
    """
    bounds = _normaliser_bounds(spec, calibration)
    for name, tensor in weights.items():
        kind = name.rpartition(".")[2]
        if kind not in bounds:
            continue
        least, most = bounds[kind]
        values = tensor.cpu().double()
        is_wrong = (values < least) | (values > most)
        if is_wrong.any():
            i = int(is_wrong.nonzero()[0])
            raise CheckpointError(
                f"{source}: {name} holds {values[i]:g} for {spec.state[i].name}, but must be from "
                f"{least[i]:g} to {most[i]:g} beside the feature's range"
            )


def compare_shape(source: Path | str, name: str, tensor: Tensor, needed: Sequence[int]) -> None:
    """Refuse a tensor of another shape.

    Raises:
        CheckpointError: It has; the sentence names both.
    """
    if list(tensor.shape) != list(needed):
        raise CheckpointError(
            f"{source} holds {name} of shape {list(tensor.shape)}, the model needs {list(needed)}"
        )
