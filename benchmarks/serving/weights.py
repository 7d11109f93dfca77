"""The one member that all candidates serve: as our checkpoint, and as a plain state_dict."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.serving.workloads import Floats
from models.checkpoint import Architecture, Checkpoint, save_checkpoint
from models.network.ensemble import WorldModelEnsemble
from models.spec import anonymous_spec

_SEED = 0
_DONE_SHIFT = -4.0
"""Hazards of a few percent a step, so that crash probabilities are neither 0 nor 1."""


def make_checkpoint(episodes: list[tuple[Floats, Floats]]) -> Checkpoint:
    """Return a member with plain heads: no geometry, no analytic step, random weights.

    Speed does not depend on the values. Normalisers are those of real episodes, so that rollouts
    stay in the range of real states.

    Args:
        episodes: States [T+1, S] and actions [T, A] each.
    """
    torch.manual_seed(_SEED)
    states = np.concatenate([states for states, _ in episodes])
    changes = np.concatenate([np.diff(states, axis=0) for states, _ in episodes])
    spec = anonymous_spec(states.shape[1], episodes[0][1].shape[1])
    architecture = Architecture()
    member = architecture.build(spec)
    member.set_normalisers(
        state_mean=_tensor(states.mean(0)),
        state_scale=_tensor(np.maximum(states.std(0), 1e-3)),
        delta_scale=_tensor(np.minimum(changes.std(0), 1.0)),
        reward_mean=0.5,
        reward_scale=0.1,
    )
    member.set_calibration(done_scale=1.0, done_shift=_DONE_SHIFT)
    ensemble = WorldModelEnsemble.from_members([member])
    return Checkpoint(ensemble=ensemble, spec=spec, architecture=architecture, name="plain-1")


def write_weights(checkpoint: Checkpoint, folder: Path) -> tuple[Path, Path]:
    """Write both forms of the same weights; return checkpoint folder and state_dict file."""
    ours, plain = folder / "checkpoint", folder / "weights.pt"
    save_checkpoint(checkpoint, ours)
    member = next(checkpoint.ensemble.members)
    torch.save(member.state_dict(), plain)
    return ours, plain


def _tensor(values: Floats) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float32))
