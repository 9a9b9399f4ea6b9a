"""The one device that a traced run trains on, as accelerate hands it out."""

from __future__ import annotations

from typing import Any

import torch

from kohya_ext.tracing.fake_world import DEVICE

HALF = "fp16"


def on_one_device() -> None:
    """Let every Accelerator name the traced device, and take fp16, which it refuses without a GPU.

    bf16 is in its place: equal in size, and torch has it on a CPU.
    """
    import accelerate

    initialise = accelerate.Accelerator.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        if str(kwargs.get("mixed_precision")) == HALF:
            kwargs["mixed_precision"] = "bf16"
        initialise(self, *args, **kwargs)
        self.state._shared_state["device"] = torch.device(DEVICE)
        self.state.device = torch.device(DEVICE)

    accelerate.Accelerator.__init__ = init
