"""An ensemble's weights as machine code reads them: the structures of `steps.h`, in one block.

The block is made for the address where it will lie, in a GPU's memory too: all pointers in it point
into it. What Python and C++ must agree on is fixed here and passed to the compilers, which refuse
code that puts a field elsewhere; see `definitions`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.layout import MOST_SIN, SHORTEST_M, SLOWEST_MPS
from models.network.columns import EGO_COUNT, NOWHERE, SLOT_KINDS
from models.network.geometry import CONTACT_SCALE_M, GAP_LIMIT_M
from models.network.world_model import WorldModel

PANEL = 32
"""Columns of weights that lie side by side."""

_ACTIVATIONS = {"relu": 1, "elu": 2, "tanh": 3}
_ALIGNMENT = 128
"""A line of a GPU's cache: what a warp reads at once would lie in two of them else."""

Bytes = NDArray[np.uint8]


def pack(members: Sequence[WorldModel], address: int) -> tuple[Bytes, list[int]]:
    """Pack members of the same shape.

    Args:
        members: Their present weights are taken.
        address: Where the block will lie: on a CPU aligned to 64, on a GPU to 128.

    Returns:
        The block, and where in it the `Model` of the first 1, 2, ... members begins; all of them
        point to the same weights.
    """
    block = _Block(address)
    model, places = _model(members, block), []
    for count in range(1, len(members) + 1):
        model.members = count
        places.append(block.address_of(bytes(model)) - address)
    return np.frombuffer(b"".join(block.parts), np.uint8), places


class _Block:
    """Collects what lies one after the other.

    Args:
        address: Of the first byte.

    Attributes:
        parts: What has been collected.
    """

    def __init__(self, address: int) -> None:
        self.parts: list[bytes] = []
        self._next = address

    def address_of(self, content: bytes) -> int:
        """Append bytes; return where they lie."""
        at = self._next
        padding = b"\0" * (-len(content) % _ALIGNMENT)
        self.parts += [content, padding]
        self._next += len(content) + len(padding)
        return at

    def floats(self, values: torch.Tensor | NDArray[np.float32]) -> int:
        """Append numbers in the order in which they count; return where they lie."""
        given = values.cpu() if isinstance(values, torch.Tensor) else values
        return self.address_of(np.ascontiguousarray(given, np.float32).tobytes())

    def ints(self, values: Sequence[int]) -> int:
        """Append whole numbers; return where they lie."""
        return self.address_of(np.array(values, np.int32).tobytes())


def _model(members: Sequence[WorldModel], block: _Block) -> _Model:
    first = members[0]
    geometry, kinematics, columns = first.geometry, first.kinematics, first.columns
    is_length = first.gate_is_length.tolist()
    model = _Model(
        members=len(members),
        state_dim=first.state_dim,
        action_dim=first.action_dim,
        depth=len(first.hidden_dims),
        latent_dim=first.latent_dim,
        is_residual=first.residual,
        has_geometry=geometry is not None,
        has_kinematics=kinematics is not None,
        member=block.address_of(b"".join(bytes(_member(member, block)) for member in members)),
        gate_always=block.floats(first.gate_always),
        gate_if_present=block.floats(first.gate_if_present),
        gates=block.ints(
            [~i if x else i for i, x in zip(first.gate_index.tolist(), is_length, strict=True)]
        ),
        gap_limit_m=GAP_LIMIT_M,
        contact_scale_m=CONTACT_SCALE_M,
        slowest_mps=SLOWEST_MPS,
        most_sin=MOST_SIN,
        shortest_m=SHORTEST_M,
    )
    if columns is not None:
        model.slots, model.edges = len(columns.slots[0]), len(columns.edges)
        model.slot_columns = block.ints([x for kind in columns.slots for x in kind])
        model.edge_columns = block.ints(columns.edges)
        model.ego_columns = block.ints(columns.ego)
        model.action_columns = block.ints(columns.actions)
    if geometry is not None:
        model.half_length_m, model.half_width_m = geometry.half_length_m, geometry.half_width_m
    if kinematics is not None:
        model.dt_s = kinematics.dt_s
        for name in _CAR:
            setattr(model, name, getattr(kinematics.car, name))
    return model


