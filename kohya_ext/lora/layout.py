"""Which family a model is of, where it keeps the weights that a LoRA can change, and what sd-scripts calls them.

A LoRA of SDXL names modules of the U-Net as the original (LDM) code does, one of SD 1 and 2 as diffusers does, whatever
the file they were read from; so every key is brought to that one name, and a single file and a diffusers folder meet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from kohya_ext.core.errors import UnsupportedError, UsageError
from kohya_ext.tensors import adapters, families

KNOWN = "SD 1, SD 2, SDXL and FLUX.1"
_SD2_CONTEXT = 1024  # width of the text features that cross-attention reads; 768 in SD 1
_START = r"(?:^|^model\.diffusion_model\.|^diffusion_model\.)"
_UNETS = tuple(
    f"{prefix}{block}"
    for prefix in ("model.diffusion_model.", "diffusion_model.", "")
    for block in ("input_blocks.", "middle_block.", "output_blocks.", "down_blocks.")
)
_FLUX_SIGNS = re.compile(_START + r"double_blocks\.\d+\.(?:img_attn\.qkv|img_mod\.lin)\.weight$")
_HF_FLUX_SIGNS = re.compile(r"^single_transformer_blocks\.\d+\.(?:attn\.to_q|proj_mlp)\.weight$")


class Architecture(Enum):
    """The families we know, and their `ss_base_model_version` in sd-scripts."""

    SD1 = "sd_v1"
    SD2 = "sd_v2"
    SDXL = "sdxl_base_v1-0"
    FLUX = "flux1"


@dataclass(frozen=True)
class Target:
    """A weight that a LoRA can change.

    group: unet, te (SD), te1, te2 (SDXL). path: the module's dotted name as sd-scripts has it. part: which third of a
    fused query-key-value matrix; None for a whole one. inner: lies outside of the attention blocks (residual blocks,
    samplers), where sd-scripts goes only when 3x3 convolutions are wanted. piece: the other way round, the place among
    the tensors that stacked make the module's weight; pieces: how many these are.
    """

    group: str
    path: str
    part: int | None = None
    inner: bool = False
    piece: int = 0
    pieces: int = 1

    @property
    def name(self) -> str:
        """The module's name in the keys of a LoRA."""
        return f"lora_{self.group}_{self.path}".replace(".", "_")


