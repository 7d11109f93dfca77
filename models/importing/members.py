"""Members of one file or of several, compared, and joined to a checkpoint."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.checkpoint import Architecture, Checkpoint, load_tensors
from models.checkpoint.files import CheckpointError
from models.importing.files import read_weights
from models.importing.search import Found, find_models
from models.network.ensemble import WorldModelEnsemble
from models.network.world_model import WorldModel
from models.spec import Spec, anonymous_spec

DEFAULT_DT_S = 0.05
_COMPARED = ("state_scale", "reward_scale")
"""Members' predictions are compared in these units, which must be one for all."""


@dataclass(frozen=True)
class _Member:
    """Weights of one model.

    Attributes:
        source: The file, and which member of it, for a person.
        tensors: By name.
        hidden_dims: Widths of the encoder's layers, and of the dynamics'.
        state_dim: S.
        action_dim: A.
    """

    source: str
    tensors: dict[str, Tensor]
    hidden_dims: tuple[int, ...]
    state_dim: int
    action_dim: int


def import_weights(
    *weights: Path, activation: str = "elu", dt_s: float | None = None, spec: Spec | None = None
) -> Checkpoint:
    """Make a checkpoint of weights trained with the specification's own classes.

    Dims are read off the shapes. Such models predict the absolute next state in raw units
    unless the files hold normalisers, and have no calibration: their safety verdicts are
    `unknown` until `training.fitting.recalibrate` has seen recordings. What was taken from each
    file is noted as `training["taken"]`.

    Args:
        weights: Files written by `torch.save` or safetensors; weights only, no code. Each holds
            one model, or the members of an ensemble; all together are the members.
        activation: What the models were trained with; the files do not say.
        dt_s: Length of a step; the files do not say. The spec's by default, or 0.05.
        spec: Meaning of the features; unknown by default.

    Raises:
        CheckpointError: A file cannot be read or does not hold exactly one model or ensemble;
            members differ in more than their values, or not at all; the spec does not fit.
    """
    if dt_s is not None and not 0 < dt_s < math.inf:
        raise CheckpointError(f"the length of a step is {dt_s:g} s (allowed: positive, finite)")
    if spec is not None and dt_s not in (None, spec.dt_s):
        raise CheckpointError(
            f"the length of a step is {dt_s:g} s, but {spec.dt_s:g} s in the spec {spec.name!r}"
        )
    if not weights:
        raise CheckpointError("no file of weights was given")
    found = [find_models(read_weights(path), path) for path in weights]
    members = [x for path, one in zip(weights, found, strict=True) for x in _members(path, one)]
    _compare(members)
    first = members[0]
    if spec is None:
        spec = _anonymous(first, DEFAULT_DT_S if dt_s is None else dt_s)
    if (spec.state_dim, spec.action_dim) != (first.state_dim, first.action_dim):
        raise CheckpointError(
            f"{first.source} takes states of {first.state_dim} numbers and actions of "
            f"{first.action_dim}, but the spec {spec.name!r} has {spec.state_dim} state and "
            f"{spec.action_dim} action features"
        )
    architecture = Architecture(
        first.hidden_dims, activation, residual=False, check_latent=False, geometry=False
    )
    return Checkpoint(
        ensemble=WorldModelEnsemble.from_members([_built(x, architecture, spec) for x in members]),
        spec=spec,
        architecture=architecture,
        name="imported",
        training={
            "imported_from": [path.name for path in weights],
            "taken": [one.taken() for one in found],
        },
    )


def _members(weights: Path, found: Found) -> list[_Member]:
    """Return the models that were found in a file, their dims read off."""
    members = []
    for prefix, tensors in zip(found.prefixes, found.members, strict=True):
        source = f"{weights} ({prefix[:-1]})" if len(found.prefixes) > 1 else str(weights)
        hidden_dims, action_dim = _dims(tensors, source)
        state_dim = tensors["encoder.0.weight"].shape[1]
        members.append(_Member(source, tensors, hidden_dims, state_dim, action_dim))
    return members


