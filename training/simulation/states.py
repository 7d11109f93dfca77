"""Numbers of states in the order of a spec, for whatever layout names what the simulator knows."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.saturation import Saturations
from models.spec import FORWARD_RIGHT_DOWN, Slot, Spec
from training.simulation.slots import nearest_columns
from world_model_client.scene import Layout, Place, assemble

Floats = NDArray[np.floating[Any]]

EGO_FEATURES = (
    "speed",
    "lane_offset",
    "sin_heading_error",
    "left_edge",
    "right_edge",
    "curvature",
)
"""What is recorded of the ego beside its pose, in order."""

_SLOT_FEATURES = ("dx", "dy", "heading", "speed", "acceleration", "yaw_rate")
"""What `slots.slot_features` returns behind the presence."""


class StateEncoder:
    """Writes states of a spec, and chooses who is in their slots.

    Args:
        spec: Names features of `models.highway` and `models.road_users`, in any order.

    Attributes:
        spec: As given.
        slot_count: Of its geometry.
        has_sizes: Whether slots have sizes.

    Raises:
        ValueError: It has features that the simulator does not know.
    """

    def __init__(self, spec: Spec) -> None:
        geometry, car = spec.geometry, spec.kinematics
        if geometry is None or car is None or not geometry.slots:
            raise ValueError(f"spec {spec.name!r} has no kinematics or no slots of neighbours")
        self.spec = spec
        self._ego = np.array([spec.state_index(getattr(car, x)) for x in EGO_FEATURES], np.intp)
        self._ego_size = [spec.state_index(name) for name in geometry.size_features]
        self.slot_count = len(geometry.slots)
        self.has_sizes = all(slot.length is not None for slot in geometry.slots)
        columns = np.array([_columns(slot, spec) for slot in geometry.slots], np.intp)
        self._has = columns >= 0
        self._columns = columns[self._has]
        self._saturations = Saturations(spec)
        rates = [x for slot in geometry.slots for x in (slot.acceleration, slot.yaw_rate) if x]
        self._rates = np.array([spec.state_index(name) for name in rates], np.intp)
        ranges = [(spec.state[i].low, spec.state[i].high) for i in self._rates]
        self._rate_ranges = np.array(ranges, np.float32).reshape(-1, 2)
        self._layout = _layout(spec) if self.has_sizes else None
        known = {*self._ego, *self._ego_size, *self._columns}
        if unknown := [f.name for i, f in enumerate(spec.state) if i not in known]:
            raise ValueError(f"spec {spec.name!r}: the simulator knows no {unknown[0]!r}")

    def choose(
        self, ego: Floats, ego_size: Floats, others: Floats, sizes: Floats, present: NDArray[Any]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return who fills the slots.

        With sizes those whose rectangles are nearest, as the client's builder has it; else those
        whose centres are. Nearest centre first in both.

        Args:
            ego: [N, 4] x, y, heading, speed.
            ego_size: [N, 2] length, width.
            others: [N, V, 4], V at least `slot_count`.
            sizes: [N, V, 2].
            present: [N, V], whether a column holds somebody.

        Returns:
            [N, slots] columns of `others`; [N, slots] whether the slot is filled.
        """
        if self._layout is None:
            return nearest_columns(ego, others, present)
        here, nowhere = np.concatenate([ego, ego_size], axis=-1), np.zeros(len(ego))
        rows = np.concatenate([others, sizes, np.zeros_like(sizes)], axis=-1)
        zero = nowhere.astype(np.intp)
        place = Place(zero, nowhere, nowhere, nowhere, nowhere, nowhere, zero > 0)
        frame = self._layout.frame
        columns = assemble(self._layout, frame, here, place, rows, present > 0).columns
        return np.maximum(columns, 0).astype(np.int64), columns >= 0

    def encode(
        self,
        ego_features: Floats,
        ego_size: Floats,
        slots: NDArray[np.float32],
        sizes: Floats,
    ) -> NDArray[np.float32]:
        """Return states [..., S], saturated as the spec has it.

        Args:
            ego_features: [..., 6] `EGO_FEATURES`.
            ego_size: [..., 2] length, width.
            slots: [..., slots, 7] as `slots.slot_features` returns them.
            sizes: [..., slots, 2] length, width; those of empty slots do not matter.
        """
        states = np.zeros((*slots.shape[:-2], self.spec.state_dim), np.float32)
        states[..., self._ego] = ego_features
        states[..., self._ego_size] = ego_size[..., : len(self._ego_size)]
        presence = slots[..., :1]
        sizes = np.asarray(sizes * presence, np.float32)
        values = np.concatenate([presence, slots[..., 1:], sizes], axis=-1)
        states[..., self._columns] = values[..., self._has]
        return self._saturations.applied(states)

    def clipped_rates(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return states [..., S] without rates that nobody has, as the client's builder does.

        They come of differences: what is beyond the spec's range is noise.
        """
        clipped = states.copy()
        low, high = self._rate_ranges.T
        clipped[..., self._rates] = np.clip(states[..., self._rates], low, high)
        return clipped


def _columns(slot: Slot, spec: Spec) -> list[int]:
    """Return the columns of presence, `_SLOT_FEATURES`, length and width; -1 for what is not."""
    names = (slot.presence, *(getattr(slot, x) for x in _SLOT_FEATURES), slot.length, slot.width)
    return [-1 if name is None else spec.state_index(name) for name in names]


def _layout(spec: Spec) -> Layout:
    """Return what the client's builder needs to know of a spec."""
    document = {
        "features": {"state": [{"name": f.name, "low": f.low, "high": f.high} for f in spec.state]},
        "frame": spec.frame or FORWARD_RIGHT_DOWN,
    }
    return Layout.from_model(document)


@lru_cache(maxsize=8)
def encoder_of(spec: Spec) -> StateEncoder:
    """Return the encoder of a spec; the same one for the same spec.

    Raises:
        ValueError: It has features that the simulator does not know.
    """
    return StateEncoder(spec)
