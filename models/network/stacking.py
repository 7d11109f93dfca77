"""Models side by side: their layers' products become one batched product."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.network.world_model import WorldModel

_MIN_COLUMNS = 16


class _StackedLinear(nn.Module):
    """E linear layers as one batched product: [E, B, in] -> [E, B, out].

    Outputs narrower than a vector are computed with zero columns beside them: matrix kernels treat
    the rows of narrow products unlike, and a row's bits would depend on its place.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        weight = torch.stack([x.weight.detach().T for x in layers])
        bias = torch.stack([x.bias.detach() for x in layers]).unsqueeze(1)
        self.width = weight.shape[-1]
        missing = max(0, _MIN_COLUMNS - self.width)
        self.register_buffer("weight", functional.pad(weight, (0, missing)))
        self.register_buffer("bias", functional.pad(bias, (0, missing)))

    weight: Tensor
    bias: Tensor

    def forward(self, rows: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, rows, self.weight)[..., : self.width]


def stack(members: Sequence[WorldModel]) -> WorldModel:
    """Return a model whose layers and normalisers hold all members' along a leading dim."""
    stacked = copy.deepcopy(members[0])
    for name, module in list(stacked.named_modules()):
        if isinstance(module, nn.Linear):
            layers = [member.get_submodule(name) for member in members]
            parent, _, child = name.rpartition(".")
            setattr(
                stacked.get_submodule(parent),
                child,
                _StackedLinear([layer for layer in layers if isinstance(layer, nn.Linear)]),
            )
    for name in stacked.state_dict():
        if "." not in name:  # the model's own buffers, [S] or [1] each -> [E, 1, S] or [E, 1, 1]
            values = torch.stack([member.get_buffer(name) for member in members])
            setattr(stacked, name, values.unsqueeze(1))
    return stacked
