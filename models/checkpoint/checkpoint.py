"""A checkpoint: one folder that holds all a model needs to be served, as safetensors and JSON.

    weights.safetensors   all members' parameters and normalisers (`models.0.encoder.0.weight`, ...)
    config.json           format, name, architecture, number of members
    spec.json             meaning of the features (`models.spec.Spec`)
    expected_error.safetensors
                          trees that say how wrong predictions will probably be (may be absent)
    calibration.json      hazard calibration, thresholds, trained ranges (`Calibration`)
    training.json         data set, arguments and history of the training (for people)
    metrics.json          evaluation on held-out episodes (for people; absent until evaluated)

The version is a hash of what decides the answers: weights, config, spec, calibration and
expected error.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Interval, Len
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from models.checkpoint.calibration import Calibration
from models.checkpoint.expected_error import error_tensors, read_expected_error
from models.checkpoint.files import (
    CheckpointError,
    checked,
    json_text,
    read_bytes,
    read_json,
    shown,
    write_parts,
)
from models.checkpoint.tensors import check_normalisers, check_values, compare_shape, load_tensors
from models.conformal import Guarantee
from models.network.ensemble import WorldModelEnsemble
from models.network.world_model import WorldModel
from models.prediction import version_of
from models.safety.expected_error import ExpectedError
from models.safety.limits import SafetyLimits
from models.safety.physics import PhysicalMotion
from models.spec import Name, Spec, States

FORMAT = 1
WEIGHTS, CONFIG, SPEC = "weights.safetensors", "config.json", "spec.json"
CALIBRATION, TRAINING, METRICS = "calibration.json", "training.json", "metrics.json"
EXPECTED_ERROR = "expected_error.safetensors"
VERSIONED = (WEIGHTS, CONFIG, SPEC, CALIBRATION, EXPECTED_ERROR)

Widths = Annotated[tuple[Annotated[int, Interval(ge=1, le=65_536)], ...], Len(1, 64)]
Members = Annotated[int, Interval(ge=1, le=1000)]


@dataclass(frozen=True)
class Architecture:
    """Arguments that make the members, all alike.

    `geometry` says whether they read the geometry of a spec that has one; the specification's own
    class does not. The others are those of `WorldModel`.
    """

    hidden_dims: Widths = (256, 256, 64)
    activation: str = "elu"
    residual: bool = True
    kinematics: bool = False
    check_latent: bool = True
    geometry: bool = True

    def __post_init__(self) -> None:
        if self.kinematics and not self.geometry:
            raise ValueError("kinematics is true, but must be false where geometry is")

    def build(self, spec: Spec) -> WorldModel:
        """Return a member with fresh weights."""
        return WorldModel(
            spec.state_dim,
            spec.action_dim,
            self.hidden_dims,
            self.activation,
            spec=spec if self.geometry else None,
            residual=self.residual,
            kinematics=self.kinematics,
            check_latent=self.check_latent,
        )


@dataclass(frozen=True)
class Config:
    """What config.json holds."""

    format: Annotated[int, Interval(ge=FORMAT, le=FORMAT)]
    name: Name
    members: Members
    architecture: Architecture


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model with all that belongs to it.

    Attributes:
        ensemble: The members, in evaluation mode.
        spec: Meaning of the features.
        architecture: What the members are made of.
        calibration: Thresholds and ranges.
        expected_error: How wrong predictions will probably be; None if nobody knows.
        name: Name shown to clients.
        version: Hash of everything that decides the answers, and how many members of the folder's
            do, if not all: "0123456789abcdef-3of5"; "" before it is saved.
        training: How it was trained.
        metrics: How it did on held-out episodes.
        held_members: Members that the folder holds, if only the first of them are loaded; None:
            all are. Calibration and metrics hold for all together.
    """

    ensemble: WorldModelEnsemble
    spec: Spec
    architecture: Architecture
    calibration: Calibration = field(default_factory=Calibration)
    expected_error: ExpectedError | None = None
    name: str = "world-model"
    version: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    held_members: int | None = None

    @property
    def member_count(self) -> int:
        """Number of members loaded."""
        return self.ensemble.member_count

    @property
    def guarantee(self) -> Guarantee | None:
        """What is guaranteed about the crash threshold; None if nothing is."""
        return self.calibration.guarantee if self.held_members is None else None

    @property
    def refused(self) -> dict[str, float]:
        """Limits that are there, but are not served; by name."""
        if self.held_members is None:
            return self.calibration.refused
        return self.calibration.held

    @cached_property
    def limits(self) -> SafetyLimits:
        """What safety verdicts are judged by."""
        calibration = self.calibration
        low, high = self._known_ranges()
        geometry, road = self.spec.geometry, self.spec.kinematics
        index = self.spec.state_index
        slots = [
            [index(name) for name in (slot.gate, slot.dx, slot.dy, slot.heading)]
            for slot in (geometry.slots if geometry is not None else ())
        ]
        columns = np.array(slots, np.int64).reshape(-1, 4)
        # One member cannot disagree: its uncertainty is unknown, not zero.
        has_disagreement = self.member_count > 1
        limits = SafetyLimits(
            crash_threshold=calibration.served_threshold,
            safe_below=calibration.safe_below,  # only takes `safe` away: needs no guarantee
            expected_error=self.expected_error,
            error_limit_m=calibration.served_error_limit_m,
            uncertainty_limit=calibration.served_uncertainty_limit if has_disagreement else None,
            has_disagreement=has_disagreement,
            state_low=low,
            state_high=high,
            horizon=calibration.horizon,
            feature_names=tuple(feature.name for feature in self.spec.state),
            dt_s=self.spec.dt_s,
            slots=columns[:, :3],
            apart_m=geometry.width_m if geometry is not None else 0.0,
            headings=tuple(columns[:, 3].tolist()),
            length_m=geometry.length_m if geometry is not None else 0.0,
            edges=tuple(map(index, geometry.edges)) if geometry is not None else (),
            physics=None if geometry is None or road is None else PhysicalMotion(self.spec),
            sides=(index(road.left_edge), index(road.right_edge)) if road is not None else (),
            **_size_columns(self.spec),
        )
        if self.held_members is None:
            return limits
        return limits.for_fewer(self.member_count, self.held_members)

    def _known_ranges(self) -> tuple[States, States]:
        """Return the smallest and the largest value of each feature, [S] each, that is known.

        Trained ranges have a margin. It ends where values make no sense any more: no model that saw
        cars stand and drive knows what one does that reverses.
        """
        calibration, features = self.calibration, self.spec.state
        if not calibration.state_low:
            unknown = np.full(len(features), np.inf, np.float32)
            return -unknown, unknown
        low = np.maximum(calibration.state_low, [feature.low for feature in features])
        high = np.minimum(calibration.state_high, [feature.high for feature in features])
        return low.astype(np.float32), high.astype(np.float32)


