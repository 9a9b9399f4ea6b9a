"""LoRA files as their makers write them: a list of formats, each with the answer that a resize must give.

The modules are few and small, their names are real ones: tiny pipelines of diffusers, sd-scripts and ComfyUI load them.
The scale of each module is stated here and not read by our own code, so that the check is an independent one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

RANK = 8
Shape = tuple[str, int, int, int]
"""Name, height, width, kernel."""


@dataclass(frozen=True)
class Part:
    """The keys of one module and its true scale."""

    up: str
    down: str
    alpha: str | None
    scale: float
    mid: str | None = None


@dataclass
class LoraSpec:
    """A file to be. loaders: which real loaders read it. refused: a pattern of the message, "" where it is resized."""

    name: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    config: dict[str, object] | None = None
    loaders: tuple[str, ...] = ()
    refused: str = ""

    def save(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / ("adapter_model.safetensors" if self.config else f"{self.name}.safetensors")
        tensors = {key: value.contiguous() for key, value in self.tensors.items()}
        save_file(tensors, str(path), self.metadata or None)
        if self.config:
            (folder / "adapter_config.json").write_text(json.dumps(self.config))
        return path

    def product(self, part: Part, tensors: Mapping[str, Tensor], scale: float | None = None) -> Tensor:
        """What the module adds to the weight, in float64; `scale` where the tensors do not tell it."""
        up, down = tensors[part.up].double().flatten(1), tensors[part.down].double()
        if part.mid and part.mid in tensors:
            down = torch.einsum("rs...,si->ri...", tensors[part.mid].double(), down.flatten(1))
        alpha = part.alpha or f"{part.down.split('.lora_down')[0]}.alpha"  # one may have been added
        told = float(tensors[alpha]) / up.shape[1] if alpha in tensors else scale
        return up @ down.flatten(1) * (1.0 if told is None else told)


def factors(shape: Shape, seed: int, rank: int = RANK) -> tuple[Tensor, Tensor]:
    """Up and down, with singular values that fall as steeply as the seed says."""
    _, height, width, kernel = shape
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(height, rank, generator=generator) / torch.arange(1, rank + 1) ** (0.4 + seed % 4)
    down = torch.randn(rank, width, *((kernel, kernel) if kernel > 1 or kernel == -1 else ()), generator=generator)
    return 0.3 * up.view(height, rank, *((1, 1) if kernel > 1 else ())), 0.3 * down


Spelling = tuple[str, str, str]
"""Suffixes of up, down and alpha; "" for no alpha."""
KOHYA: Spelling = (".lora_up.weight", ".lora_down.weight", ".alpha")
KOHYA_SILENT: Spelling = (*KOHYA[:2], "")
PEFT: Spelling = (".lora_B.weight", ".lora_A.weight", "")
PEFT_ALPHA: Spelling = (*PEFT[:2], ".alpha")
PEFT_NAMED: Spelling = (".lora_B.default.weight", ".lora_A.default.weight", "")
MOCHI: Spelling = (".lora_B", ".lora_A", "")
DOT: Spelling = (".lora.up.weight", ".lora.down.weight", "")
DOT_ALPHA: Spelling = (*DOT[:2], ".alpha")
PROCESSOR: Spelling = ("_lora.up.weight", "_lora.down.weight", "")
LINEAR_LAYER: Spelling = (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight", "")
BARE: Spelling = (".up", ".down", "")
BARE_WEIGHT: Spelling = (".up.weight", ".down.weight", "")


def spec(
    name: str,
    shapes: Sequence[Shape],
    spelling: Spelling,
    *,
    alpha: float | None = 4.0,
    dtype: torch.dtype = torch.float32,
    loaders: tuple[str, ...] = (),
    rank: int = RANK,
) -> LoraSpec:
    made = LoraSpec(name, loaders=loaders)
    add(made, shapes, spelling, alpha=alpha, dtype=dtype, rank=rank)
    return made


def add(
    made: LoraSpec,
    shapes: Sequence[Shape],
    spelling: Spelling,
    *,
    alpha: float | None = 4.0,
    dtype: torch.dtype = torch.float32,
    rank: int = RANK,
    scale: float = 1.0,
) -> None:
    """More modules. scale: the true one where the spelling has no alpha."""
    for shape in shapes:
        up, down = factors(shape, len(made.parts), rank)
        part = Part(shape[0] + spelling[0], shape[0] + spelling[1], None, scale)
        if spelling[2] and alpha is not None:
            part = Part(part.up, part.down, shape[0] + spelling[2], alpha / rank)
            made.tensors[shape[0] + spelling[2]] = torch.tensor(alpha)
        made.tensors[part.up], made.tensors[part.down] = up.to(dtype), down.to(dtype)
        made.parts.append(part)


def _attention(prefix: str, width: int, context: int) -> list[Shape]:
    return [
        (f"{prefix}attn1.to_q", width, width, 1), (f"{prefix}attn1.to_k", width, width, 1),
        (f"{prefix}attn1.to_v", width, width, 1), (f"{prefix}attn1.to_out.0", width, width, 1),
        (f"{prefix}attn2.to_q", width, width, 1), (f"{prefix}attn2.to_k", width, context, 1),
        (f"{prefix}attn2.to_v", width, context, 1), (f"{prefix}ff.net.0.proj", 8 * width, width, 1),
        (f"{prefix}ff.net.2", width, 4 * width, 1),
    ]  # fmt: skip


def _flat(shapes: Sequence[Shape], prefix: str) -> list[Shape]:
    return [(prefix + name.replace(".", "_"), *rest) for name, *rest in shapes]  # type: ignore[misc]


def _dotted(shapes: Sequence[Shape], prefix: str) -> list[Shape]:
    return [(prefix + name, *rest) for name, *rest in shapes]  # type: ignore[misc]


def _processors(shapes: Sequence[Shape]) -> list[Shape]:
    """diffusers before PEFT: the factors belong to the attention's processor."""
    found = []
    for name, *rest in shapes:
        if ".to_" in name:
            head, _, tail = name.rpartition(".to_")
            found.append((f"{head}.processor.to_{tail.removesuffix('.0')}", *rest))
    return found  # type: ignore[return-value]


