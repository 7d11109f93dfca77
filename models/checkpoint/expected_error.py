"""The trees of an expected error on disk."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from models.checkpoint.files import CheckpointError, read_bytes
from models.safety.expected_error import ExpectedError
from models.spec import Spec

_KINDS = {
    "feature": torch.int32,
    "threshold": torch.float32,
    "value": torch.float32,
    "base": torch.float64,
}


def error_tensors(expected: ExpectedError) -> dict[str, Tensor]:
    """Return the tensors that `read_expected_error` reads."""
    found = {name: torch.tensor(getattr(expected, name), dtype=x) for name, x in _KINDS.items()}
    return {name: tensor.contiguous() for name, tensor in found.items()}


def read_expected_error(path: Path, spec: Spec) -> ExpectedError | None:
    """Read a file; None if there is none.

    Args:
        path: The file.
        spec: Of the states that the trees read.

    Raises:
        CheckpointError: It is damaged, does not fit the spec, or makes no sense.
    """
    if not path.exists():
        return None
    try:
        tensors = load(read_bytes(path))
    except SafetensorError as exc:
        raise CheckpointError(f"cannot read {path}: {exc}") from exc
    for name, kind in _KINDS.items():
        if name not in tensors:
            raise CheckpointError(f"{path} lacks the tensor {name}")
        if tensors[name].dtype != kind:
            raise CheckpointError(f"{path} holds {name} as {tensors[name].dtype}, not {kind}")
    if extra := sorted(tensors.keys() - _KINDS.keys()):
        raise CheckpointError(f"{path} holds {extra[0]}, which trees do not have")
    base = tensors.pop("base")
    if base.shape != ():
        raise CheckpointError(f"{path} holds base of shape {tuple(base.shape)}, not one number")
    try:
        found = ExpectedError(**{n: x.numpy() for n, x in tensors.items()}, base=base.item())
    except ValueError as exc:
        raise CheckpointError(f"{path}: {exc}") from exc
    if found.least_state_dim > spec.state_dim:
        raise CheckpointError(
            f"{path}: feature holds {found.least_state_dim - 1}, the spec has {spec.state_dim} "
            "features"
        )
    return found
