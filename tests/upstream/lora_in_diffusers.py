"""Run with some version of diffusers and PEFT: what its pipelines make of LoRA files.

    python lora_in_diffusers.py JOBS.json RESULTS.pt

A job is [family, file]; a result {"unloaded": keys or messages, "deltas": {module: what is added to its weight}}.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors import safe_open
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

TEXT = CLIPTextConfig(
    vocab_size=100, hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4, projection_dim=32,
    bos_token_id=0, eos_token_id=2, pad_token_id=1,
)  # fmt: skip


def pipeline(family: str) -> Any:
    if family == "flux":
        transformer = FluxTransformer2DModel(
            patch_size=1, in_channels=8, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        )  # fmt: skip
        return FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(), vae=AutoencoderKL(block_out_channels=(32,), norm_num_groups=8),
            text_encoder=CLIPTextModel(TEXT), tokenizer=None, text_encoder_2=None, tokenizer_2=None,
            transformer=transformer,
        )  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(32,), norm_num_groups=8)
    common: dict[str, Any] = {"sample_size": 8, "layers_per_block": 2, "cross_attention_dim": 64}
    if family == "sd1":
        unet = UNet2DConditionModel(
            block_out_channels=(32, 64), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), attention_head_dim=2,
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **{**common, "cross_attention_dim": 32},
        )  # fmt: skip
        return StableDiffusionPipeline(
            vae=vae, text_encoder=CLIPTextModel(TEXT), tokenizer=None, unet=unet, scheduler=EulerDiscreteScheduler(),
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
    unet = UNet2DConditionModel(
        block_out_channels=(32, 32, 64), attention_head_dim=(2, 2, 4), use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), addition_embed_type="text_time",
        addition_time_embed_dim=8, transformer_layers_per_block=(1, 1, 2),
        projection_class_embeddings_input_dim=6 * 8 + 32, **common,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=vae, text_encoder=CLIPTextModel(TEXT), text_encoder_2=CLIPTextModelWithProjection(TEXT), tokenizer=None,
        tokenizer_2=None, unet=unet, scheduler=EulerDiscreteScheduler(),
    )  # fmt: skip


SIGNS: dict[str, tuple[str, ...]] = {
    "unet": ("unet.", "lora_unet_"), "text_encoder": ("text_encoder.", "lora_te_", "lora_te1_"),
    "text_encoder_2": ("text_encoder_2.", "lora_te2_"), "transformer": ("transformer.", "lora_unet_"),
}  # fmt: skip


class Warned(logging.Handler):
    """What the loader says of keys; absent: networks that the file has nothing for."""

    def __init__(self, absent: set[str]) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []
        self.absent = absent

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if "safe to ignore" in text and any(f"'{part}'" in text for part in self.absent):
            return
        if any(word in text.lower() for word in ("unexpected", "not used", "unused", "missing", "no lora keys")):
            self.said.append(text[:500])


@torch.no_grad()
def deltas(pipe: Any) -> dict[str, torch.Tensor]:
    found = {}
    for part in ("unet", "transformer", "text_encoder", "text_encoder_2"):
        for name, module in (getattr(pipe, part, None) or torch.nn.Module()).named_modules():
            factors = getattr(module, "lora_A", None)
            if not factors:
                continue
            (adapter,) = factors.keys()
            up, down = module.lora_B[adapter].weight.double(), module.lora_A[adapter].weight.double()
            found[f"{part}.{name}"] = up.flatten(1) @ down.flatten(1) * module.scaling[adapter]
    return found


def main() -> None:
    with open(sys.argv[1]) as file:  # noqa: PTH123
        jobs = json.load(file)
    results = []
    for family, path in jobs:
        pipe = pipeline(family)
        with safe_open(path, "pt") as file:
            keys = list(file.keys())
        present = {name for name, signs in SIGNS.items() if any(key.startswith(signs) for key in keys)}
        warned = Warned(SIGNS.keys() - present)
        for name in ("diffusers", "peft", "transformers"):
            logging.getLogger(name).addHandler(warned)
        try:
            folder, _, name = path.rpartition("/")
            pipe.load_lora_weights(folder, weight_name=name)
        except Exception as error:
            warned.said.append(f"{type(error).__name__}: {error}"[:500])
        for name in ("diffusers", "peft", "transformers"):
            logging.getLogger(name).removeHandler(warned)
        results.append({"unloaded": warned.said, "deltas": deltas(pipe)})
    torch.save(results, sys.argv[2])


main()
