"""Runs a training script with something about its surroundings changed: `rig_launch.py WHAT SCRIPT FLAGS...`.

frozen_alone: models without gradients are not wrapped for several processes. accelerate does so on GPUs; on CPUs it
fails, and a LoRA run prepares its frozen U-Net.
small_control_nets: ControlNets of the size of the rig's models; upstream writes their widths out.
overflows: a gradient scaler as under fp16, which accelerate keeps on a GPU only. Here it is torch's own, for the CPU,
handed to every accelerator; at OVERFLOWS the scaled loss is infinite, as it is when fp16 overflows.
"""

from __future__ import annotations

import itertools
import runpy
import sys
from typing import Any

OVERFLOWS = (1, 3, 4, 7)


def overflows() -> None:
    import accelerate
    import torch

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scale = scaler.scale
    losses = itertools.count(1)

    def scale_or_overflow(loss: Any) -> Any:
        return scale(loss) * (float("inf") if next(losses) in OVERFLOWS else 1.0)

    scaler.scale = scale_or_overflow
    init = accelerate.Accelerator.__init__

    def init_with_scaler(self: Any, *args: Any, **named: Any) -> None:
        init(self, *args, **named)
        self.scaler = scaler

    accelerate.Accelerator.__init__ = init_with_scaler


def frozen_alone() -> None:
    import accelerate

    prepare_model = accelerate.Accelerator.prepare_model

    def prepare_if_trained(self: Any, model: Any, *args: Any, **named: Any) -> Any:
        trained = any(parameter.requires_grad for parameter in model.parameters())
        return prepare_model(self, model, *args, **named) if trained else model.to(self.device)

    accelerate.Accelerator.prepare_model = prepare_if_trained


def small_control_nets() -> None:
    import diffusers
    from torch import nn

    widths, context = (32, 64, 128, 128), 32

    def from_unet(unet: Any) -> Any:
        return diffusers.ControlNetModel(block_out_channels=widths, cross_attention_dim=context)

    diffusers.ControlNetModel.from_unet = from_unet
    try:
        import library.sdxl_original_control_net as sdxl
    except ImportError:  # not before sd-scripts 0.9
        return
    init = sdxl.SdxlControlNet.__init__

    def init_small(self: Any, *args: Any, **named: Any) -> None:
        init(self, *args, **named)
        embedding = self.controlnet_cond_embedding
        embedding.conv_out = nn.Conv2d(embedding.conv_out.in_channels, 32, kernel_size=3, padding=1)
        for number, block in enumerate(self.controlnet_down_blocks):
            self.controlnet_down_blocks[number] = nn.Conv2d(block.in_channels // 10, block.in_channels // 10, 1)
        self.controlnet_mid_block = nn.Conv2d(128, 128, 1)

    sdxl.SdxlControlNet.__init__ = init_small


WHATS = {what.__name__: what for what in (overflows, frozen_alone, small_control_nets)}

if __name__ == "__main__":
    what, script = sys.argv[1:3]
    sys.argv = sys.argv[2:]
    sys.path[0] = ""
    WHATS[what]()
    runpy.run_path(script, run_name="__main__")
