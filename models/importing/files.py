"""Files of weights as the usual tools write them, and what people give by mistake."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from models.checkpoint.files import CheckpointError

SAVE = "write it by torch.save(model.state_dict(), 'weights.pt')"
_SHOWN = 3
"""Names that a message lists at most."""

_OTHER_FILES = (
    (
        b"version https://git-lfs",
        "is a git-lfs pointer, not the weights: run git lfs pull",
    ),
    (b"\x1f\x8b", "is compressed by gzip: unpack it first"),
    (b"\x89HDF", f"is an HDF5 file: load it where it was made, and {SAVE}"),
    (b"<", "is a web page or XML, not the weights: download the file itself"),
)
"""What files begin with that are taken for weights by mistake, and what to do."""

_READ_ERRORS = (
    OSError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    EOFError,
    MemoryError,
    pickle.UnpicklingError,
    struct.error,
)
"""What torch raises for files that are damaged, cut short or of another kind."""


def read_weights(weights: Path) -> Any:
    """Return what a file holds.

    Raises:
        CheckpointError: It cannot be read without running code, or not at all.
    """
    if weights.is_dir():
        raise CheckpointError(
            f"{weights} is a folder: give the file with the weights; a checkpoint folder of this "
            "service needs no import"
        )
    if weights.exists() and not weights.is_file():
        raise CheckpointError(f"{weights} is not a regular file")
    try:
        with weights.open("rb") as file:
            head = file.read(64)
    except OSError as exc:
        raise CheckpointError(f"cannot read weights from {weights}: {exc.strerror}") from exc
    if not head:
        raise CheckpointError(f"{weights} is empty: copy it again")
    for start, what in _OTHER_FILES:
        if head.startswith(start):
            raise CheckpointError(f"{weights} {what}")
    if head[5:9] == b"\0\0\0{":  # the length of a header, and its beginning
        return _read_safetensors(weights)
    if head.startswith(b"PK"):
        _check_zip(weights)
    elif not head.startswith(b"\x80"):  # how every pickle begins that torch.save writes
        raise CheckpointError(f"{weights} is no file of torch.save or safetensors: {SAVE}")
    return _read_torch(weights)


def _read_safetensors(weights: Path) -> dict[str, Tensor]:
    try:
        return load_file(weights)
    except (OSError, SafetensorError, ValueError, KeyError) as exc:
        raise CheckpointError(f"cannot read weights from {weights}: {exc}; copy it again") from exc


def _check_zip(weights: Path) -> None:
    """Refuse zip files that torch.save did not write."""
    try:
        with zipfile.ZipFile(weights) as archive:
            files = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as exc:
        raise CheckpointError(f"{weights} is cut short or damaged: copy it again") from exc
    names = [file.filename for file in files]
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(
            f"{weights} holds a program (TorchScript), and code is never run: load it where it "
            f"was made, and {SAVE}"
        )
    if not any(name.endswith("/data.pkl") for name in names):
        raise CheckpointError(
            f"{weights} is a zip file that torch.save did not write (it holds {listed(names)}): "
            f"unpack it, or {SAVE}"
        )
    # torch compresses nothing. A small file that claims terabytes must not be unpacked.
    if any(file.compress_type != zipfile.ZIP_STORED for file in files):
        raise CheckpointError(f"{weights} was compressed after torch.save wrote it: {SAVE}")


def _read_torch(weights: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd formats; what cannot be taken is refused below
            return torch.load(weights, map_location="cpu", weights_only=True)
    except _READ_ERRORS as exc:
        if needed := re.search(r"(?:GLOBAL|class) ([\w.]+)", str(exc)):
            raise CheckpointError(
                f"{weights} holds an object that needs code ({needed[1]}), and code is never run: "
                f"load it where it was made, and {SAVE}"
            ) from exc
        reason = str(exc).partition("\n")[0][:200] or type(exc).__name__
        if isinstance(exc, pickle.UnpicklingError):  # its sentences advise to run the code
            reason = "it is damaged, or a pickle that torch.save did not write"
        raise CheckpointError(f"cannot read weights from {weights}: {reason}; {SAVE}") from exc


def listed(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are, for a sentence."""
    shown = ", ".join(f"`{name[:80]}`" for name in names[:_SHOWN]) or "nothing"
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
