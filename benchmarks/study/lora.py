"""A LoRA of the small diffusion model: two factors for each linear layer and convolution, everything else frozen."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Adapted(nn.Module):
    """A frozen layer and, added to what it returns, up(down(x)). As in Kohya, `up` starts at zero."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, rank: int) -> None:
        super().__init__()
        self.layer = layer
        if isinstance(layer, nn.Conv2d):
            side = layer.kernel_size[0]
            down: nn.Conv2d | nn.Linear = nn.Conv2d(layer.in_channels, rank, side, padding=side // 2, bias=False)
            up: nn.Conv2d | nn.Linear = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        else:
            down = nn.Linear(layer.in_features, rank, bias=False)
            up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
        nn.init.zeros_(up.weight)
        self.down, self.up = down, up

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x) + self.up(self.down(x))
        return result


def adapt(model: nn.Module, rank: int, seed: int) -> None:
    """Freeze a model and put factors of this rank next to its layers, in place."""
    torch.manual_seed(seed)
    model.requires_grad_(False)
    found = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for name in found:
        parent, _, own = name.rpartition(".")
        holder = model.get_submodule(parent)
        setattr(holder, own, Adapted(getattr(holder, own), rank))