TEXT = "text_model.encoder.layers.0."
TE: list[Shape] = [
    (f"{TEXT}self_attn.q_proj", 32, 32, 1), (f"{TEXT}self_attn.out_proj", 32, 32, 1), (f"{TEXT}mlp.fc1", 37, 32, 1),
    (f"{TEXT}mlp.fc2", 32, 37, 1),
]  # fmt: skip
SDXL_HF_UNET = _attention("down_blocks.1.attentions.0.transformer_blocks.0.", 32, 64) + _attention(
    "mid_block.attentions.0.transformer_blocks.0.", 64, 64
)
SDXL_LDM_UNET = [
    (
        name.replace("down_blocks.1.attentions.0", "input_blocks.4.1").replace(
            "mid_block.attentions.0", "middle_block.1"
        ),
        *rest,
    )
    for name, *rest in SDXL_HF_UNET
]
SDXL_CONV: list[Shape] = [("input_blocks.4.0.in_layers.2", 32, 32, 3), ("input_blocks.3.0.op", 32, 32, 3)]
SDXL_KOHYA = [*_flat(SDXL_LDM_UNET, "lora_unet_"), *_flat(TE, "lora_te1_"), *_flat(TE, "lora_te2_")]  # type: ignore[arg-type]
SDXL_KOHYA_HF = [*_flat(SDXL_HF_UNET, "lora_unet_"), *_flat(TE, "lora_te1_"), *_flat(TE, "lora_te2_")]
SDXL_HF = [
    *_dotted(SDXL_HF_UNET, "unet."), *_dotted(TE, "text_encoder."), *_dotted(TE, "text_encoder_2."),
]  # fmt: skip
SD1_UNET = _attention("down_blocks.0.attentions.0.transformer_blocks.0.", 32, 32)
SD1_KOHYA = [*_flat(SD1_UNET, "lora_unet_"), *_flat(TE, "lora_te_")]
SD1_HF = [*_dotted(SD1_UNET, "unet."), *_dotted(TE, "text_encoder.")]

