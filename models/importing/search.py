"""Find the one model, or the one ensemble, among all that a file holds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.checkpoint.files import CheckpointError
from models.importing.files import SAVE, listed
from models.network.world_model import NORMALISERS

_NEEDED = ("encoder.0.weight", "dynamics.0.weight", "decoder.weight")
_DEPTH = 3
"""Dictionaries in a file are searched down to this level."""
_MOST_MODELS = 16
"""So many, ensembles among them, are compared at most."""
_MOST_MEMBERS = 1000
_TENSORS = (Tensor, torch.nn.Parameter)
"""Other classes of tensors may do anything when they are computed with."""
_SHOWN = 3
"""Places that a message lists at most."""
_NUMBERED = re.compile(r"((?:.*\.)?)([0-9]{1,6})\.((?:[^.]*[^.0-9][^.]*\.)*)")
"""What precedes the names of an ensemble's member: `models.0.`, say, or `0._orig_mod.`."""


@dataclass(frozen=True)
class Found:
    """The tensors of a model, or of an ensemble's members, in one dictionary of a file.

    Attributes:
        values: Of each member, by name without the prefix.
        prefixes: Of each member: removed from its names; "" or ends in a dot.
        entry: Keys that lead to the dictionary; empty: it is the file's own.
        others: Names in the same dictionary that carry none of the prefixes.
    """

    values: tuple[Mapping[str, Any], ...]
    prefixes: tuple[str, ...]
    entry: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def members(self) -> list[dict[str, Tensor]]:
        """The values as float32, once they were found to be tensors."""
        return [{name: x.detach().float() for name, x in one.items()} for one in self.values]

    @property
    def place(self) -> str:
        """Where it is, for a person; "" if the file holds it as it is."""
        parts = [self._prefix] if self._prefix else []
        parts += [f"entry {_path(self.entry)}"] if self.entry else []
        return ", ".join(parts)

    def taken(self) -> str:
        """Say what was taken, and what was left where it was."""
        count = sum(map(len, self.values))
        text = f"took {len(self.values)} members, " if len(self.values) > 1 else "took "
        text += f"{count} tensors"
        text += f", {self._prefix} removed" if self._prefix else ""
        text += f", from the entry {_path(self.entry)}" if self.entry else ""
        return f"{text}; left out {listed(self.others)}" if self.others else text

    @property
    def _prefix(self) -> str:
        first, last = self.prefixes[0], self.prefixes[-1]
        if len(self.prefixes) > 1:
            return f"prefixes `{first}` to `{last}`"
        return f"prefix `{first}`" if first else ""


def find_models(content: Any, weights: Path) -> Found:
    """Return the one model or ensemble that a file holds.

    Args:
        content: What was read from the file.
        weights: The file.

    Raises:
        CheckpointError: It holds none, or several, or one whose tensors are none.
    """
    if not isinstance(content, dict):
        is_tensor = isinstance(content, Tensor)
        what = f"one tensor of shape {list(content.shape)}" if is_tensor else _kind(content)
        raise CheckpointError(
            f"{weights} does not hold a state_dict of tensors by name but {what}: {SAVE}"
        )
    begun = list(islice(_models(content, (), set()), _MOST_MODELS))
    whole = [x for x in begun if _missing(x) is None]
    if not whole:
        raise CheckpointError(_lacking(content, begun, weights))
    for found in whole:
        _check_members(found, weights)
        _check_tensors(found, weights)
    first = whole[0]
    if re.fullmatch(r"models\.[0-9]+\.", first.prefixes[0]) and NORMALISERS[0] in first.values[0]:
        raise CheckpointError(
            f"{weights} belongs to a checkpoint of this service, which needs no import: serve its "
            "folder"
        )
    # One model is often registered under two names, as `model.` and as `compiled._orig_mod.`.
    if any(not _are_same(first, other) for other in whole[1:]):
        places = "; ".join(x.place or "no prefix" for x in whole[:_SHOWN])
        more = "; ..." if len(whole) > _SHOWN else ""
        raise CheckpointError(
            f"{weights} holds several models ({places}{more}): save the state_dict of one alone"
        )
    return first


def _path(entry: tuple[str, ...]) -> str:
    return " / ".join(f"`{key}`" for key in entry)


def _missing(found: Found) -> tuple[str, str] | None:
    """Return the prefix and the name of the first needed tensor that is not there."""
    for prefix, values in zip(found.prefixes, found.values, strict=True):
        for name in _NEEDED:
            if name not in values:
                return prefix, name
    return None


