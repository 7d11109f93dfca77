"""A checkpoint: one folder that holds all a model needs to be served, as safetensors and JSON.

    weights.safetensors   all members' parameters and normalisers (`models.0.encoder.0.weight`, ...)
    config.json           format, name, architecture, number of members
    spec.json             meaning of the features (`models.spec.Spec`)
    calibration.json      hazard calibration, thresholds, trained ranges (`Calibration`)
    training.json         data set, arguments and history of the training (for people)
    metrics.json          evaluation on held-out episodes (for people; absent until evaluated)

The version is a hash of what decides the answers: weights, config, spec and calibration.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from models.ensemble import WorldModelEnsemble
from models.files import CheckpointError, read_bytes, read_json, write_json
from models.safety import SafetyLimits
from models.spec import Spec
from models.world_model import NORMALISERS, WorldModel

FORMAT = 1
WEIGHTS, CONFIG, SPEC = "weights.safetensors", "config.json", "spec.json"
CALIBRATION, TRAINING, METRICS = "calibration.json", "training.json", "metrics.json"
VERSIONED = (WEIGHTS, CONFIG, SPEC, CALIBRATION)


@dataclass(frozen=True)
class Architecture:
    """Arguments that make the members, all alike."""

    hidden_dims: tuple[int, ...] = (256, 256, 64)
    activation: str = "elu"
    residual: bool = True
    kinematics: bool = False
    check_latent: bool = True

    def build(self, spec: Spec) -> WorldModel:
        """Return a member with fresh weights."""
        return WorldModel(
            spec.state_dim,
            spec.action_dim,
            self.hidden_dims,
            self.activation,
            spec=spec,
            residual=self.residual,
            kinematics=self.kinematics,
            check_latent=self.check_latent,
        )


@dataclass(frozen=True)
class Calibration:
    """What validation data fixed.

    Attributes:
        crash_threshold: Crash probability from which a sequence is unsafe; None: uncalibrated.
        uncertainty_limit: Largest uncertainty at which "no crash" is trusted; None: unknown.
        state_low: Smallest trained value a feature; empty if unknown.
        state_high: Largest trained value a feature; empty if unknown.
        horizon: Longest evaluated number of steps; 0 if never evaluated.
        notes: How the numbers were obtained.
    """

    crash_threshold: float | None = None
    uncertainty_limit: float | None = None
    state_low: tuple[float, ...] = ()
    state_high: tuple[float, ...] = ()
    horizon: int = 0
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model with all that belongs to it.

    Attributes:
        ensemble: The members, in evaluation mode.
        spec: Meaning of the features.
        architecture: What the members are made of.
        calibration: Thresholds and ranges.
        name: Name shown to clients.
        version: Hash of everything that decides the answers; "" before it is saved.
        training: How it was trained.
        metrics: How it did on held-out episodes.
    """

    ensemble: WorldModelEnsemble
    spec: Spec
    architecture: Architecture
    calibration: Calibration = Calibration()
    name: str = "world-model"
    version: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def member_count(self) -> int:
        """Number of members loaded."""
        return self.ensemble.member_count

    @property
    def limits(self) -> SafetyLimits:
        """What safety verdicts are judged by."""
        calibration, dim = self.calibration, self.spec.state_dim
        low, high = calibration.state_low, calibration.state_high
        geometry = self.spec.geometry
        slots = [
            [self.spec.state_index(name) for name in (slot.presence, slot.dx, slot.dy)]
            for slot in (geometry.slots if geometry is not None else ())
        ]
        return SafetyLimits(
            crash_threshold=calibration.crash_threshold,
            # One member cannot disagree: its uncertainty is unknown, not zero.
            uncertainty_limit=calibration.uncertainty_limit if self.member_count > 1 else None,
            state_low=np.array(low, np.float32) if low else np.full(dim, -np.inf, np.float32),
            state_high=np.array(high, np.float32) if high else np.full(dim, np.inf, np.float32),
            horizon=calibration.horizon,
            feature_names=tuple(feature.name for feature in self.spec.state),
            dt_s=self.spec.dt_s,
            slots=np.array(slots, np.int64).reshape(-1, 3),
            apart_m=geometry.width_m if geometry is not None else 0.0,
        )


