"""Where a shadow lives: with the weights, or in host memory, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# `auto` keeps the shadow on the training device only where this share of its memory stays free.
FREE_SHARE = 0.2


@dataclass(frozen=True)
class Placement:
    """device: None means next to each parameter. reason: one phrase for the log."""

    device: torch.device | None
    reason: str


def place(weights: Sequence[Tensor], dtype: torch.dtype, wanted: torch.device | str | None) -> Placement:
    """Decide where the shadow of `weights` goes. wanted: `auto`, a device, or None for next to each parameter."""
    if wanted is None:
        return Placement(None, "next to the weights")
    if wanted != "auto":
        return Placement(torch.device(wanted), f"on {wanted}, as asked for")
    gpus = {weight.device for weight in weights if weight.device.type == "cuda"}
    if not gpus:
        return Placement(None, "next to the weights, which are not on a GPU")
    for gpu in gpus:
        free, total = torch.cuda.mem_get_info(gpu)
        elements = sum(weight.numel() for weight in weights if weight.device == gpu)
        left = (free - elements * torch.empty((), dtype=dtype).element_size()) / total
        if left < FREE_SHARE:
            return Placement(
                torch.device("cpu"),
                f"in host memory: on {gpu} it would leave {max(left, 0):.0%} of the memory free, "
                f"less than {FREE_SHARE:.0%}",
            )
    return Placement(None, f"on the training device: at least {FREE_SHARE:.0%} of its memory stays free")
