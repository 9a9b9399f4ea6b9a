"""bfloat16 weights and their float32 shadow in the memory of the two, with the EMA's values in the weights.

A float32 is a bfloat16 with 16 more bits. While the EMA stands in the weights (its upper bits, rounded), its shadow
holds the raw weights in the upper half of each element and the EMA's own lower bits in the lower half. Rounding is
half away from zero, not to even: that can be told from the lower bits alone, so the EMA comes back bit for bit too.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LOW = 0xFFFF
_HALF = 0x8000

Pair = tuple[Tensor, Tensor]


def fits(weights: Tensor, shadow: Tensor) -> bool:
    """True for the one combination of dtypes that this is about."""
    return weights.dtype == torch.bfloat16 and shadow.dtype == torch.float32


def put_in(weights: Tensor, shadow: Tensor) -> Pair:
    """(the EMA as bfloat16, a float32 tensor that holds the rest) from (raw weights, a finite average)."""
    average, raw = shadow.view(torch.int32), weights.view(torch.int16).to(torch.int32)
    rounded = ((average + _HALF) >> 16).to(torch.int16).view(torch.bfloat16)
    return rounded, ((raw << 16) | (average & _LOW)).view(torch.float32)


def take_out(weights: Tensor, shadow: Tensor) -> Pair:
    """(raw weights, average) from what `put_in` returned."""
    held = shadow.view(torch.int32)
    low = held & _LOW
    upper = weights.view(torch.int16).to(torch.int32) - (low >= _HALF).to(torch.int32)
    return (held >> 16).to(torch.int16).view(torch.bfloat16), ((upper << 16) | low).view(torch.float32)
