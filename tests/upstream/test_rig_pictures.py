"""Single files and LoRAs drawn for the grid: the rig's tiny SDXL, its fine-tune, and the LoRA extracted from both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("peft", reason="diffusers loads LoRA through peft")
from PIL import ImageChops, ImageStat

from kohya_ext.evaluation.diffusers_renderer import DiffusersRenderer, RenderSettings
from kohya_ext.evaluation.models import columns
from kohya_ext.evaluation.promptfile import Prompt
from kohya_ext.lora import extract
from kohya_ext.lora.layout import Architecture, targets
from tests.lora import models
from tests.upstream import rig

pytestmark = pytest.mark.upstream

PROMPT = Prompt("a woman in a garden", 128, 128, steps=4, cfg=5.0, seed=3)
RANK = 1152  # of the largest matrix: the LoRA holds the whole change


def configuration(folder: Path) -> Path:
    """A diffusers folder with the sizes of the rig's tiny SDXL; its weights are not used."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    def text(width: int, layers: int, activation: str) -> Any:
        return CLIPTextConfig(
            hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=2,
            projection_dim=width, hidden_act=activation, vocab_size=49408, bos_token_id=0, eos_token_id=2,
            pad_token_id=1,
        )  # fmt: skip

    unet = UNet2DConditionModel(
        sample_size=16, layers_per_block=2, block_out_channels=(32, 64, 128), attention_head_dim=(1, 1, 2),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=256, transformer_layers_per_block=(1, 1, 1),
        projection_class_embeddings_input_dim=64 + 6 * 256, cross_attention_dim=96,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(32,) * 4, layers_per_block=1, norm_num_groups=32,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    words = rig.work() / "assets" / "tokenizers"
    StableDiffusionXLPipeline(
        vae=vae, unet=unet, scheduler=EulerDiscreteScheduler(), text_encoder=CLIPTextModel(text(32, 12, "quick_gelu")),
        text_encoder_2=CLIPTextModelWithProjection(text(64, 3, "gelu")),
        tokenizer=CLIPTokenizer.from_pretrained(str(words / "openai_clip-vit-large-patch14")),
        tokenizer_2=CLIPTokenizer.from_pretrained(str(words / "laion_CLIP-ViT-bigG-14-laion2B-39B-b160k")),
    ).save_pretrained(str(folder))  # fmt: skip
    return folder


def difference(one: Any, other: Any) -> float:
    """Mean over pixels, of 255."""
    return sum(ImageStat.Stat(ImageChops.difference(one, other)).mean) / 3


def test_the_base_with_its_lora_draws_what_the_fine_tune_draws(tmp_path: Path) -> None:
    rig.require_rig("sd-scripts-main")
    weights = models.read(rig.work() / "assets" / "tiny_sdxl.safetensors")
    changed = models.changed(weights, size=0.05)
    learnt = {key: value.ndim > 1 and bool(targets(key, Architecture.SDXL)) for key, value in weights.items()}
    base = models.save(weights, tmp_path / "base.safetensors")
    tuned = models.save(
        {key: (changed if learnt[key] else weights)[key] for key in weights}, tmp_path / "t.safetensors"
    )
    lora = tmp_path / "lora.safetensors"
    settings = extract.ExtractSettings(ranks=(RANK,), conv_ranks=(RANK,))
    extract.run(extract.plan(base, tuned, settings), lora, settings)

    before, after, adapter = columns([base, tuned, lora])
    renderer = DiffusersRenderer(RenderSettings(base=before, config=configuration(tmp_path / "config"), device="cpu"))
    drawn = []
    for column in (before, after, adapter):
        renderer.load(column)
        drawn.append(renderer.draw(PROMPT))
    assert difference(drawn[0], drawn[1]) > 10
    assert difference(drawn[2], drawn[1]) < 0.5, "float16 factors, a level of 255 at most"
    renderer.load(before)
    assert difference(renderer.draw(PROMPT), drawn[0]) < 0.01, "and the LoRA comes off again"
