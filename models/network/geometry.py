"""Near-range geometry of a state: how far the ego is from hitting something, in metres.

A crash is decided within decimetres while positions vary by tens of metres, so a network that
sees only normalised positions cannot place the boundary. This map gives it the distances that
decide, differentiably and readable by a person.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.network.columns import SlotReader
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
        self.edge_count = len(geometry.edges)
        self.has_own_size = bool(geometry.size_features)
        self.has_sizes = any(slot.length is not None for slot in geometry.slots)
        kinds = {"gate": 0.0, "dx": 0.0, "dy": 0.0, "heading": 0.0}
        if self.has_sizes:
            kinds |= {"length": geometry.length_m, "width": geometry.width_m}
        self.reader = SlotReader(spec, (*geometry.size_features, *geometry.edges), kinds)

    @property
    def feature_count(self) -> int:
        """Number of values that `forward` returns for a state."""
        return 2 * (self.slot_count + 2)

    def gaps(self, state: Tensor) -> Tensor:
        """Return signed gaps in metres.

        The gap to a slot is the largest separation over the four axes of the two rectangles
        (separating axis theorem: Gottschalk, Lin, Manocha 1996, "OBBTree"); negative means
        overlap by that depth. Empty slots are `GAP_LIMIT_M` away. The edge gap is the smallest
        edge distance.

        Args:
            state: [..., B, S], physical units.

        Returns:
            [..., B, slots + 2]: a gap per slot, their minimum, the edge gap; clamped to
            +-`GAP_LIMIT_M`.
        """
        others, gates, dx, dy, heading, *sizes = self.reader(state)
        own_count = others.shape[-1] - self.edge_count
        own, edges = others[..., :own_count], others[..., own_count:]
        edge = _nearest(edges).clamp(-GAP_LIMIT_M, GAP_LIMIT_M)
        cos_h, sin_h = columnwise(torch.cos, heading), columnwise(torch.sin, heading)
        axes = self._reaches(own, sizes, cos_h.abs(), sin_h.abs())
        gap = torch.maximum(
            torch.maximum(dx.abs() - axes[0], dy.abs() - axes[1]),
            torch.maximum(
                (dx * cos_h + dy * sin_h).abs() - axes[2],
                (dy * cos_h - dx * sin_h).abs() - axes[3],
            ),
        )
        is_there = self.reader.there(gates) > 0.5
        gap = torch.where(is_there, gap, GAP_LIMIT_M).clamp(-GAP_LIMIT_M, GAP_LIMIT_M)
        return torch.cat([gap, _nearest(gap), edge], dim=-1)

    def _reaches(
        self, own: Tensor, sizes: Sequence[Tensor], abs_cos: Tensor, abs_sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return how far the centres are apart, along each of the four axes, when shadows touch.

        Args:
            own: [..., B, 2], the ego's length and width, or nothing if they are not features.
            sizes: Length and width of who is in the slots, [..., B, slots] each, or nothing.
            abs_cos: [..., B, slots], of relative headings.
            abs_sin: Likewise.

        Returns:
            Along and across the ego, along and across the other one; [..., B, slots] each.
        """
        length: Tensor | float = self.half_length_m
        width: Tensor | float = self.half_width_m
        their_length, their_width = length, width
        if self.has_own_size:
            length, width = 0.5 * own[..., :1], 0.5 * own[..., 1:]
        if self.has_sizes:
            their_length, their_width = 0.5 * sizes[0], 0.5 * sizes[1]
        along = length + their_length * abs_cos + their_width * abs_sin
        across = width + their_length * abs_sin + their_width * abs_cos
        if not self.has_own_size and not self.has_sizes:
            return along, across, along, across
        along_theirs = their_length + length * abs_cos + width * abs_sin
        across_theirs = their_width + length * abs_sin + width * abs_cos
        return along, across, along_theirs, across_theirs

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


def _nearest(gaps: Tensor) -> Tensor:
    """Return the smallest of [..., n] gaps, [..., 1]; the limit if there are none."""
    if not gaps.shape[-1]:
        return gaps.new_full((*gaps.shape[:-1], 1), GAP_LIMIT_M)
    return gaps.amin(-1, keepdim=True)