def _size_columns(spec: Spec) -> dict[str, Any]:
    """Return what `SafetyLimits` knows of sizes that are features; nothing if none are."""
    geometry = spec.geometry
    if geometry is None:
        return {}
    named = [
        () if slot.length is None or slot.width is None else (slot.length, slot.width)
        for slot in geometry.slots
    ]
    own = geometry.size_features
    high = {feature.name: feature.high for feature in spec.state}
    known = [pair for pair in (*named, own) if pair]
    return {
        "sizes": tuple(tuple(map(spec.state_index, pair)) for pair in named) if any(named) else (),
        "ego_size": tuple(map(spec.state_index, own)),
        "largest_m": (
            max((high[pair[0]] for pair in known), default=math.inf),
            max((high[pair[1]] for pair in known), default=math.inf),
        ),
    }


def save_checkpoint(checkpoint: Checkpoint, folder: Path) -> str:
    """Write a checkpoint folder, overwriting one that is there; return its version.

    One that is there stays whole until all parts of the new one are written.

    Raises:
        CheckpointError: A part makes no sense: it could not be loaded again; or it is a part of a
            checkpoint's members with the calibration of all. Nothing is written.
    """
    if checkpoint.held_members is not None:
        raise CheckpointError(
            f"{checkpoint.member_count} of {checkpoint.held_members} members cannot be saved with "
            "the calibration of all: calibrate them first"
        )
    config = Config(FORMAT, checkpoint.name, checkpoint.member_count, checkpoint.architecture)
    documents = {
        CONFIG: _config_document(config),
        SPEC: checkpoint.spec.to_json(),
        CALIBRATION: asdict(checkpoint.calibration),
    }
    checked(Config, asdict(config), CONFIG)
    read_spec_of(documents[SPEC], SPEC)
    _checked_calibration(documents[CALIBRATION], CALIBRATION, checkpoint.spec)
    weights = {name: x.contiguous() for name, x in checkpoint.ensemble.state_dict().items()}
    for name, tensor in weights.items():
        check_values(WEIGHTS, name, tensor)
    check_normalisers(WEIGHTS, weights, checkpoint.spec, checkpoint.calibration)
    documents[TRAINING] = checkpoint.training
    if checkpoint.metrics:
        documents[METRICS] = checkpoint.metrics
    texts = {name: json_text(document, name) for name, document in documents.items()}
    # Not save_file, which makes files that only their owner may read.
    parts = {WEIGHTS: save(weights), **{name: text.encode() for name, text in texts.items()}}
    if checkpoint.expected_error is not None:
        parts[EXPECTED_ERROR] = save(error_tensors(checkpoint.expected_error))
    write_parts(folder, parts, CONFIG, {METRICS, EXPECTED_ERROR} - parts.keys())
    return checkpoint_version(folder)