FLUX_BFL: list[Shape] = [
    ("double_blocks.0.img_attn.qkv", 96, 32, 1), ("double_blocks.0.img_attn.proj", 32, 32, 1),
    ("double_blocks.0.img_mlp.0", 128, 32, 1), ("double_blocks.0.img_mlp.2", 32, 128, 1),
    ("double_blocks.0.img_mod.lin", 192, 32, 1), ("double_blocks.0.txt_attn.qkv", 96, 32, 1),
    ("double_blocks.0.txt_attn.proj", 32, 32, 1), ("double_blocks.0.txt_mlp.0", 128, 32, 1),
    ("double_blocks.0.txt_mlp.2", 32, 128, 1), ("double_blocks.0.txt_mod.lin", 192, 32, 1),
    ("single_blocks.0.linear1", 224, 32, 1), ("single_blocks.0.linear2", 32, 160, 1),
    ("single_blocks.0.modulation.lin", 96, 32, 1),
]  # fmt: skip
FLUX_HF: list[Shape] = [
    *((f"transformer_blocks.0.attn.{name}", 32, 32, 1) for name in ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj")),
    ("transformer_blocks.0.ff.net.0.proj", 128, 32, 1), ("transformer_blocks.0.ff.net.2", 32, 128, 1),
    ("single_transformer_blocks.0.attn.to_q", 32, 32, 1), ("single_transformer_blocks.0.proj_mlp", 128, 32, 1),
    ("single_transformer_blocks.0.proj_out", 32, 160, 1),
]  # fmt: skip
FLUX_XLABS: list[Shape] = [
    (f"double_blocks.0.processor.{name}", height, 32, 1)
    for name, height in (("qkv_lora1", 96), ("qkv_lora2", 96), ("proj_lora1", 32), ("proj_lora2", 32))
]
SD3_MMDIT: list[Shape] = [
    (f"joint_blocks.0.{block}.{name}", height, width, 1)
    for block in ("x_block", "context_block")
    for name, height, width in (("attn.qkv", 96, 32), ("attn.proj", 32, 32), ("mlp.fc1", 128, 32), ("mlp.fc2", 32, 128))
]
SD3_HF: list[Shape] = [
    *((f"transformer_blocks.0.attn.{name}", 32, 32, 1) for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj")),
    ("transformer_blocks.0.ff.net.0.proj", 128, 32, 1),
]  # fmt: skip
LUMINA: list[Shape] = [
    ("layers.0.attention.qkv", 64, 32, 1), ("layers.0.attention.out", 32, 32, 1),
    ("layers.0.feed_forward.w1", 96, 32, 1), ("layers.0.feed_forward.w2", 32, 96, 1),
]  # fmt: skip
WAN: list[Shape] = [
    ("blocks.0.self_attn.q", 32, 32, 1), ("blocks.0.cross_attn.k", 32, 32, 1), ("blocks.0.ffn.0", 128, 32, 1),
]  # fmt: skip
QWEN: list[Shape] = [
    ("transformer_blocks.0.attn.to_q", 32, 32, 1), ("transformer_blocks.0.img_mlp.net.0.proj", 128, 32, 1),
    ("transformer_blocks.0.attn.add_k_proj", 32, 32, 1),
]  # fmt: skip
HUNYUAN: list[Shape] = [
    ("double_blocks.0.img_attn_qkv", 96, 32, 1), ("double_blocks.0.img_mlp.fc1", 128, 32, 1),
    ("single_blocks.0.linear1", 224, 32, 1),
]  # fmt: skip
SDXL, SD1, FLUX, SD3 = "sdxl", "sd1", "flux", "sd3"
COMFY, DIFFUSERS, KOHYA_SS = "comfy:", "diffusers:", "sd-scripts:"


def _both(family: str) -> tuple[str, ...]:
    return COMFY + family, DIFFUSERS + family


def _everywhere(family: str) -> tuple[str, ...]:
    return (*_both(family), KOHYA_SS + family)


def accepted() -> list[LoraSpec]:
    """The formats that are resized."""
    half, brain = torch.float16, torch.bfloat16
    found = [
        spec("kohya_sdxl", SDXL_KOHYA, KOHYA, loaders=_everywhere(SDXL)),
        spec("kohya_sdxl_fp16", SDXL_KOHYA, KOHYA, dtype=half, loaders=_everywhere(SDXL)),
        spec("kohya_sdxl_bf16", SDXL_KOHYA, KOHYA, dtype=brain, loaders=_everywhere(SDXL)),
        spec("kohya_sdxl_alpha1", SDXL_KOHYA, KOHYA, alpha=1.0, loaders=_everywhere(SDXL)),
        spec("kohya_sdxl_alpha_rank", SDXL_KOHYA, KOHYA, alpha=8.0, loaders=_everywhere(SDXL)),
        spec("kohya_sdxl_no_alpha", SDXL_KOHYA, KOHYA_SILENT, loaders=_everywhere(SDXL)),
        spec("kohya_sdxl_negative_alpha", SDXL_KOHYA, KOHYA, alpha=-4.0, loaders=(COMFY + SDXL,)),
        spec("kohya_sdxl_hf_names", SDXL_KOHYA_HF, KOHYA, loaders=_both(SDXL)),
        spec("kohya_sdxl_unet_only", _flat(SDXL_LDM_UNET, "lora_unet_"), KOHYA, loaders=_everywhere(SDXL)),  # type: ignore[arg-type]
        spec("kohya_sdxl_te_only", _flat(TE, "lora_te1_"), KOHYA, loaders=(COMFY + SDXL, KOHYA_SS + SDXL)),
        spec("kohya_sd1", SD1_KOHYA, KOHYA, loaders=_both(SD1)),
        spec("kohya_sd1_no_alpha", SD1_KOHYA, KOHYA_SILENT, dtype=half, loaders=_both(SD1)),
        spec("kohya_flux", _flat(FLUX_BFL, "lora_unet_"), KOHYA, loaders=(COMFY + FLUX,)),
        spec("kohya_flux_bf16", _flat(FLUX_BFL, "lora_unet_"), KOHYA, dtype=brain, loaders=(COMFY + FLUX,)),
        spec("kohya_sd3", _flat(SD3_MMDIT, "lora_unet_"), KOHYA, loaders=(COMFY + SD3,)),
        spec("kohya_lumina", _flat(LUMINA, "lora_unet_"), KOHYA, loaders=(COMFY + "lumina",)),
        spec("musubi_wan", _flat(WAN, "lora_unet_"), KOHYA, loaders=(COMFY + "wan",)),
        spec("musubi_hunyuan", _flat(HUNYUAN, "lora_unet_"), KOHYA),
        spec("diffusers_sdxl_peft", SDXL_HF, PEFT, loaders=(DIFFUSERS + SDXL,)),
        spec("diffusers_sdxl_peft_fp16", SDXL_HF, PEFT, dtype=half, loaders=(DIFFUSERS + SDXL,)),
        spec("diffusers_sdxl_unet_only", _dotted(SDXL_HF_UNET, "unet."), PEFT, loaders=(DIFFUSERS + SDXL,)),
        spec("diffusers_sdxl_dot_lora", SDXL_HF, DOT),
        spec("diffusers_sdxl_dot_lora_alpha", SDXL_HF, DOT_ALPHA),
        spec("diffusers_sd1_peft", SD1_HF, PEFT, loaders=(DIFFUSERS + SD1,)),
        spec("diffusers_sd1_processor", _dotted(_processors(SD1_UNET), "unet."), PROCESSOR, loaders=_both(SD1)),
        spec("diffusers_sd1_processor_bare", _processors(SD1_UNET), PROCESSOR, loaders=(COMFY + SD1,)),
        spec("diffusers_te_linear_layer", _dotted(TE, "text_encoder."), LINEAR_LAYER, loaders=(COMFY + SDXL,)),
        spec("diffusers_flux_peft", _dotted(FLUX_HF, "transformer."), PEFT, loaders=_both(FLUX)),
        spec("ai_toolkit_flux_alpha", _dotted(FLUX_HF, "transformer."), PEFT_ALPHA, loaders=(COMFY + FLUX,)),
        spec("ai_toolkit_flux_bfl", _dotted(FLUX_BFL, "diffusion_model."), PEFT, loaders=(COMFY + FLUX,)),
        spec("comfy_flux_kohya_spelling", _dotted(FLUX_BFL, "diffusion_model."), KOHYA_SILENT, loaders=(COMFY + FLUX,)),
        spec("onetrainer_flux", _flat(FLUX_HF, "lora_transformer_"), KOHYA, loaders=(COMFY + FLUX,)),
        spec("simpletuner_flux_lycoris", _flat(FLUX_HF, "lycoris_"), KOHYA, loaders=(COMFY + FLUX,)),
        spec("xlabs_flux", FLUX_XLABS, BARE_WEIGHT),
        spec("diffusers_sd3_peft", _dotted(SD3_HF, "transformer."), PEFT, loaders=(COMFY + SD3,)),
        spec("peft_sd3_base_model", _dotted(SD3_HF, "base_model.model."), PEFT, loaders=(COMFY + SD3,)),
        spec("lumina_diffusion_model", _dotted(LUMINA, "diffusion_model."), PEFT, loaders=(COMFY + "lumina",)),
        spec("wan_diffusion_model", _dotted(WAN, "diffusion_model."), PEFT, loaders=(COMFY + "wan",)),
        spec("qwen_named_adapter", QWEN, PEFT_NAMED, loaders=(COMFY + "qwen",)),
        spec("qwen_transformer", _dotted(QWEN, "transformer."), PEFT, loaders=(COMFY + "qwen",)),
        spec("qwen_lycoris", _flat(QWEN, "lycoris_"), KOHYA, loaders=(COMFY + "qwen",)),
        spec("hunyuan_transformer", _dotted(HUNYUAN, "transformer."), PEFT),
        spec("mochi_bare_factors", _dotted(WAN, "diffusion_model."), MOCHI, loaders=(COMFY + "wan",)),
        spec("peft_base_model", _dotted(SDXL_HF_UNET, "base_model.model."), PEFT),
        spec("peft_named_adapter", _dotted(SDXL_HF_UNET, "base_model.model."), PEFT_NAMED),
        spec("control_lora", [("input_blocks.1.0.emb_layers.1", 32, 64, 1), ("time_embed.0", 64, 32, 1)], BARE),
    ]  # fmt: skip
    return found + [make() for make in _SPECIAL]


def _partial() -> LoraSpec:
    made = spec("kohya_alpha_in_some", SDXL_KOHYA[::2], KOHYA, loaders=(COMFY + SDXL, KOHYA_SS + SDXL))
    add(made, SDXL_KOHYA[1::2], KOHYA_SILENT)
    return made


def _locon() -> LoraSpec:
    made = spec("locon_conv_alpha", SDXL_KOHYA, KOHYA, loaders=_everywhere(SDXL))
    add(made, _flat(SDXL_CONV, "lora_unet_"), KOHYA, alpha=1.0, rank=6)
    return made


def _locon_low() -> LoraSpec:
    """Convolutions of a rank that a resize to 4 leaves alone."""
    made = spec("locon_low_conv", SDXL_KOHYA, KOHYA, dtype=torch.float16, loaders=_everywhere(SDXL))
    add(made, _flat(SDXL_CONV, "lora_unet_"), KOHYA, rank=2, dtype=torch.float16)
    return made


def _tucker() -> LoraSpec:
    made = spec("locon_tucker", SDXL_KOHYA, KOHYA, loaders=(COMFY + SDXL,))
    for number, (name, height, width, kernel) in enumerate(_flat(SDXL_CONV, "lora_unet_")):
        generator = torch.Generator().manual_seed(number)
        part = Part(
            f"{name}.lora_up.weight", f"{name}.lora_down.weight", f"{name}.alpha", 0.5, f"{name}.lora_mid.weight"
        )
        made.tensors[part.up] = 0.3 * torch.randn(height, RANK, 1, 1, generator=generator)
        made.tensors[part.down] = 0.3 * torch.randn(RANK, width, 1, 1, generator=generator)
        made.tensors[f"{name}.lora_mid.weight"] = 0.3 * torch.randn(RANK, RANK, kernel, kernel, generator=generator)
        made.tensors[f"{name}.alpha"] = torch.tensor(4.0)
        made.parts.append(part)
    return made


def _alpha_types() -> LoraSpec:
    made = spec("kohya_odd_alphas", SDXL_KOHYA, KOHYA, loaders=(COMFY + SDXL,))
    for number, part in enumerate(made.parts):
        kinds = (torch.tensor(4), torch.tensor([4.0]), torch.tensor(4.0, dtype=torch.float16), torch.tensor([[4.0]]))
        made.tensors[str(part.alpha)] = kinds[number % 4]
    return made


def _many_alphas() -> LoraSpec:
    made = LoraSpec("kohya_alpha_by_module", loaders=(COMFY + SDXL, KOHYA_SS + SDXL))
    for number, shape in enumerate(SDXL_KOHYA):
        add(made, [shape], KOHYA, alpha=1.0 + number % 3, rank=4 + number % 5)
    return made


def _mixed_types() -> LoraSpec:
    made = spec("kohya_two_dtypes", _flat(SDXL_LDM_UNET, "lora_unet_"), KOHYA, dtype=torch.float16)  # type: ignore[arg-type]
    add(made, _flat(TE, "lora_te1_"), KOHYA, dtype=torch.float32)
    made.loaders = _everywhere(SDXL)
    return made


def _fp8() -> LoraSpec:
    return spec("kohya_fp8", _flat(FLUX_BFL, "lora_unet_"), KOHYA, dtype=torch.float8_e4m3fn)


def _with_diffs() -> LoraSpec:
    made = spec("wan_with_diffs", _dotted(WAN, "diffusion_model."), KOHYA, loaders=(COMFY + "wan",))
    made.tensors["diffusion_model.blocks.0.self_attn.q.diff_b"] = torch.randn(32)
    made.tensors["diffusion_model.blocks.0.norm3.diff"] = torch.randn(32)
    return made


def _bfl_control() -> LoraSpec:
    made = spec("flux_bfl_control", FLUX_BFL, PEFT)
    add(made, [("img_in", 32, 8, 1)], PEFT)
    made.tensors["img_in.lora_B.bias"] = torch.randn(32)
    made.tensors["single_blocks.0.norm.key_norm.scale"] = torch.randn(16)
    made.loaders = (COMFY + FLUX,)
    return made


def _metadata(name: str, stated: Mapping[str, object], scales: Mapping[str, float], loaders: bool = True) -> LoraSpec:
    made = LoraSpec(name, metadata={"lora_adapter_metadata": json.dumps(stated), "format": "pt"})
    for prefix, shapes in (("unet.", SDXL_HF_UNET), ("text_encoder.", TE), ("text_encoder_2.", TE)):
        add(made, _dotted(shapes, prefix), PEFT, scale=scales[prefix])
    made.loaders = ("diffusers-metadata:sdxl",) if loaders else ()
    return made


def _one_network() -> LoraSpec:
    stated = {f"{part}.{key}": value for part in ("unet",) for key, value in (("r", 8), ("lora_alpha", 4))}
    return _metadata("metadata_unet", stated, {"unet.": 0.5, "text_encoder.": 1.0, "text_encoder_2.": 1.0})


def _two_networks() -> LoraSpec:
    stated = {
        "unet.r": 8, "unet.lora_alpha": 4, "unet.rank_pattern": {}, "unet.alpha_pattern": {}, "text_encoder.r": 8,
        "text_encoder.lora_alpha": 16, "format": "pt",
    }  # fmt: skip
    return _metadata("metadata_two_networks", stated, {"unet.": 0.5, "text_encoder.": 2.0, "text_encoder_2.": 1.0})


def _rs_lora() -> LoraSpec:
    stated = {"unet.r": 8, "unet.lora_alpha": 4, "unet.use_rslora": True}
    scales = {"unet.": 4 / 8**0.5, "text_encoder.": 1.0, "text_encoder_2.": 1.0}
    return _metadata("metadata_rslora", stated, scales)


def _patterns() -> LoraSpec:
    stated = {
        "transformer.r": 8, "transformer.lora_alpha": 8, "transformer.rank_pattern": {"proj_mlp": 6},
        "transformer.alpha_pattern": {"attn.to_q": 2, "proj_mlp": 3},
    }  # fmt: skip
    made = LoraSpec("metadata_patterns", metadata={"lora_adapter_metadata": json.dumps(stated)})
    for shape in _dotted(FLUX_HF, "transformer."):
        low = shape[0].endswith("proj_mlp")
        scale = 0.5 if low else 0.25 if shape[0].endswith("attn.to_q") else 1.0
        add(made, [shape], PEFT, rank=6 if low else 8, scale=scale)
    return made


def _anchored() -> LoraSpec:
    """As diffusers writes the patterns of a file that it has loaded: the outer `proj_out` is not that of the blocks."""
    stated = {
        "transformer.r": 8, "transformer.lora_alpha": 8, "transformer.rank_pattern": {"^proj_out": 6},
        "transformer.alpha_pattern": {"^proj_out": 3},
    }  # fmt: skip
    made = LoraSpec("metadata_anchored", metadata={"lora_adapter_metadata": json.dumps(stated)})
    add(made, _dotted(FLUX_HF, "transformer."), PEFT)
    add(made, [("transformer.proj_out", 64, 32, 1)], PEFT, rank=6, scale=0.5)
    return made


def _config() -> LoraSpec:
    made = LoraSpec("peft_config", config={"r": 8, "lora_alpha": 16, "peft_type": "LORA", "target_modules": ["to_q"]})
    add(made, _dotted(SDXL_HF_UNET, "base_model.model."), PEFT, scale=2.0)
    return made


def _embedding() -> LoraSpec:
    made = spec("peft_embedding", _dotted(TE, "base_model.model."), PEFT)
    add(made, [("base_model.model.token_embedding", 32, 99, 1)], (".lora_embedding_B", ".lora_embedding_A", ""))
    return made


_SPECIAL: tuple[Callable[[], LoraSpec], ...] = (
    _partial, _locon, _locon_low, _tucker, _alpha_types, _many_alphas, _mixed_types, _fp8, _with_diffs, _bfl_control,
    _one_network, _two_networks, _rs_lora, _patterns, _anchored, _config, _embedding,
)  # fmt: skip

MODULE = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"


def _kohya_with(name: str, change: Mapping[str, Tensor | None], refused: str) -> LoraSpec:
    made = spec(name, SDXL_KOHYA, KOHYA)
    for key, value in change.items():
        if value is None:
            del made.tensors[key]
        else:
            made.tensors[key] = value
    made.refused = refused
    return made


def _raw(name: str, tensors: Mapping[str, Sequence[int]], refused: str) -> LoraSpec:
    return LoraSpec(name, {key: torch.ones(tuple(shape)) for key, shape in tensors.items()}, refused=refused)


def refused() -> list[LoraSpec]:
    """The files that must be refused, by what."""
    one = "input_blocks_4_1_proj_in"
    bad = _one_network()
    bad.name, bad.refused = "metadata_of_another_rank", "gives unet.* the rank 16, its factors have 8"
    bad.metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 16, "unet.lora_alpha": 4})}
    regex = _one_network()
    regex.name, regex.refused = "metadata_regex", "regular expression"
    regex.metadata = {
        "lora_adapter_metadata": json.dumps({"unet.r": 8, "unet.lora_alpha": 4, "unet.rank_pattern": {"to_(q|k)": 4}})
    }
    return [
        bad, regex,
        _kohya_with("alpha_empty", {f"{MODULE}.alpha": torch.empty(0)}, f"{MODULE}.alpha holds 0 values"),
        _kohya_with("alpha_list", {f"{MODULE}.alpha": torch.ones(3)}, f"{MODULE}.alpha holds 3 values"),
        _kohya_with("alpha_nan", {f"{MODULE}.alpha": torch.tensor(torch.nan)}, f"{MODULE}.alpha is nan"),
        _kohya_with("alpha_inf", {f"{MODULE}.alpha": torch.tensor(torch.inf)}, f"{MODULE}.alpha is inf"),
        _kohya_with("missing_down", {f"{MODULE}.lora_down.weight": None}, f"{MODULE}.lora_up.weight is present"),
        _kohya_with("missing_up", {f"{MODULE}.lora_up.weight": None}, f"{MODULE}.lora_down.weight is present"),
        _kohya_with("split_dims", {f"{one}.lora_down.0.weight": torch.ones(2, 2)}, "unknown kind of key"),
        _kohya_with("rank_0", {f"{MODULE}.lora_down.weight": torch.ones(0, 32), f"{MODULE}.lora_up.weight":
            torch.ones(32, 0)}, f"{MODULE} has rank 0"),
        _kohya_with("no_fit", {f"{MODULE}.lora_up.weight": torch.ones(32, 3)}, "do not fit together"),
        _kohya_with("nan", {f"{MODULE}.lora_up.weight": torch.full((32, RANK), torch.nan)}, "not numbers"),
        _kohya_with("dora", {f"{MODULE}.dora_scale": torch.ones(32, 1)}, "is a DoRA"),
        _raw("dora_peft", {"unet.a.lora_A.weight": (4, 8), "unet.a.lora_B.weight": (8, 4),
             "unet.a.lora_magnitude_vector": (8,)}, "is a DoRA"),
        _raw("dora_peft_named", {"a.lora_A.default.weight": (4, 8), "a.lora_B.default.weight": (8, 4),
             "a.lora_magnitude_vector.default.weight": (8,)}, "is a DoRA"),
        _raw("loha", {f"{one}.hada_w1_a": (8, 4), f"{one}.hada_w1_b": (4, 8), f"{one}.hada_w2_a": (8, 4),
             f"{one}.hada_w2_b": (4, 8), f"{one}.alpha": ()}, "is a LoHa"),
        _raw("lokr", {f"{one}.lokr_w1": (4, 4), f"{one}.lokr_w2_a": (4, 2), f"{one}.lokr_w2_b": (2, 4)}, "is a LoKr"),
        _raw("oft", {f"{one}.oft_blocks": (4, 4, 4), f"{one}.alpha": ()}, "is an OFT"),
        _raw("oft_diag", {f"{one}.oft_diag": (4, 4, 4)}, "is an OFT"),
        _raw("boft", {f"{one}.boft_R.default": (4, 4, 4)}, "is a BOFT"),
        _raw("glora", {f"{one}.{part}.weight": (4, 4) for part in ("a1", "a2", "b1", "b2")}, "is a GLoRA"),
        _raw("ia3", {f"{one}.on_input": (), f"{one}.weight": (8,)}, "is an IA3"),
        _raw("ia3_peft", {"a.ia3_l": (8, 1)}, "is an IA3"),
        _raw("vera", {"a.vera_lambda_b": (8,), "a.vera_lambda_d": (8,)}, "is a VeRA"),
        _raw("full_diff", {f"{one}.diff": (8, 8), f"{one}.diff_b": (8,)}, "is a full difference"),
        _raw("embedding", {"emb_params": (4, 8)}, "contains no LoRA"),
        _raw("checkpoint", {"model.diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3)}, "contains no LoRA"),
    ]  # fmt: skip
