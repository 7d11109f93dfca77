"""Same row, same bits: what makes a row's answer independent of the rows beside it.

On a CPU, matrix kernels treat the last rows of a ragged batch differently from the others, and
elementwise loops round the elements left over after whole vectors differently. Whole tiles of rows
and whole vectors leave nothing over.

This holds for one or two threads. With more, torch cuts big tensors at places that split vectors;
whoever guarantees bits then must check them, as `service.engine` does at start.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

ROW_TILE = 8
"""Rows are padded to a multiple of this."""

LANES = 32
"""Two AVX-512 vectors of float32, the most that one loop iteration takes."""


def pad_rows(rows: Tensor, dim: int = -2) -> Tensor:
    """Append zero rows up to a multiple of `ROW_TILE`.

    Args:
        rows: [..., B, n] if `dim` is -2, [..., B, n, m] if it is -3.
        dim: That of B.

    Returns:
        The same shape, with B rounded up; the same tensor if it is a multiple already.
    """
    missing = -rows.shape[dim] % ROW_TILE
    if not missing:
        return rows
    shape = list(rows.shape)
    shape[dim] = missing
    return torch.cat([rows, rows.new_zeros(shape)], dim=dim)


def lanewise(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """Apply an elementwise function, each value repeated over all lanes of a vector.

    Args:
        function: From a tensor to one of the same shape.
        values: [...], any shape.

    Returns:
        [...], the shape of `values`.
    """
    return function(values.unsqueeze(-1).expand(*values.shape, LANES).contiguous())[..., 0]


def columnwise(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """Apply an elementwise function, columns filled up so that a tile of rows is whole vectors.

    Args:
        function: From a tensor to one of the same shape.
        values: [..., B, n], B a multiple of `ROW_TILE`.

    Returns:
        [..., B, n].
    """
    columns = values.shape[-1]
    missing = -columns % (LANES // ROW_TILE)
    if missing:
        fill = values[..., :1].expand(*values.shape[:-1], missing)
        return function(torch.cat([values, fill], dim=-1))[..., :columns]
    return function(values.contiguous())


class PaddedActivation(nn.Module):
    """An activation over rows filled up with zeros to whole vectors."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, rows: Tensor) -> Tensor:
        """Return the activation of rows [..., n]; the same shape."""
        width = rows.shape[-1]
        padded: Tensor = self.activation(functional.pad(rows, (0, -width % LANES)))
        return padded[..., :width]
