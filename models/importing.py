"""Bring in weights that were trained elsewhere with the specification's own class.

The file may be what the usual tools write: `torch.save` of a `state_dict`, alone or as an entry of
a training checkpoint (PyTorch Lightning and the like), or safetensors. Names may carry a prefix
(`module.`, `_orig_mod.`, `model.`, ...). What is unambiguous is taken; everything else is refused
in one sentence. No code of a file is ever run.
"""

from __future__ import annotations

import math
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from models.checkpoint import Architecture, Checkpoint, load_tensors
from models.checkpoint.files import CheckpointError
from models.network.ensemble import WorldModelEnsemble
from models.network.world_model import NORMALISERS
from models.spec import anonymous_spec

_NEEDED = ("encoder.0.weight", "dynamics.0.weight", "decoder.weight")
_SAVE = "write it by torch.save(model.state_dict(), 'weights.pt')"
_DEPTH = 3
"""Dictionaries in a file are searched down to this level."""
_MOST_MODELS = 16
"""So many are compared at most."""
_TENSORS = (Tensor, torch.nn.Parameter)
"""Other classes of tensors may do anything when they are computed with."""
_SHOWN = 3
"""Names that a message lists at most."""

_OTHER_FILES = (
    (
        b"version https://git-lfs",
        "is a git-lfs pointer, not the weights: run git lfs pull",
    ),
    (b"\x1f\x8b", "is compressed by gzip: unpack it first"),
    (b"\x89HDF", f"is an HDF5 file: load it where it was made, and {_SAVE}"),
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


def import_weights(weights: Path, *, activation: str = "elu", dt_s: float = 0.05) -> Checkpoint:
    """Make a checkpoint of weights trained with the specification's own class.

    Dims are read off the shapes. Such a model predicts the absolute next state in raw units
    unless the file holds normalisers, and has no calibration: its safety verdicts are
    `unknown`. What was taken from the file is noted as `training["taken"]`.

    Args:
        weights: File written by `torch.save` or safetensors; weights only, no code.
        activation: What the model was trained with; the file does not say.
        dt_s: Length of a step; the file does not say.

    Raises:
        CheckpointError: The file cannot be read or does not hold exactly one such model.
    """
    if not 0 < dt_s < math.inf:
        raise CheckpointError(f"the length of a step is {dt_s:g} s (allowed: positive, finite)")
    found = _find(_read(weights), weights)
    tensors = found.tensors
    hidden_dims, action_dim = _dims(tensors, weights)
    state_dim = tensors["encoder.0.weight"].shape[1]
    architecture = Architecture(hidden_dims, activation, residual=False, check_latent=False)
    try:
        spec = anonymous_spec(state_dim, action_dim, dt_s)
        model = architecture.build(spec)
    except ValueError as exc:
        raise CheckpointError(f"{weights} cannot be a WorldModel: {exc}") from exc
    load_tensors(model, tensors, weights, optional=True)
    return Checkpoint(
        ensemble=WorldModelEnsemble.from_members([model]),
        spec=spec,
        architecture=architecture,
        name="imported",
        training={"imported_from": weights.name, "taken": found.taken()},
    )


@dataclass(frozen=True)
class _Found:
    """A dictionary in a file that holds a model's tensors.

    Attributes:
        values: By name without the prefix.
        prefix: Removed from the names; "" or ends in a dot.
        entry: Keys that lead to the dictionary; empty: it is the file's own.
        others: Names in the same dictionary that do not carry the prefix.
    """

    values: Mapping[str, Any]
    prefix: str
    entry: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The values as float32, once they were found to be tensors."""
        return {name: x.detach().float() for name, x in self.values.items()}

    @property
    def place(self) -> str:
        """Where it is, for a person; "" if the file holds it as it is."""
        parts = [f"prefix `{self.prefix}`"] if self.prefix else []
        parts += [f"entry {_path(self.entry)}"] if self.entry else []
        return ", ".join(parts)

    def taken(self) -> str:
        """Say what was taken, and what was left where it was."""
        text = f"took {len(self.values)} tensors"
        text += f", prefix `{self.prefix}` removed" if self.prefix else ""
        text += f", from the entry {_path(self.entry)}" if self.entry else ""
        return f"{text}; left out {_listed(self.others)}" if self.others else text


def _path(entry: tuple[str, ...]) -> str:
    return " / ".join(f"`{key}`" for key in entry)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name[:80]}`" for name in names[:_SHOWN]) or "nothing"
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _read(weights: Path) -> Any:
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
        raise CheckpointError(f"{weights} is no file of torch.save or safetensors: {_SAVE}")
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
            f"was made, and {_SAVE}"
        )
    if not any(name.endswith("/data.pkl") for name in names):
        raise CheckpointError(
            f"{weights} is a zip file that torch.save did not write (it holds {_listed(names)}): "
            f"unpack it, or {_SAVE}"
        )
    # torch compresses nothing. A small file that claims terabytes must not be unpacked.
    if any(file.compress_type != zipfile.ZIP_STORED for file in files):
        raise CheckpointError(f"{weights} was compressed after torch.save wrote it: {_SAVE}")


def _read_torch(weights: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd formats; what cannot be taken is refused below
            return torch.load(weights, map_location="cpu", weights_only=True)
    except _READ_ERRORS as exc:
        if needed := re.search(r"(?:GLOBAL|class) ([\w.]+)", str(exc)):
            raise CheckpointError(
                f"{weights} holds an object that needs code ({needed[1]}), and code is never run: "
                f"load it where it was made, and {_SAVE}"
            ) from exc
        reason = str(exc).partition("\n")[0][:200] or type(exc).__name__
        if isinstance(exc, pickle.UnpicklingError):  # its sentences advise to run the code
            reason = "it is damaged, or a pickle that torch.save did not write"
        raise CheckpointError(f"cannot read weights from {weights}: {reason}; {_SAVE}") from exc


def _find(content: Any, weights: Path) -> _Found:
    """Return the one model that a file holds.

    Raises:
        CheckpointError: It holds none, or several, or one whose tensors are none.
    """
    if not isinstance(content, dict):
        is_tensor = isinstance(content, Tensor)
        what = f"one tensor of shape {list(content.shape)}" if is_tensor else _kind(content)
        raise CheckpointError(
            f"{weights} does not hold a state_dict of tensors by name but {what}: {_SAVE}"
        )
    begun = list(islice(_models(content, (), set()), _MOST_MODELS))
    whole = [x for x in begun if all(name in x.values for name in _NEEDED)]
    if not whole:
        raise CheckpointError(_lacking(content, begun, weights))
    for found in whole:
        _check_tensors(found, weights)
    first = whole[0]
    if re.fullmatch(r"models\.\d+\.", first.prefix) and NORMALISERS[0] in first.values:
        raise CheckpointError(
            f"{weights} belongs to a checkpoint of this service, which needs no import: serve its "
            "folder"
        )
    # One model is often registered under two names, as `model.` and as `compiled._orig_mod.`.
    if any(not _are_same(first.tensors, other.tensors) for other in whole[1:]):
        places = "; ".join(x.place or "no prefix" for x in whole[:_SHOWN])
        more = "; ..." if len(whole) > _SHOWN else ""
        raise CheckpointError(
            f"{weights} holds several models ({places}{more}): save the state_dict of one alone"
        )
    return first


def _lacking(content: dict[Any, Any], begun: list[_Found], weights: Path) -> str:
    """Say what a file lacks that holds no whole model."""
    if begun:
        missing = next(name for name in _NEEDED if name not in begun[0].values)
        place = f" ({begun[0].place})" if begun[0].place else ""
        return f"{weights} lacks the tensor {missing}{place}: not a WorldModel's"
    names = _listed([str(name) for name in content])
    return f"{weights} lacks the tensor {_NEEDED[0]}: not a WorldModel's; it holds {names}"


def _are_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(x, other[name]) for name, x in one.items()
    )


def _models(content: dict[Any, Any], entry: tuple[str, ...], seen: set[int]) -> Iterator[_Found]:
    """Yield what may be a model in a dictionary or in those inside; each is visited once."""
    seen.add(id(content))
    values = {name: x for name, x in content.items() if isinstance(name, str)}
    for name in values:
        prefix = name.removesuffix(_NEEDED[0])
        if prefix == name or not (prefix == "" or prefix.endswith(".")):
            continue
        inside = {n[len(prefix) :]: x for n, x in values.items() if n.startswith(prefix)}
        others = tuple(n for n in values if not n.startswith(prefix))
        yield _Found(inside, prefix, entry, others)
    for name, x in content.items():
        if isinstance(x, dict) and id(x) not in seen and len(entry) < _DEPTH:
            yield from _models(x, (*entry, str(name)), seen)


def _check_tensors(found: _Found, weights: Path) -> None:
    """Refuse what is not a dense tensor of floating-point numbers that are finite.

    Raises:
        CheckpointError: One is something else, or they are larger than the file.
    """
    for name, value in found.values.items():
        if type(value) not in _TENSORS:
            raise CheckpointError(f"{weights} holds {name} as {_kind(value)}, not as a tensor")
        if odd := _oddity(value):
            raise CheckpointError(
                f"{weights} holds {name} {odd}; a WorldModel's tensors are dense floating-point "
                "numbers"
            )
        if value.numel() == 0:
            raise CheckpointError(f"{weights} holds {name} of shape {list(value.shape)}: no number")
    # A view that repeats a number takes no room in the file, but all its room in the model.
    count, size = sum(x.numel() for x in found.values.values()), weights.stat().st_size
    if count > size:
        raise CheckpointError(f"{weights} claims {count} numbers in {size} bytes: {_SAVE}")
    for name, value in found.values.items():
        try:
            is_finite = bool(value.detach().float().isfinite().all())
        except RuntimeError as exc:  # of types that PyTorch can store and not compute with
            raise CheckpointError(
                f"{weights} holds {name} {_typed(value)}, which cannot be read as 32-bit floats"
            ) from exc
        if not is_finite:
            raise CheckpointError(
                f"{weights} holds values in {name} that are not finite as 32-bit floats"
            )


def _oddity(tensor: Tensor) -> str:
    """Say what makes a tensor another thing than dense floating-point numbers; "" if nothing."""
    if tensor.is_meta:
        return "without values"
    if tensor.is_nested:  # some of them have a dense one's layout
        return "as a nested tensor"
    is_plain = tensor.dtype.is_floating_point and tensor.layout == torch.strided
    return "" if is_plain else _typed(tensor)


def _typed(tensor: Tensor) -> str:
    return f"as {tensor.dtype}, {tensor.layout}".replace("torch.", "")


def _kind(value: Any) -> str:
    return f"an object of type {type(value).__name__}"


def _dims(tensors: dict[str, Tensor], weights: Path) -> tuple[tuple[int, ...], int]:
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


def _chain(tensors: dict[str, Tensor], part: str, weights: Path) -> tuple[tuple[int, ...], int]:
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
