"""Bring in weights that were trained elsewhere with the specification's own class."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor

from models.checkpoint import Architecture, Checkpoint, load_tensors
from models.ensemble import WorldModelEnsemble
from models.files import CheckpointError
from models.spec import anonymous_spec

_NEEDED = ("encoder.0.weight", "dynamics.0.weight", "decoder.weight")


def import_weights(weights: Path, *, activation: str = "elu", dt_s: float = 0.05) -> Checkpoint:
    """Make a checkpoint of a `state_dict` trained with the specification's own class.

    Dims are read off the shapes. Such a model predicts the absolute next state in raw units
    unless the file holds normalisers, and has no calibration: its safety verdicts are
    `unknown`.

    Args:
        weights: File written by `torch.save(model.state_dict(), ...)`; weights only, no code.
        activation: What the model was trained with; the file does not say.
        dt_s: Length of a step; the file does not say.

    Raises:
        CheckpointError: The file cannot be read or does not hold such a model.
    """
    tensors = _read_tensors(weights)
    if missing := [name for name in _NEEDED if name not in tensors]:
        raise CheckpointError(f"{weights} lacks the tensor {missing[0]}: not a WorldModel's")
    hidden_dims = tuple(
        len(x) for name, x in tensors.items() if name.startswith("encoder.") and x.dim() == 2
    )
    state_dim = tensors["encoder.0.weight"].shape[1]
    action_dim = tensors["dynamics.0.weight"].shape[1] - hidden_dims[-1]
    architecture = Architecture(hidden_dims, activation, residual=False, check_latent=False)
    try:
        spec = anonymous_spec(state_dim, action_dim, dt_s)
        model = architecture.build(spec)
    except ValueError as exc:
        raise CheckpointError(f"{weights} cannot be a WorldModel: {exc}") from exc
    load_tensors(model, tensors, weights, optional=True)
    return Checkpoint(
        ensemble=WorldModelEnsemble.from_members([model]),
        spec=spec,
        architecture=architecture,
        name="imported",
        training={"imported_from": weights.name},
    )


def _read_tensors(weights: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(weights, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as exc:
        reason = str(exc).partition("\n")[0] or type(exc).__name__
        raise CheckpointError(f"cannot read weights from {weights}: {reason}") from exc
    if not isinstance(tensors, dict) or not all(isinstance(x, Tensor) for x in tensors.values()):
        raise CheckpointError(f"{weights} does not hold a state_dict of tensors")
    return {str(name): tensor.float() for name, tensor in tensors.items()}
