"""Row counts that launches are padded to, and rows to try them with. NumPy only."""

from __future__ import annotations

import numpy as np

from models.safety import SafetyLimits
from models.spec import Spec
from service.interface import Array

ROW_TILE = 8
"""The model pads to multiples of this itself (`models.network.rows.ROW_TILE`)."""

MAX_CPU_ROWS = 512
MAX_CUDA_ROWS = 4096
GRAPH_SHAPES = (8, 64, 256, 1024, MAX_CUDA_ROWS)
_FEW = (1, 2, 4)
_PROBE_SEED = 20240229


def launch_shapes(device_type: str, *, is_any: bool = False) -> list[int]:
    """Return the row counts that launches are padded to, ascending.

    Where rows are padded, a CPU pays for each, so its shapes are dense; a GPU hardly does, and each
    of its graphs costs memory and warm-up.

    Args:
        device_type: "cpu" or "cuda".
        is_any: Whether nothing is padded; then these are the launches that are timed.
    """
    is_cuda = device_type == "cuda"
    if is_cuda and not is_any:
        return list(GRAPH_SHAPES)
    shapes = [*_FEW, ROW_TILE] if is_any and not is_cuda else [ROW_TILE]
    while shapes[-1] < (MAX_CUDA_ROWS if is_cuda else MAX_CPU_ROWS):
        # Four steps an octave, in whole tiles: at most a fifth of a launch is padding.
        shapes.append(shapes[-1] + max(ROW_TILE, (1 << (shapes[-1].bit_length() - 1)) // 4))
    return shapes


def probe_rows(rows: int, steps: int, spec: Spec, limits: SafetyLimits) -> tuple[Array, Array]:
    """Return varied states [rows, S] and actions [rows, steps, A] from the trained ranges."""
    rng = np.random.default_rng(_PROBE_SEED)
    low = np.array([f.low for f in spec.state])
    high = np.array([f.high for f in spec.state])
    low = np.where(np.isfinite(limits.state_low), limits.state_low, low)
    high = np.where(np.isfinite(limits.state_high), limits.state_high, high)
    controls = spec.action
    actions = rng.uniform(
        [f.low for f in controls], [f.high for f in controls], (rows, steps, spec.action_dim)
    )
    states = rng.uniform(low, np.maximum(low, high), (rows, spec.state_dim))
    return states.astype(np.float32), actions.astype(np.float32)