def _member(member: WorldModel, block: _Block) -> _Member:
    layers = [bytes(_layer(*layer, block)) for layer in layers_of(member)]
    return _Member(
        layers=block.address_of(b"".join(layers)),
        state_mean=block.floats(member.state_mean),
        state_scale=block.floats(member.state_scale),
        delta_scale=block.floats(member.delta_scale),
        reward_mean=member.reward_mean.item(),
        reward_scale=member.reward_scale.item(),
        done_scale=member.done_scale.item(),
        done_shift=member.done_shift.item(),
    )


def _layer(layer: nn.Linear, activation: int, block: _Block) -> _Layer:
    """Lay columns side by side in panels; missing ones are zero."""
    outputs, inputs = layer.weight.shape
    columns = padded(outputs)
    weights = np.zeros((columns, inputs), np.float32)
    weights[:outputs] = layer.weight.detach().cpu().numpy()
    biases = np.zeros(columns, np.float32)
    biases[:outputs] = layer.bias.detach().cpu().numpy()
    by_panel = weights.reshape(-1, PANEL, inputs).swapaxes(1, 2)
    return _Layer(inputs, outputs, activation, block.floats(by_panel), block.floats(biases))


def layers_of(member: WorldModel) -> Iterator[tuple[nn.Linear, int]]:
    """Yield a member's layers in the order of `steps.h`, each with its activation."""
    act = _ACTIVATIONS[member.activation]
    parts = (member.encoder, member.dynamics, member.decoder, member.reward_head, member.done_head)
    for part in parts:
        linear = [layer for layer in part.modules() if isinstance(layer, nn.Linear)]
        is_head = part in (member.reward_head, member.done_head)
        for k, layer in enumerate(linear):
            is_last = k == len(linear) - 1
            is_plain = part is member.decoder or (is_head and is_last)
            yield layer, 0 if is_plain else act


def padded(outputs: int) -> int:
    """Return the columns of a layer, those included that fill up its last panel."""
    return -(-outputs // PANEL) * PANEL


_CAR = (
    "length_m",
    "full_throttle_mps2",
    "full_brake_mps2",
    "max_speed_mps",
    "grip_mps2",
    "max_steering_rad",
)
_INT, _FLOAT, _POINTER = ctypes.c_int32, ctypes.c_float, ctypes.c_void_p


def _fields(names: str, kind: Any) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


# The structures of steps.h, field by field.


class _Layer(ctypes.Structure):
    _fields_ = _fields("inputs outputs activation", _INT) + _fields("weights biases", _POINTER)


class _Member(ctypes.Structure):
    _fields_ = _fields("layers state_mean state_scale delta_scale", _POINTER) + _fields(
        "reward_mean reward_scale done_scale done_shift", _FLOAT
    )


class _Model(ctypes.Structure):
    _fields_ = (
        _fields("members state_dim action_dim depth latent_dim", _INT)
        + _fields("is_residual has_geometry has_kinematics slots edges", _INT)
        + _fields("member gate_always gate_if_present gates", _POINTER)
        + _fields("slot_columns edge_columns ego_columns action_columns", _POINTER)
        + _fields("half_length_m half_width_m gap_limit_m contact_scale_m dt_s", _FLOAT)
        + _fields(" ".join(_CAR), _FLOAT)
        + _fields("slowest_mps most_sin shortest_m", _FLOAT)
    )


def definitions(
    structures: Sequence[type[ctypes.Structure]], numbers: Mapping[str, int]
) -> tuple[str, ...]:
    """Return compiler options that define as macros what Python has fixed.

    Args:
        structures: Their sizes and where their fields are: `BYTES_Model`, `AT_Model_members`, ...
        numbers: By the macro's name.
    """
    macros = dict(numbers)
    for structure in structures:
        name = structure.__name__.lstrip("_")
        macros[f"BYTES_{name}"] = ctypes.sizeof(structure)
        for field, *_ in structure._fields_:
            macros[f"AT_{name}_{field}"] = getattr(structure, field).offset
    return tuple(f"-D{name}={number}" for name, number in macros.items())


DEFINITIONS = definitions(
    (_Layer, _Member, _Model),
    {
        "PANEL": PANEL,
        "SLOT_KINDS": len(SLOT_KINDS),
        "EGO_COUNT": EGO_COUNT,
        "NOWHERE": NOWHERE,
        **{f"ACTIVATION_{name.upper()}": x for name, x in _ACTIVATIONS.items()},
    },
)
"""Those of `steps.h`."""
