"""A model on disk: one folder of safetensors and JSON, without pickled code.

In: a folder. Out: a `Checkpoint`, every number of which was checked; and the other way round. May
touch the disk, in that folder alone.
"""

from models.checkpoint.calibration import ALLOW_UNGUARANTEED, Calibration
from models.checkpoint.checkpoint import (
    CALIBRATION,
    CONFIG,
    METRICS,
    SPEC,
    TRAINING,
    WEIGHTS,
    Architecture,
    Checkpoint,
    checkpoint_version,
    load_checkpoint,
    read_spec,
    read_spec_of,
    save_checkpoint,
)
from models.checkpoint.files import CheckpointError
from models.checkpoint.tensors import load_tensors

__all__ = [
    "ALLOW_UNGUARANTEED",
    "CALIBRATION",
    "CONFIG",
    "METRICS",
    "SPEC",
    "TRAINING",
    "WEIGHTS",
    "Architecture",
    "Calibration",
    "Checkpoint",
    "CheckpointError",
    "checkpoint_version",
    "load_checkpoint",
    "load_tensors",
    "read_spec",
    "read_spec_of",
    "save_checkpoint",
]