def load_checkpoint(folder: Path, *, device: str = "cpu", members: int | None = None) -> Checkpoint:
    """Read a checkpoint folder.

    Args:
        folder: Where `save_checkpoint` wrote.
        device: Torch device that receives the weights.
        members: Number of members to load, the first ones; all by default.

    Raises:
        CheckpointError: A part is missing, damaged, or does not fit another, or another checkpoint
            was written meanwhile; the message is one sentence that names the part and both sides.
    """
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint folder {folder} does not exist")
    document = read_json(folder / CONFIG)
    if document.get("format") != FORMAT:  # before the rest, which other formats may have otherwise
        raise CheckpointError(
            f"{folder / CONFIG} has format {shown(document.get('format'))}, this version reads "
            f"{FORMAT}"
        )
    config = checked(Config, _with_defaults(document), folder / CONFIG)
    version = checkpoint_version(folder)
    spec = read_spec(folder / SPEC)
    calibration = _checked_calibration(read_json(folder / CALIBRATION), folder / CALIBRATION, spec)
    if members is not None and not 1 <= members <= config.members:
        raise CheckpointError(f"cannot serve {members} members, {folder} holds {config.members}")
    ensemble = _build(folder, config, spec)
    check_normalisers(folder / WEIGHTS, ensemble.state_dict(), spec, calibration)
    ensemble = WorldModelEnsemble.from_members(list(ensemble.members)[:members])
    expected_error = read_expected_error(folder / EXPECTED_ERROR, spec)
    if calibration.error_limit_m is not None and expected_error is None:
        raise CheckpointError(
            f"{folder / CALIBRATION}: error_limit_m is {calibration.error_limit_m:g}, but there is "
            f"no {folder / EXPECTED_ERROR}"
        )
    training = read_json(folder / TRAINING)
    metrics = read_json(folder / METRICS) if (folder / METRICS).exists() else {}
    # Weights of one and thresholds of another would be a model that nobody has judged.
    if checkpoint_version(folder) != version or read_json(folder / CONFIG) != document:
        raise CheckpointError(f"{folder} was written to while it was read: try again")
    is_whole = members in (None, config.members)
    return Checkpoint(
        ensemble=ensemble.to(device).eval().requires_grad_(False),
        spec=spec,
        architecture=config.architecture,
        calibration=calibration,
        expected_error=expected_error,
        name=config.name,
        version=version_of(version, ensemble.member_count, config.members),
        training=training,
        metrics=metrics,
        held_members=None if is_whole else config.members,
    )