def _lacking(content: dict[Any, Any], begun: list[Found], weights: Path) -> str:
    """Say what a file lacks that holds no whole model."""
    missing = _missing(begun[0]) if begun else None
    if missing is not None:
        prefix, name = missing
        parts = [f"prefix `{prefix}`"] if prefix else []
        parts += [f"entry {_path(begun[0].entry)}"] if begun[0].entry else []
        place = f" ({', '.join(parts)})" if parts else ""
        return f"{weights} lacks the tensor {name}{place}: not a WorldModel's"
    names = listed([str(name) for name in content])
    return f"{weights} lacks the tensor {_NEEDED[0]}: not a WorldModel's; it holds {names}"


def _are_same(one: Found, other: Found) -> bool:
    return len(one.values) == len(other.values) and all(
        x.keys() == y.keys() and all(torch.equal(value, y[name]) for name, value in x.items())
        for x, y in zip(one.members, other.members, strict=True)
    )


def _models(content: dict[Any, Any], entry: tuple[str, ...], seen: set[int]) -> Iterator[Found]:
    """Yield what may be a model in a dictionary or in those inside; each is visited once."""
    seen.add(id(content))
    values = {name: x for name, x in content.items() if isinstance(name, str)}
    for prefixes in _prefixes(values):
        yield _gathered(values, prefixes, entry)
    for name, x in content.items():
        if isinstance(x, dict) and id(x) not in seen and len(entry) < _DEPTH:
            yield from _models(x, (*entry, str(name)), seen)


def _prefixes(values: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the prefixes of each model; those of an ensemble's members together, in order."""
    groups: dict[tuple[str, ...], dict[int, str]] = {}
    for name in values:
        prefix = name.removesuffix(_NEEDED[0])
        if prefix == name or not (prefix == "" or prefix.endswith(".")):
            continue
        match = _NUMBERED.fullmatch(prefix)
        if match is None:
            groups[(prefix,)] = {0: prefix}
        else:
            groups.setdefault((match[1], match[3]), {})[int(match[2])] = prefix
    return [tuple(by_number[i] for i in sorted(by_number)) for by_number in groups.values()]


def _gathered(values: Mapping[str, Any], prefixes: Sequence[str], entry: tuple[str, ...]) -> Found:
    """Return the values under some prefixes, and which names are under none of them."""
    parts: dict[str, dict[str, Any]] = {prefix: {} for prefix in prefixes}
    # Members' prefixes have dots at other places only if their numbers have more digits.
    lengths = sorted({len(prefix) for prefix in prefixes})
    others = []
    for name, value in values.items():
        prefix = next((name[:n] for n in lengths if name[:n] in parts), None)
        if prefix is None:
            others.append(name)
        else:
            parts[prefix][name[len(prefix) :]] = value
    return Found(tuple(parts.values()), tuple(prefixes), entry, tuple(others))


def _check_members(found: Found, weights: Path) -> None:
    """Refuse ensembles of which a member is not there, or not whole.

    Raises:
        CheckpointError: Numbers are left out, or there are too many.
    """
    if len(found.prefixes) == 1:
        return
    if len(found.prefixes) > _MOST_MEMBERS:
        raise CheckpointError(
            f"{weights} holds {len(found.prefixes)} members ({found.place}), but at most "
            f"{_MOST_MEMBERS} can be taken"
        )
    first = _NUMBERED.fullmatch(found.prefixes[0])
    assert first is not None, "several prefixes are numbered"
    head, tail = first[1], first[3]
    missing = [n for n, x in enumerate(found.prefixes) if x != f"{head}{n}.{tail}"]
    beside = re.compile(rf"{re.escape(head)}[0-9]+\.{re.escape(tail)}")
    parts = [match[0] for name in found.others if (match := beside.match(name))]
    if missing or parts:
        lost = parts[0] if parts else f"{head}{missing[0]}.{tail}"
        raise CheckpointError(
            f"{weights} holds {len(found.prefixes)} members of an ensemble ({found.place}), but "
            f"no {_NEEDED[0]} with the prefix `{lost}`: save the state_dict of the whole ensemble"
        )


def _check_tensors(found: Found, weights: Path) -> None:
    """Refuse what is not a dense tensor of floating-point numbers that are finite.

    Raises:
        CheckpointError: One is something else, or they are larger than the file.
    """
    named = [
        (prefix + name if len(found.values) > 1 else name, value)
        for prefix, values in zip(found.prefixes, found.values, strict=True)
        for name, value in values.items()
    ]
    for name, value in named:
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
    count, size = sum(x.numel() for _, x in named), weights.stat().st_size
    if count > size:
        raise CheckpointError(f"{weights} claims {count} numbers in {size} bytes: {SAVE}")
    for name, value in named:
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
