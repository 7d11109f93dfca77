"""Where a spec's features are in a state, and how features of slots are read kind by kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.spec import Spec

SLOT_KINDS = (
    "dx",
    "dy",
    "heading",
    "speed",
    "acceleration",
    "yaw_rate",
    "presence",
    "length",
    "width",
)
"""Features of a slot in the order in which machine code finds their columns."""

MOVED_SLOT_KINDS = SLOT_KINDS[:6]
"""Those that a step changes."""

EGO_COUNT = 9
"""Columns of the ego that machine code knows."""

NOWHERE = -1
"""Column of a feature that a spec does not have."""


@dataclass(frozen=True)
class StateColumns:
    """Columns of a state and an action by what they mean; `NOWHERE` for what there is not.

    Attributes:
        slots: Columns of each of `SLOT_KINDS` in all slots, [kinds][slots].
        edges: Of the distances to road edges.
        ego: Of the features that kinematics move, in the order of the spec's fields; of the length
            that is the wheelbase; of the length and the width of the ego's rectangle; `EGO_COUNT`.
        actions: Of the action's features.
    """

    slots: tuple[tuple[int, ...], ...]
    edges: tuple[int, ...]
    ego: tuple[int, ...]
    actions: tuple[int, ...]

    @classmethod
    def of(cls, spec: Spec) -> StateColumns:
        """Return those of a spec."""

        def column(name: str | None) -> int:
            return NOWHERE if name is None else spec.state_index(name)

        geometry, car = spec.geometry, spec.kinematics
        slots = geometry.slots if geometry is not None else ()
        moved = (*car.moved_features, car.length) if car is not None else (None,) * 7
        size = (geometry.length, geometry.width) if geometry is not None else (None, None)
        return cls(
            slots=tuple(tuple(column(getattr(x, kind)) for x in slots) for kind in SLOT_KINDS),
            edges=tuple(map(column, geometry.edges)) if geometry is not None else (),
            ego=tuple(map(column, (*moved, *size))),
            actions=tuple(map(spec.action_index, car.action_features)) if car is not None else (),
        )


class SlotReader(nn.Module):
    """State to the features of all slots, one tensor a kind, and to other features.

    Args:
        spec: Must name a geometry.
        others: Names of the other features.
        kinds: Attributes of `Slot`, each with what a slot that lacks it is taken to have.
    """

    def __init__(self, spec: Spec, others: Sequence[str], kinds: Mapping[str, float]) -> None:
        super().__init__()
        assert spec.geometry is not None
        slots = spec.geometry.slots
        self.slot_count = len(slots)
        self.kind_count = len(kinds)
        columns = [spec.state_index(name) for name in others]
        constants: list[float] = []
        for kind, otherwise in kinds.items():
            for slot in slots:
                name = getattr(slot, kind)
                if name is None:
                    columns.append(spec.state_dim + len(constants))
                    constants.append(otherwise)
                else:
                    columns.append(spec.state_index(name))
        self.has_lengths = not all(slot.has_presence for slot in slots)
        self.has_constants = bool(constants)
        self.register_buffer("columns", torch.tensor(columns, dtype=torch.int64), persistent=False)
        self.register_buffer("constants", torch.tensor(constants), persistent=False)
        is_length = torch.tensor([not slot.has_presence for slot in slots], dtype=torch.bool)
        self.register_buffer("is_length", is_length, persistent=False)

    columns: Tensor
    constants: Tensor
    is_length: Tensor

    def forward(self, state: Tensor) -> tuple[Tensor, ...]:
        """Return the other features [..., B, n], then each kind [..., B, slots].

        Args:
            state: [..., B, S], physical units.
        """
        if self.has_constants:
            constants = self.constants.expand(*state.shape[:-1], -1)
            state = torch.cat([state, constants], dim=-1)
        values = state.index_select(-1, self.columns)
        others = values.shape[-1] - self.kind_count * self.slot_count
        return torch.split(values, [others, *[self.slot_count] * self.kind_count], dim=-1)

    def there(self, gates: Tensor) -> Tensor:
        """Return 1 for slots that somebody is in, else 0; a presence comes back as it is.

        Args:
            gates: [..., B, slots], of the kind `gate`.
        """
        return open_gates(gates, self.is_length) if self.has_lengths else gates


def open_gates(gates: Tensor, is_length: Tensor) -> Tensor:
    """Return presences as they are, and 1 or 0 for lengths above 0 and others.

    Args:
        gates: [..., n].
        is_length: [n], whether each is a length.
    """
    return torch.where(is_length, (gates > 0).to(gates.dtype), gates)