def read_spec(path: Path | str) -> Spec:
    """Read a spec of a file, one written by hand too: what may be None or empty may be missing.

    Raises:
        CheckpointError: It cannot be read, or makes no sense.
    """
    return read_spec_of(read_json(Path(path)), path)


def read_spec_of(document: dict[str, Any], source: str | Path) -> Spec:
    """Build a spec of a JSON object; see `read_spec`.

    Args:
        document: The object.
        source: Named in errors.

    Raises:
        CheckpointError: It makes no sense.
    """
    return checked(Spec, document, source, is_whole=False)


def checkpoint_version(folder: Path) -> str:
    """Return the version: the first 16 hex digits of a SHA-256 over what decides the answers.

    Raises:
        CheckpointError: A part is missing.
    """
    digest = hashlib.sha256()
    for name in VERSIONED:
        if name == EXPECTED_ERROR and not (folder / name).exists():
            continue
        digest.update(hashlib.sha256(read_bytes(folder / name)).digest())
    return digest.hexdigest()[:16]


def _config_document(config: Config) -> dict[str, Any]:
    """Return what config.json holds: `geometry` only where it is not what it always used to be.

    Checkpoints from before that field keep their bytes, hence their versions.
    """
    document = asdict(config)
    if config.architecture.geometry:
        del document["architecture"]["geometry"]
    return document


def _with_defaults(document: dict[str, Any]) -> dict[str, Any]:
    """Return config.json's content with what `_config_document` leaves out."""
    architecture = document.get("architecture")
    if not isinstance(architecture, dict):
        return document
    return {**document, "architecture": {"geometry": True, **architecture}}


def _build(folder: Path, config: Config, spec: Spec) -> WorldModelEnsemble:
    weights = folder / WEIGHTS
    try:
        tensors = load_file(weights)
    except (OSError, SafetensorError) as exc:
        raise CheckpointError(f"cannot read {weights}: {exc}") from exc
    _compare_sizes(folder, config, spec, tensors)
    try:
        ensemble = WorldModelEnsemble.from_members(
            [config.architecture.build(spec) for _ in range(config.members)]
        )
    except ValueError as exc:
        raise CheckpointError(f"{folder / CONFIG} does not fit {folder / SPEC}: {exc}") from exc
    load_tensors(ensemble, tensors, weights, optional=False)
    return ensemble


def _compare_sizes(
    folder: Path, config: Config, spec: Spec, tensors: dict[str, torch.Tensor]
) -> None:
    """Refuse a model of another size than its weights before it is built: it may be huge."""
    held = len({name.split(".")[1] for name in tensors if name.startswith("models.")})
    if held != config.members:
        raise CheckpointError(
            f"{folder / CONFIG}: members is {config.members}, but {folder / WEIGHTS} holds {held}"
        )
    inputs = spec.state_dim
    for i, width in enumerate(config.architecture.hidden_dims):
        name = f"models.0.encoder.{2 * i}.weight"
        if name not in tensors:
            raise CheckpointError(f"{folder / WEIGHTS} lacks the tensor {name}")
        compare_shape(folder / WEIGHTS, name, tensors[name], (width, inputs))
        inputs = width


def _checked_calibration(document: dict[str, Any], path: Path | str, spec: Spec) -> Calibration:
    # Those of version 0.2 and before have no such limits.
    calibration = checked(
        Calibration, {"safe_below": None, "error_limit_m": None, **document}, path
    )
    if (count := len(calibration.state_low)) not in (0, spec.state_dim):
        raise CheckpointError(
            f"{path} has {count} values of state_low, the spec has {spec.state_dim} state features"
        )
    guarantee, horizon_s = calibration.guarantee, round(calibration.horizon * spec.dt_s, 6)
    if guarantee and guarantee.threshold is not None and not guarantee.lead_s <= horizon_s:
        raise CheckpointError(
            f"{path}: notes.conformal.lead_s is {guarantee.lead_s:g}, but must not be above the "
            f"evaluated horizon, {horizon_s:g} s"
        )
    return calibration
