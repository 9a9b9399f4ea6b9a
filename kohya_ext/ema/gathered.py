"""Many small tensors as one: their number, not their size, costs time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def blend_gathered(
    shadows: Sequence[Tensor], weights: Sequence[Tensor], lerp: Callable[[Tensor, Tensor], None]
) -> None:
    """Call `lerp(shadow, weights)` once, on flat copies of all of these, and bring the results back into `shadows`.

    All flat, on one device; the shadows of one dtype, in which `lerp` gets the weights too.
    """
    gathered = torch.cat(list(shadows))
    lerp(gathered, torch.cat(list(weights)).to(gathered.dtype))
    parts = list(gathered.split([shadow.numel() for shadow in shadows]))
    if hasattr(torch, "_foreach_copy_"):
        torch._foreach_copy_(list(shadows), parts)
        return
    for shadow, part in zip(shadows, parts, strict=True):
        shadow.copy_(part)
