"""Which family of models a file belongs to, by the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from kohya_ext.core.errors import UnsupportedError, UsageError
from kohya_ext.lora.layout import Architecture
from kohya_ext.tensors import adapters

KNOWN = "SD 1, SD 2, SDXL and FLUX.1"
_SD2_CONTEXT = 1024  # width of the text features that cross-attention reads; 768 in SD 1
_START = r"(?:^|^model\.diffusion_model\.|^diffusion_model\.)"
# families that share names with those we know, or that users try; the first that fits
_OTHERS = tuple(
    (name, re.compile(_START + sign))
    for name, sign in (
        ("SDXL refiner", r"conditioner\.embedders\.0\.model\."),
        ("Chroma", r"distilled_guidance_layer\."),
        ("FLUX.2", r"(?:double|single)_stream_modulation"),
        ("HunyuanVideo", r"double_blocks\.\d+\.(?:img|txt)_attn_(?:qkv|proj)\."),
        ("HunyuanVideo", r"txt_in\.individual_token_refiner\."),
        ("HunyuanImage", r"(?:byt5_in\.|double_blocks\.\d+\.img_attn_[qkv]\.)"),
        ("SD 3", r"joint_blocks\.\d"),
        ("Lumina or Z-Image", r"(?:cap_embedder|noise_refiner)\."),
        ("Qwen-Image", r"transformer_blocks\.\d+\.img_mlp\."),
        ("Wan", r"blocks\.\d+\.cross_attn\."),
        ("SD 3 or another transformer", r"transformer_blocks\.\d+\.(?:attn2|attn\.add_q_proj|norm1_context)"),
        ("PixArt", r"(?:t_block|blocks\.\d+\.scale_shift_table)"),
        ("Stable Cascade", r"(?:clip_txt_mapper|down_blocks\.0\.0\.)"),
    )
)
_UNETS = tuple(
    f"{prefix}{block}"
    for prefix in ("model.diffusion_model.", "diffusion_model.", "")
    for block in ("input_blocks.", "middle_block.", "output_blocks.", "down_blocks.")
)
_FLUX_SIGNS = re.compile(_START + r"double_blocks\.\d+\.(?:img_attn\.qkv|img_mod\.lin)\.weight$")
_HF_FLUX_SIGNS = re.compile(r"^single_transformer_blocks\.\d+\.(?:attn\.to_q|proj_mlp)\.weight$")


def single_file(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Architecture:
    """The family of a file. Raises UsageError for adapters, UnsupportedError for families that are not known."""
    kinds = adapters.kinds(shapes)
    if kinds:
        kind = next(iter(kinds))
        if kind == adapters.LORA:
            raise UsageError(f"{path} is a LoRA, not a model; to make it smaller: kohya-ext lora resize")
        raise UsageError(f"{path} is an adapter ({kind}: {kinds[kind]}), not a model")
    flux = any(map(_FLUX_SIGNS.search, shapes)) or any(map(_HF_FLUX_SIGNS.search, shapes))
    for name, sign in _OTHERS:
        if flux and name.startswith(("SD 3 or", "Stable", "PixArt")):
            continue
        if key := next(filter(sign.search, shapes), None):
            raise UnsupportedError(f"{path} is a {name} model ({key}): LoRAs can be extracted of {KNOWN}")
    if flux:
        return Architecture.FLUX
    if _any(shapes, *_UNETS):
        return unet(shapes)
    raise UnsupportedError(f"{path} is not a model of {KNOWN} (its first tensor is {next(iter(shapes))})")


def unet(shapes: Mapping[str, tuple[int, ...]]) -> Architecture:
    """SD 1, SD 2 or SDXL, by a U-Net in either naming."""
    if _any(shapes, "conditioner.embedders.1.model.", "add_embedding.") or any("label_emb." in key for key in shapes):
        return Architecture.SDXL
    widths = {shape[1] for key, shape in shapes.items() if key.endswith("attn2.to_k.weight") and len(shape) > 1}
    second = _any(shapes, "cond_stage_model.model.") or widths == {_SD2_CONTEXT}
    return Architecture.SD2 if second else Architecture.SD1


def _any(keys: Iterable[str], *prefixes: str) -> bool:
    return any(key.startswith(prefixes) for key in keys)
