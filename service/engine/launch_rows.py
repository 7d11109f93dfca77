"""Row counts of launches, and rows to try them with."""

from __future__ import annotations

import numpy as np

from models.network.rows import ROW_TILE
from models.safety import SafetyLimits
from models.spec import Spec
from service.interface import Array

MAX_CPU_ROWS = 512
MAX_CUDA_ROWS = 4096
GRAPH_ROWS = (8, 64, 256, 1024, MAX_CUDA_ROWS)
_FEW = (1, 2, 4)
_PROBE_SEED = 20240229


def launch_row_counts(device_type: str, *, is_padded: bool = True) -> list[int]:
    """Return the row counts that launches are padded to, ascending.

    Where rows are padded, a CPU computes the padding too, so its counts are dense; on a GPU padding
    costs hardly anything, and each of its graphs costs memory and warm-up.

    Args:
        device_type: "cpu" or "cuda".
        is_padded: Whether rows are padded. If not, these are the launches that are timed.
    """
    is_cuda = device_type == "cuda"
    if is_cuda and is_padded:
        return list(GRAPH_ROWS)
    counts = [ROW_TILE] if is_padded or is_cuda else [*_FEW, ROW_TILE]
    while counts[-1] < (MAX_CUDA_ROWS if is_cuda else MAX_CPU_ROWS):
        # Four steps an octave, in whole tiles: at most a fifth of a launch is padding.
        counts.append(counts[-1] + max(ROW_TILE, (1 << (counts[-1].bit_length() - 1)) // 4))
    return counts


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
