"""Which families of models a file can belong to, by the names and shapes of its tensors. Needs no torch.

Families share names, so the answer is a set: a LoRA of `double_blocks` may be one of FLUX.1 or of HunyuanVideo.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from kohya_ext.core.errors import UsageError
from kohya_ext.tensors.header import read_header

SD1, SD2, SDXL, REFINER, FLUX = "SD 1", "SD 2", "SDXL", "SDXL refiner", "FLUX.1"
CHROMA, FLUX2, SD3, WAN, QWEN = "Chroma", "FLUX.2", "SD 3", "Wan", "Qwen-Image"
HUNYUAN_VIDEO, HUNYUAN_IMAGE, LUMINA = "HunyuanVideo", "HunyuanImage", "Lumina or Z-Image"
ANIMA, TRANSFORMER, PIXART = "Anima or Cosmos", "SD 3 or another transformer", "PixArt"
CASCADE, OTHER = "Stable Cascade", "another transformer"

_START = r"(?:^|^model\.diffusion_model\.|^diffusion_model\.)"
# whole models that share names with those that we know, or that users try; the first that fits
SIGNS = tuple(
    (name, re.compile(_START + sign))
    for name, sign in (
        (REFINER, r"conditioner\.embedders\.0\.model\."),
        (CHROMA, r"distilled_guidance_layer\."),
        (FLUX2, r"(?:double|single)_stream_modulation"),
        (HUNYUAN_VIDEO, r"double_blocks\.\d+\.(?:img|txt)_attn_(?:qkv|proj)\."),
        (HUNYUAN_VIDEO, r"txt_in\.individual_token_refiner\."),
        (HUNYUAN_IMAGE, r"(?:byt5_in\.|double_blocks\.\d+\.img_attn_[qkv]\.)"),
        (SD3, r"joint_blocks\.\d"),
        (LUMINA, r"(?:cap_embedder|noise_refiner)\."),
        (QWEN, r"transformer_blocks\.\d+\.img_mlp\."),
        (ANIMA, r"(?:net\.)?blocks\.\d+\.cross_attn\.[qkv]_proj\."),
        (WAN, r"blocks\.\d+\.cross_attn\."),
        (TRANSFORMER, r"transformer_blocks\.\d+\.(?:attn2|attn\.add_q_proj|norm1_context)"),
        (PIXART, r"(?:t_block|blocks\.\d+\.scale_shift_table)"),
        (CASCADE, r"(?:clip_txt_mapper|down_blocks\.0\.0\.)"),
    )
)
_UNETS = frozenset((SD1, SD2, SDXL, REFINER, CASCADE))
_DOUBLE = frozenset((FLUX, FLUX2, CHROMA, HUNYUAN_VIDEO, HUNYUAN_IMAGE))
_WIDE = frozenset((FLUX, FLUX2, CHROMA, SD3, QWEN, PIXART, HUNYUAN_VIDEO, HUNYUAN_IMAGE, TRANSFORMER, OTHER))
# what keys begin with before the name of a module; adapters write its dots as underscores, or not
_PREFIX = re.compile(
    r"(?:base_model\.model\.|model\.diffusion_model\.|diffusion_model\.|lora_unet_|lora_transformer_|lycoris_|unet\."
    r"|transformer\.|net\.)*"
)
_PLACES = tuple(
    (frozenset(names), re.compile(sign))
    for names, sign in (
        (_UNETS, r"(?:(?:input|output|down|up)_blocks[._]\d|(?:middle_block|mid_block)[._])"),
        (_DOUBLE, r"(?:double|single)_blocks[._]\d"),
        ((SD3,), r"joint_blocks[._]\d"),
        ((QWEN,), r"transformer_blocks[._]\d+[._]img_mlp[._]"),
        ((FLUX, FLUX2, CHROMA, HUNYUAN_VIDEO, OTHER), r"single_transformer_blocks[._]\d"),
        (_WIDE, r"transformer_blocks[._]\d"),
        ((ANIMA,), r"blocks[._]\d+[._]cross_attn[._][qkv]_proj\b"),
        ((WAN,), r"blocks[._]\d+[._]cross_attn[._][qkvo](?:_img)?\."),
        ((WAN, ANIMA, PIXART, OTHER), r"blocks[._]\d"),
        ((LUMINA, OTHER), r"(?:layers[._]\d|noise_refiner[._]|context_refiner[._])"),
    )
)
# width of the text that the attention of a U-Net reads
_CONTEXTS = {768: SD1, 1024: SD2, 2048: SDXL, 1280: REFINER}
_READS_TEXT = re.compile(
    r"attn2[._](?:processor[._])?to_[kv](?:\.weight$|[._].*(?:\bdown|_down|lora_A|hada_w[12]_b)\b)"
)


def possible(shapes: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
    """The families that a file can belong to.

    Args:
        shapes: name -> shape of each tensor, of a model or of an adapter of any spelling.

    Returns:
        Some of the names above; empty where nothing tells, or where names contradict each other.
    """
    exact = {name for name, _ in named(shapes)}
    if exact:
        return frozenset(exact) if len(exact) == 1 else frozenset()
    sets = set()
    for key in shapes:
        rest = key[_PREFIX.match(key).end() :]  # type: ignore[union-attr]  # it matches nothing as well
        found = next((names for names, sign in _PLACES if sign.match(rest)), None)
        if found:
            sets.add(found)
    together = frozenset.intersection(*sets) if sets else frozenset()
    width = _context(shapes) if together & _UNETS else None
    return together & {width} if width else together


def named(keys: Iterable[str]) -> Iterable[tuple[str, str]]:
    """(family, the key that shows it) for each sign of a whole model of a family, in the order of SIGNS."""
    names = list(keys)
    for name, sign in SIGNS:
        if key := next(filter(sign.search, names), None):
            yield name, key


def is_refiner(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the U-Net in `shapes`, in whatever naming, is that of SDXL's refiner."""
    return possible(shapes) == {REFINER}


def refuse_refiner(path: Path) -> None:
    """Raise UsageError where `path`, a file or a folder of diffusers, is SDXL's refiner; whatever it is called.

    What cannot be read is not judged here: whoever loads it says what is wrong.
    """
    unet = path / "unet" if (path / "unet").is_dir() else path
    files = sorted(unet.glob("*.safetensors")) if path.is_dir() else [path]
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with contextlib.suppress(UsageError):
            shapes |= {key: entry.shape for key, entry in read_header(file).entries.items()}
    if is_refiner(shapes):
        raise UsageError(
            f"{path} is SDXL's refiner (by its U-Net), which lacks the first text encoder: choose SDXL's base model, "
            "or a model made of it"
        )


def _context(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    widths = {shape[1] for key, shape in shapes.items() if len(shape) > 1 and _READS_TEXT.search(key)}
    return _CONTEXTS.get(widths.pop()) if len(widths) == 1 else None
