"""A tiny SDXL pipeline of diffusers, built offline."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def tiny_pipeline(seed: int) -> Any:
    """Three stages as SDXL has them, so that block numbers mean the same; a few hundred thousand weights."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8, layers_per_block=2, block_out_channels=(32, 32, 64), attention_head_dim=(2, 2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, transformer_layers_per_block=(1, 1, 2),
        projection_class_embeddings_input_dim=6 * 8 + 32, cross_attention_dim=64,
    )  # fmt: skip
    text = CLIPTextConfig(
        vocab_size=100, hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        projection_dim=32, bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=AutoencoderKL(block_out_channels=(32,), norm_num_groups=8),
        text_encoder=CLIPTextModel(text), text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=None, tokenizer_2=None, unet=unet, scheduler=EulerDiscreteScheduler(),
    )  # fmt: skip


@torch.no_grad()
def run_unet(pipeline: Any) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    sample = torch.randn(1, 4, 8, 8, generator=generator)
    context = torch.randn(1, 5, 64, generator=generator)
    added = {"text_embeds": torch.randn(1, 32, generator=generator), "time_ids": torch.zeros(1, 6)}
    result: Tensor = pipeline.unet(sample, 10, context, added_cond_kwargs=added).sample
    return result