def save_checkpoint(checkpoint: Checkpoint, folder: Path) -> str:
    """Write a checkpoint folder, overwriting one that is there; return its version."""
    folder.mkdir(parents=True, exist_ok=True)
    # Gone first and written last: a folder whose writing was cut short is refused, not half old.
    (folder / CONFIG).unlink(missing_ok=True)
    weights = {name: x.contiguous() for name, x in checkpoint.ensemble.state_dict().items()}
    # Not save_file, which makes files that only their owner may read.
    (folder / WEIGHTS).write_bytes(save(weights))
    write_json(folder / SPEC, checkpoint.spec.to_json())
    write_json(folder / CALIBRATION, asdict(checkpoint.calibration))
    write_json(folder / TRAINING, checkpoint.training)
    (folder / METRICS).unlink(missing_ok=True)
    if checkpoint.metrics:
        write_json(folder / METRICS, checkpoint.metrics)
    config = {"format": FORMAT, "name": checkpoint.name, "members": checkpoint.member_count}
    write_json(folder / CONFIG, {**config, "architecture": asdict(checkpoint.architecture)})
    return checkpoint_version(folder)


def load_checkpoint(folder: Path, *, device: str = "cpu", members: int | None = None) -> Checkpoint:
    """Read a checkpoint folder.

    Args:
        folder: Where `save_checkpoint` wrote.
        device: Torch device that receives the weights.
        members: Load only the first so many members; all by default.

    Raises:
        CheckpointError: A part is missing, damaged, or does not fit another; the message is
            one sentence that names the part and both sides.
    """
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint folder {folder} does not exist")
    config, spec = read_json(folder / CONFIG), _read_spec(folder / SPEC)
    if config.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / CONFIG} has format {config.get('format')!r}, this version reads {FORMAT}"
        )
    architecture, saved_members, name = _read_config(folder / CONFIG, config)
    if members is not None and not 1 <= members <= saved_members:
        raise CheckpointError(f"cannot serve {members} members, {folder} holds {saved_members}")
    ensemble = _build(folder, architecture, spec, saved_members)
    ensemble = WorldModelEnsemble.from_members(list(ensemble.members)[:members])
    return Checkpoint(
        ensemble=ensemble.to(device).eval().requires_grad_(False),
        spec=spec,
        architecture=architecture,
        calibration=_read_calibration(folder / CALIBRATION, spec),
        name=name,
        version=checkpoint_version(folder),
        training=read_json(folder / TRAINING),
        metrics=read_json(folder / METRICS) if (folder / METRICS).exists() else {},
    )


def checkpoint_version(folder: Path) -> str:
    """Return the version: the first 16 hex digits of a SHA-256 over what decides the answers.

    Raises:
        CheckpointError: A part is missing.
    """
    digest = hashlib.sha256()
    for name in VERSIONED:
        digest.update(hashlib.sha256(read_bytes(folder / name)).digest())
    return digest.hexdigest()[:16]


def load_tensors(
    model: torch.nn.Module, tensors: dict[str, torch.Tensor], source: Path, *, optional: bool
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
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{source} holds {name} of shape {list(tensor.shape)}, the model needs "
                f"{list(expected[name].shape)}"
            )
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{source} holds values in {name} that are not finite")
    model.load_state_dict(tensors, strict=not optional)


def _build(
    folder: Path, architecture: Architecture, spec: Spec, members: int
) -> WorldModelEnsemble:
    weights = folder / WEIGHTS
    try:
        tensors = load_file(weights)
    except (OSError, SafetensorError) as exc:
        raise CheckpointError(f"cannot read {weights}: {exc}") from exc
    try:
        ensemble = WorldModelEnsemble.from_members(
            [architecture.build(spec) for _ in range(members)]
        )
    except ValueError as exc:
        raise CheckpointError(f"{folder / CONFIG} does not fit {folder / SPEC}: {exc}") from exc
    load_tensors(ensemble, tensors, weights, optional=False)
    return ensemble


def _read_config(path: Path, config: dict[str, Any]) -> tuple[Architecture, int, str]:
    try:
        parts = dict(config["architecture"])
        parts["hidden_dims"] = tuple(parts["hidden_dims"])
        architecture = Architecture(**parts)
        return architecture, int(config["members"]), str(config["name"])
    except (KeyError, TypeError, ValueError) as exc:
        raise CheckpointError(f"{path} is malformed: {exc!r}") from exc


def _read_spec(path: Path) -> Spec:
    document = read_json(path)
    try:
        return Spec.from_json(document)
    except ValueError as exc:
        raise CheckpointError(f"{path}: {exc}") from exc


def _read_calibration(path: Path, spec: Spec) -> Calibration:
    document = read_json(path)
    try:
        ranges = {key: tuple(document[key]) for key in ("state_low", "state_high")}
        calibration = Calibration(**{**document, **ranges})
    except (KeyError, TypeError) as exc:
        raise CheckpointError(f"{path} is malformed: {exc!r}") from exc
    for key, values in ranges.items():
        if values and len(values) != spec.state_dim:
            raise CheckpointError(
                f"{path} has {len(values)} values of {key}, the spec has {spec.state_dim} "
                "state features"
            )
    return calibration