_ATTENTION = r"(?:proj_in|proj_out|transformer_blocks\.\d+\.(?:attn[12]\.to_(?:q|k|v|out\.0)|ff\.net\.(?:0\.proj|2)))"
_BLOCK = re.compile(r"(input_blocks|output_blocks)\.(\d+)\.(\d)\.(.+)")
_MIDDLE = re.compile(r"middle_block\.([012])\.(.+)")
_HF_BLOCK = re.compile(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.+)")
_HF_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.([01])\.(.+)")
_T5 = re.compile(r"(encoder\.block\.\d+\.layer\.(?:0\.SelfAttention\.[qkvo]|1\.DenseReluDense\.w(?:i_[01]|o)))\.weight")
_HF_TEXT = re.compile(r"(?:text_model\.)?(encoder\.layers\.\d+\.(?:self_attn\.(?:q|k|v|out)_proj|mlp\.fc[12]))\.weight")
_OPEN_CLIP = re.compile(
    r"transformer\.resblocks\.(\d+)\.(?:(attn\.in_proj_weight)|(attn\.out_proj|mlp\.c_fc|mlp\.c_proj)\.weight)"
)
_RESIDUAL = {
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_RESIDUAL_LDM = {hf: ldm for ldm, hf in _RESIDUAL.items()}
_OPEN_CLIP_NAMES = {"attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
_HF_FLUX = re.compile(r"(single_)?transformer_blocks\.(\d+)\.(.+)")
# diffusers' name of a FLUX module: ours, and its place among those that are one matrix there
_HF_FLUX_DOUBLE = {
    "norm1.linear": ("img_mod.lin", 0, 1), "norm1_context.linear": ("txt_mod.lin", 0, 1),
    "attn.to_q": ("img_attn.qkv", 0, 3), "attn.to_k": ("img_attn.qkv", 1, 3), "attn.to_v": ("img_attn.qkv", 2, 3),
    "attn.add_q_proj": ("txt_attn.qkv", 0, 3), "attn.add_k_proj": ("txt_attn.qkv", 1, 3),
    "attn.add_v_proj": ("txt_attn.qkv", 2, 3), "attn.to_out.0": ("img_attn.proj", 0, 1),
    "attn.to_add_out": ("txt_attn.proj", 0, 1), "ff.net.0.proj": ("img_mlp.0", 0, 1), "ff.net.2": ("img_mlp.2", 0, 1),
    "ff_context.net.0.proj": ("txt_mlp.0", 0, 1), "ff_context.net.2": ("txt_mlp.2", 0, 1),
}  # fmt: skip
_HF_FLUX_SINGLE = {
    "norm.linear": ("modulation.lin", 0, 1), "attn.to_q": ("linear1", 0, 4), "attn.to_k": ("linear1", 1, 4),
    "attn.to_v": ("linear1", 2, 4), "proj_mlp": ("linear1", 3, 4), "proj_out": ("linear2", 0, 1),
}  # fmt: skip
_LAYERS = 2  # residual blocks a stage in every U-Net of the family; its up path has one more
_SD2_TEXT_LAYERS = 23  # the last of 24 is not used, and sd-scripts does not load it
_WEIGHT = ".weight"
_BARE_UNET = ("input_blocks.", "middle_block.", "output_blocks.")
_BARE_HF_UNET = ("down_blocks.", "mid_block.", "up_blocks.")


def targets(key: str, architecture: Architecture, component: str = "") -> list[Target]:
    """What the tensor `key` holds: none, one, or three targets.

    component: folder of a diffusers model (unet, text_encoder, text_encoder_2); empty for single files.
    """
    if architecture is Architecture.FLUX:
        encoders = {"text_encoder": lambda key: _text(key, "te1"), "text_encoder_2": _t5}
        return encoders.get(component, _flux)(key)
    if component:
        return _folder_targets(key, architecture, component)
    rules: list[tuple[str, Callable[[str], list[Target]]]] = [
        ("model.diffusion_model.", lambda rest: _unet(rest, architecture)),
        ("diffusion_model.", lambda rest: _unet(rest, architecture)),
    ]
    if architecture is Architecture.SDXL:
        rules.append(("conditioner.embedders.0.transformer.", lambda rest: _text(rest, "te1")))
        rules.append(("conditioner.embedders.1.model.", lambda rest: _open_clip(rest, "te2")))
    else:
        rules.append(("cond_stage_model.transformer.", lambda rest: _text(rest, "te")))
        rules.append(("cond_stage_model.model.", lambda rest: _open_clip(rest, "te", _SD2_TEXT_LAYERS)))
    for prefix, rule in rules:
        if key.startswith(prefix):
            return rule(key[len(prefix) :])
    if key.startswith(_BARE_UNET):  # a U-Net alone
        return _unet(key, architecture)
    return _hf_unet(key, architecture) if key.startswith(_BARE_HF_UNET) else []


def _folder_targets(key: str, architecture: Architecture, component: str) -> list[Target]:
    if component == "unet":
        return _hf_unet(key, architecture)
    groups = {"text_encoder": "te", "text_encoder_2": "te2"}
    if architecture is Architecture.SDXL:
        groups["text_encoder"] = "te1"
    return _text(key, groups[component])


def _flux(key: str) -> list[Target]:
    key = key.removeprefix("model.").removeprefix("diffusion_model.")
    if not key.endswith(_WEIGHT) or "norm_" in key or ".norm." in key.removesuffix("norm.linear.weight"):
        return []
    path = key.removesuffix(_WEIGHT)
    if key.startswith(("double_blocks.", "single_blocks.")):
        return [Target("unet", path)]
    if not (match := _HF_FLUX.fullmatch(path)):
        return []
    names = _HF_FLUX_SINGLE if match[1] else _HF_FLUX_DOUBLE
    if match[3] not in names:
        return []
    place, piece, pieces = names[match[3]]
    return [
        Target("unet", f"{'single' if match[1] else 'double'}_blocks.{match[2]}.{place}", piece=piece, pieces=pieces)
    ]


def _text(key: str, group: str) -> list[Target]:
    match = _HF_TEXT.fullmatch(key)
    return [Target(group, f"text_model.{match[1]}")] if match else []


def _t5(key: str) -> list[Target]:
    match = _T5.fullmatch(key)
    return [Target("te3", match[1])] if match else []


def _open_clip(key: str, group: str, layers: int | None = None) -> list[Target]:
    match = _OPEN_CLIP.fullmatch(key)
    if not match or (layers is not None and int(match[1]) >= layers):
        return []
    layer = f"text_model.encoder.layers.{match[1]}"
    if match[2]:
        return [Target(group, f"{layer}.self_attn.{name}_proj", part) for part, name in enumerate("qkv")]
    return [Target(group, f"{layer}.{_OPEN_CLIP_NAMES[match[3]]}")]


def _unet(key: str, architecture: Architecture) -> list[Target]:
    """A key of the original U-Net."""
    if not key.endswith(_WEIGHT):
        return []
    path = key.removesuffix(_WEIGHT)
    found = _ldm_module(path)
    if found is None:
        return []
    hf_path, inner = found
    return [Target("unet", path if architecture is Architecture.SDXL else hf_path, inner=inner)]


def _ldm_module(path: str) -> tuple[str, bool] | None:
    """(diffusers' name, outside of attention) of a module that LoRA knows."""
    if match := _MIDDLE.fullmatch(path):
        place, rest = int(match[1]), match[2]
        if place == 1:
            return (f"mid_block.attentions.0.{rest}", False) if re.fullmatch(_ATTENTION, rest) else None
        return (f"mid_block.resnets.{place // 2}.{_RESIDUAL[rest]}", True) if rest in _RESIDUAL else None
    match = _BLOCK.fullmatch(path)
    if not match:
        return None
    number, slot, rest = int(match[2]), match[3], match[4]
    down = match[1] == "input_blocks"
    if down and number == 0:
        return None
    block, layer = divmod(number - 1 if down else number, _LAYERS + 1)
    stage = f"{'down' if down else 'up'}_blocks.{block}"
    if down and rest == "op":
        return f"{stage}.downsamplers.0.conv", True
    if not down and rest == "conv":
        return f"{stage}.upsamplers.0.conv", True
    if slot == "0" and rest in _RESIDUAL:
        return f"{stage}.resnets.{layer}.{_RESIDUAL[rest]}", True
    if slot == "1" and re.fullmatch(_ATTENTION, rest):
        return f"{stage}.attentions.{layer}.{rest}", False
    return None


def _hf_unet(key: str, architecture: Architecture) -> list[Target]:
    """A key of diffusers' U-Net."""
    if not key.endswith(_WEIGHT):
        return []
    path = key.removesuffix(_WEIGHT)
    ldm = _hf_module(path)
    if ldm is None:
        return []
    found = _ldm_module(ldm)
    if found is None:
        return []
    return [Target("unet", ldm if architecture is Architecture.SDXL else path, inner=found[1])]


def _hf_module(path: str) -> str | None:
    """The original name of a module of diffusers' U-Net."""
    if match := _HF_MIDDLE.fullmatch(path):
        kind, number, rest = match[1], int(match[2]), match[3]
        if kind == "attentions":
            return f"middle_block.1.{rest}"
        return f"middle_block.{2 * number}.{_RESIDUAL_LDM[rest]}" if rest in _RESIDUAL_LDM else None
    match = _HF_BLOCK.fullmatch(path)
    if not match:
        return None
    down, block, kind, layer, rest = match[1] == "down", int(match[2]), match[3], int(match[4]), match[5]
    width = _LAYERS + 1
    if kind == "downsamplers":
        return f"input_blocks.{width * (block + 1)}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{width * block + _LAYERS}.2.conv"
    place = f"input_blocks.{width * block + layer + 1}" if down else f"output_blocks.{width * block + layer}"
    if kind == "attentions":
        return f"{place}.1.{rest}"
    return f"{place}.0.{_RESIDUAL_LDM[rest]}" if rest in _RESIDUAL_LDM else None


def architecture_of_file(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Architecture:
    """The family of a file. Raises UsageError for adapters, UnsupportedError for families that are not known."""
    kinds = adapters.kinds(shapes)
    if kinds:
        kind = next(iter(kinds))
        if kind == adapters.LORA:
            raise UsageError(f"{path} is a LoRA, not a model; to make it smaller: kohya-ext lora resize")
        raise UsageError(f"{path} is an adapter ({kind}: {kinds[kind]}), not a model")
    flux = any(map(_FLUX_SIGNS.search, shapes)) or any(map(_HF_FLUX_SIGNS.search, shapes))
    for name, key in families.named(shapes):
        if flux and name in (families.TRANSFORMER, families.CASCADE, families.PIXART):
            continue
        raise UnsupportedError(f"{path} is a {name} model ({key}): LoRAs can be extracted from {KNOWN}")
    if flux:
        return Architecture.FLUX
    if _any(shapes, *_UNETS):
        return architecture_of_unet(path, shapes)
    raise UnsupportedError(f"{path} is not a model of {KNOWN} (its first tensor is {next(iter(shapes))})")


def architecture_of_unet(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Architecture:
    """SD 1, SD 2 or SDXL, by a U-Net in either naming. Raises UnsupportedError for that of SDXL's refiner."""
    if families.is_refiner(shapes):
        raise UnsupportedError(f"{path} is the SDXL refiner (by its U-Net): LoRAs can be extracted from {KNOWN}")
    if _any(shapes, "conditioner.embedders.1.model.", "add_embedding.") or any("label_emb." in key for key in shapes):
        return Architecture.SDXL
    widths = {shape[1] for key, shape in shapes.items() if key.endswith("attn2.to_k.weight") and len(shape) > 1}
    second = _any(shapes, "cond_stage_model.model.") or widths == {_SD2_CONTEXT}
    return Architecture.SD2 if second else Architecture.SD1


def _any(keys: Iterable[str], *prefixes: str) -> bool:
    return any(key.startswith(prefixes) for key in keys)
