"""Near-range geometry of a state: how far the ego is from hitting something, in metres.

A crash is decided within decimetres while positions vary by tens of metres, so a network that
sees only normalised positions cannot place the boundary. This map gives it the distances that
decide, differentiably and readable by a person.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.network.rows import columnwise
from models.spec import Spec

GAP_LIMIT_M = 12.0
"""Gaps are clamped here: beyond, nothing can be hit within one step."""

CONTACT_SCALE_M = 0.2
"""Gaps of this size decide between a crash and a near miss."""


class GeometryMap(nn.Module):
    """State to gaps: one per neighbour slot, their minimum, and the nearest road edge.

    Args:
        spec: Must name a geometry.

    Raises:
        ValueError: The spec has no geometry.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        geometry = spec.geometry
        if geometry is None:
            raise ValueError(f"spec {spec.name!r} names no geometry")
        self.half_length_m = geometry.length_m / 2
        self.half_width_m = geometry.width_m / 2
        self.slot_count = len(geometry.slots)
        # Features of all slots, grouped: all presences, all dx, all dy, all headings; edges.
        columns = [
            spec.state_index(getattr(slot, part))
            for part in ("presence", "dx", "dy", "heading")
            for slot in geometry.slots
        ]
        columns += [spec.state_index(name) for name in geometry.edges]
        self.columns: Tensor
        self.register_buffer("columns", torch.tensor(columns), persistent=False)

    @property
    def feature_count(self) -> int:
        """Number of values that `forward` returns for a state."""
        return 2 * (self.slot_count + 2)

    def gaps(self, state: Tensor) -> Tensor:
        """Return signed gaps in metres.

        The gap to a slot is the largest separation over the four axes of the two rectangles
        (separating axis theorem: Gottschalk, Lin, Manocha 1996, "OBBTree"); negative means
        overlap by that depth. Absent slots are `GAP_LIMIT_M` away. The edge gap is the smallest
        edge distance.

        Args:
            state: [..., B, S], physical units.

        Returns:
            [..., B, slots + 2]: a gap per slot, their minimum, the edge gap; clamped to
            +-`GAP_LIMIT_M`.
        """
        values = state.index_select(-1, self.columns)
        n = self.slot_count
        presence, dx, dy, heading = (values[..., i * n : (i + 1) * n] for i in range(4))
        edge = values[..., 4 * n :].amin(-1, keepdim=True).clamp(-GAP_LIMIT_M, GAP_LIMIT_M)
        cos_h, sin_h = columnwise(torch.cos, heading), columnwise(torch.sin, heading)
        length, width = self.half_length_m, self.half_width_m
        abs_cos, abs_sin = cos_h.abs(), sin_h.abs()
        # Both rectangles have the same size, so the extents are the same along either's axes.
        along = length + length * abs_cos + width * abs_sin
        across = width + length * abs_sin + width * abs_cos
        gap = torch.maximum(
            torch.maximum(dx.abs() - along, dy.abs() - across),
            torch.maximum(
                (dx * cos_h + dy * sin_h).abs() - along,
                (dy * cos_h - dx * sin_h).abs() - across,
            ),
        )
        gap = torch.where(presence > 0.5, gap, GAP_LIMIT_M).clamp(-GAP_LIMIT_M, GAP_LIMIT_M)
        return torch.cat([gap, gap.amin(-1, keepdim=True), edge], dim=-1)

    def forward(self, state: Tensor) -> Tensor:
        """Return gaps squashed to (-1, 1) at two scales: metres and decimetres from contact.

        Args:
            state: [..., B, S], physical units.

        Returns:
            [..., B, 2 (slots + 2)], dimensionless.
        """
        gap = self.gaps(state)
        gap = torch.cat([gap, gap / CONTACT_SCALE_M], dim=-1)
        # x / (1 + |x|): smooth, and plain arithmetic, so its bits never depend on vector lanes.
        return gap / (1 + gap.abs())
