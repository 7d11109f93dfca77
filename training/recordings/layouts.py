"""Where each number of a state goes, by a spec or a checkpoint in place of a service's answer."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

import models
from models.checkpoint import load_checkpoint
from models.importing import spec_of
from models.spec import Spec
from training.recordings.recording import RecordingError
from world_model_client.errors import InvalidInputError
from world_model_client.scene import Layout

PRETRAINED = Path(models.__file__).parent / "pretrained"

ACTIONS = ("steer", "throttle", "brake")

SHORTEST_STEP_S, LONGEST_STEP_S = 0.01, 1.0
"""Of a spec: shorter ones would make enormous numbers of moments, all interpolated; longer ones
would not show how somebody moves."""


class Target(NamedTuple):
    """What states are made for.

    Attributes:
        spec: Of the episodes.
        layout: Of the states; its ranges are those that the model was trained on, if it is known.
    """

    spec: Spec
    layout: Layout


def target_of(source: str | None) -> Target:
    """Return what states are made for.

    Args:
        source: Folder of a checkpoint, a file like its spec.json, or a name that
            `models.importing.spec_of` knows; None: the bundled model.

    Raises:
        RecordingError: States of it cannot be made of tracks.
        ValueError: It cannot be read.
    """
    folder = PRETRAINED if source is None else Path(source)
    if folder.is_dir():
        checkpoint = load_checkpoint(folder)
        spec, limits = checkpoint.spec, checkpoint.limits
        low, high = limits.state_low, limits.state_high
    else:
        spec, low, high = spec_of(str(source)), None, None
    names = tuple(feature.name for feature in spec.action)
    if names != ACTIONS:
        raise RecordingError(
            f"spec {spec.name!r} has the actions {', '.join(names)}, but tracks tell "
            f"{', '.join(ACTIONS)} alone"
        )
    if not SHORTEST_STEP_S <= spec.dt_s <= LONGEST_STEP_S:
        raise RecordingError(
            f"spec {spec.name!r}: dt_s is {spec.dt_s:g} s (allowed: {SHORTEST_STEP_S:g} to "
            f"{LONGEST_STEP_S:g} s for episodes of tracks)"
        )
    try:
        return Target(spec, Layout.from_model(_document(spec, low, high)))
    except InvalidInputError as exc:
        raise RecordingError(f"spec {spec.name!r}: {exc}") from exc


def _document(spec: Spec, low: object, high: object) -> dict[str, object]:
    """Return what `GET /model` would say of a spec, as far as a layout needs it."""
    state = [asdict(feature) for feature in spec.state]
    for name, bounds in (("trained_low", low), ("trained_high", high)):
        if bounds is not None:
            for feature, bound in zip(state, np.asarray(bounds).tolist(), strict=True):
                feature[name] = bound if np.isfinite(bound) else None
    return {
        "features": {"state": state},
        "frame": spec.frame,
        "saturations": [asdict(each) for each in spec.saturations],
        "road_users": [asdict(each) for each in spec.road_users],
        "dt_s": spec.dt_s,
    }