def _compare(members: Sequence[_Member]) -> None:
    """Refuse members that cannot be one ensemble.

    Raises:
        CheckpointError: Two are of other dims, measure in other units, or are the same.
    """
    first, seen = members[0], dict[bytes, str]()
    for member in members:
        for what, one, other in (
            ("layers", list(first.hidden_dims), list(member.hidden_dims)),
            ("state features", first.state_dim, member.state_dim),
            ("action features", first.action_dim, member.action_dim),
        ):
            if one != other:
                raise CheckpointError(
                    f"the members of an ensemble must be alike, but {first.source} has {what} "
                    f"{one}, {member.source} {other}"
                )
        for name in _COMPARED:
            if not _is_equal(first.tensors.get(name), member.tensors.get(name)):
                raise CheckpointError(
                    f"members are compared in units of {name}, but {first.source} and "
                    f"{member.source} hold different ones"
                )
        digest = _digest(member.tensors)
        if digest in seen:
            raise CheckpointError(
                f"{seen[digest]} and {member.source} hold the same weights: members that cannot "
                "disagree show no uncertainty"
            )
        seen[digest] = member.source


def _is_equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def _digest(tensors: dict[str, Tensor]) -> bytes:
    """Return a hash of all values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode(errors="replace") + tensors[name].contiguous().numpy().tobytes())
    return digest.digest()


def _anonymous(member: _Member, dt_s: float) -> Spec:
    try:
        return anonymous_spec(member.state_dim, member.action_dim, dt_s)
    except ValueError as exc:
        raise CheckpointError(f"{member.source} cannot be a WorldModel: {exc}") from exc


def _built(member: _Member, architecture: Architecture, spec: Spec) -> WorldModel:
    """Return a model with a member's weights."""
    try:
        model = architecture.build(spec)
    except ValueError as exc:
        raise CheckpointError(f"{member.source} cannot be a WorldModel: {exc}") from exc
    load_tensors(model, member.tensors, member.source, optional=True)
    return model


def _dims(tensors: dict[str, Tensor], weights: str) -> tuple[tuple[int, ...], int]:
    """Return the widths of the layers, and the action's dim A.

    Raises:
        CheckpointError: The layers do not follow on each other.
    """
    hidden_dims, _ = _chain(tensors, "encoder", weights)
    dynamics_dims, dynamics_inputs = _chain(tensors, "dynamics", weights)
    if dynamics_dims != hidden_dims:
        raise CheckpointError(
            f"{weights} cannot be a WorldModel: its dynamics have layers of {list(dynamics_dims)} "
            f"numbers, its encoder of {list(hidden_dims)}; the class makes both alike"
        )
    action_dim = dynamics_inputs - hidden_dims[-1]
    if action_dim < 1:
        raise CheckpointError(
            f"{weights} cannot be a WorldModel: dynamics.0.weight takes {dynamics_inputs} numbers, "
            f"which leaves none for the action beside the latent's {hidden_dims[-1]}"
        )
    return hidden_dims, action_dim


def _chain(tensors: dict[str, Tensor], part: str, weights: str) -> tuple[tuple[int, ...], int]:
    """Return the output widths of a part's layers, in order, and its number of inputs."""
    matches = [re.fullmatch(rf"{part}\.(\d{{1,6}})\.weight", name) for name in tensors]
    indices = sorted(int(match[1]) for match in matches if match is not None)
    if indices != list(range(0, 2 * len(indices), 2)):
        raise CheckpointError(
            f"{weights} holds layers {str(indices)[1:-1]} of {part}; the class has layers at 0, 2, "
            "4 and so on, and an activation after each"
        )
    widths: list[int] = []
    for index in indices:
        name = f"{part}.{index}.weight"
        shape = list(tensors[name].shape)
        if len(shape) != 2:
            raise CheckpointError(f"{weights} holds {name} of shape {shape}, not of a linear layer")
        if widths and shape[1] != widths[-1]:
            raise CheckpointError(
                f"{weights} cannot be a WorldModel: {name} takes {shape[1]} numbers, the layer "
                f"before gives {widths[-1]}"
            )
        widths.append(shape[0])
    return tuple(widths), tensors[f"{part}.0.weight"].shape[1]
