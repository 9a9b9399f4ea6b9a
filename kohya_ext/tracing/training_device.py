"""The one device that a traced run trains on, as accelerate hands it out, and its fp16."""

from __future__ import annotations

from typing import Any

import torch

from kohya_ext.tracing import files_of_models

HALF = "fp16"


def on_one_device(device: str) -> None:
    """Let every Accelerator name the traced device, and take fp16, which it refuses without a GPU.

    Args:
        device: where it trains.

    bf16 is in the place of fp16: equal in size, and a CPU's autocast has it. A scaler of losses is there as with fp16,
    but scales nothing: scripts change it where `--full_fp16` is given.
    """
    import accelerate

    initialise = accelerate.Accelerator.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        half = str(kwargs.get("mixed_precision")) == HALF
        if half:
            kwargs["mixed_precision"] = "bf16"
            _bfloat16_for_float16()
        initialise(self, *args, **kwargs)
        if half:
            self.scaler = (torch.amp if hasattr(torch.amp, "GradScaler") else torch.cuda.amp).GradScaler(enabled=False)
        for shared in (self.state._shared_state, getattr(accelerate.PartialState, "_shared_state", {})):
            shared["device"] = torch.device(device)  # each new state is made of the partial one's

    accelerate.Accelerator.__init__ = init


def _bfloat16_for_float16() -> None:
    """Every name of float16 means bfloat16 from here on: autocast would copy real float16 weights in each forward pass.

    Scripts make their Accelerator before they choose the dtype of anything.
    """
    for name in ("float16", "half"):
        setattr(torch, name, torch.bfloat16)
    torch.Tensor.half = torch.Tensor.bfloat16
    files_of_models.DTYPES["F16"] = torch.bfloat16
