"""The one device that a traced run trains on, as accelerate hands it out."""

from __future__ import annotations

from typing import Any

import torch

HALF = "fp16"


def on_one_device(device: str) -> None:
    """Let every Accelerator name the traced device, and take fp16, which it refuses without a GPU.

    Args:
        device: where it trains.

    bf16 is in its place: equal in size, and torch has it on a CPU. A scaler of losses is there as with fp16, but scales
    nothing: scripts change it where `--full_fp16` is given.
    """
    import accelerate

    initialise = accelerate.Accelerator.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        half = str(kwargs.get("mixed_precision")) == HALF
        if half:
            kwargs["mixed_precision"] = "bf16"
        initialise(self, *args, **kwargs)
        if half:
            self.scaler = (torch.amp if hasattr(torch.amp, "GradScaler") else torch.cuda.amp).GradScaler(enabled=False)
        for shared in (self.state._shared_state, getattr(accelerate.PartialState, "_shared_state", {})):
            shared["device"] = torch.device(device)  # each new state is made of the partial one's

    accelerate.Accelerator.__init__ = init
