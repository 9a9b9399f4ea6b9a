"""Small models with the key names of the real ones, and what a fine-tune does to them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

WIDTH, CONTEXT, TEXT = 32, 48, 24


def attention(prefix: str, width: int, *, conv: bool = False) -> dict[str, tuple[int, ...]]:
    """Shapes of one transformer block and its projections."""
    projection = (width, width, 1, 1) if conv else (width, width)
    block = f"{prefix}.transformer_blocks.0"
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}.norm.weight": (width,),
        f"{prefix}.proj_in.weight": projection,
        f"{prefix}.proj_out.weight": projection,
        f"{block}.ff.net.0.proj.weight": (8 * width, width),
        f"{block}.ff.net.2.weight": (width, 4 * width),
        f"{block}.ff.net.2.bias": (width,),
    }
    for name, context in (("attn1", width), ("attn2", CONTEXT)):
        shapes[f"{block}.{name}.to_q.weight"] = (width, width)
        shapes[f"{block}.{name}.to_k.weight"] = (width, context)
        shapes[f"{block}.{name}.to_v.weight"] = (width, context)
        shapes[f"{block}.{name}.to_out.0.weight"] = (width, width)
    return shapes


def residual_ldm(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.in_layers.0.weight": (width,),
        f"{prefix}.in_layers.2.weight": (width, width, 3, 3),
        f"{prefix}.emb_layers.1.weight": (width, 4 * width),
        f"{prefix}.out_layers.3.weight": (width, width, 3, 3),
        f"{prefix}.skip_connection.weight": (width, width, 1, 1),
    }


def residual_hf(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.norm1.weight": (width,),
        f"{prefix}.conv1.weight": (width, width, 3, 3),
        f"{prefix}.time_emb_proj.weight": (width, 4 * width),
        f"{prefix}.conv2.weight": (width, width, 3, 3),
        f"{prefix}.conv_shortcut.weight": (width, width, 1, 1),
    }


def clip(prefix: str, width: int, layers: int = 1) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}text_model.embeddings.token_embedding.weight": (99, width)}
    for layer in range(layers):
        name = f"{prefix}text_model.encoder.layers.{layer}"
        shapes |= {f"{name}.self_attn.{part}_proj.weight": (width, width) for part in ("q", "k", "v", "out")}
        shapes |= {f"{name}.mlp.fc1.weight": (4 * width, width), f"{name}.mlp.fc2.weight": (width, 4 * width)}
    return shapes


def open_clip(prefix: str, width: int, layers: int = 1) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}text_projection": (width, width)}
    for layer in range(layers):
        name = f"{prefix}transformer.resblocks.{layer}"
        shapes |= {
            f"{name}.attn.in_proj_weight": (3 * width, width),
            f"{name}.attn.in_proj_bias": (3 * width,),
            f"{name}.attn.out_proj.weight": (width, width),
            f"{name}.mlp.c_fc.weight": (4 * width, width),
            f"{name}.mlp.c_proj.weight": (width, 4 * width),
        }
    return shapes


def sdxl() -> dict[str, tuple[int, ...]]:
    unet = "model.diffusion_model."
    return {
        f"{unet}input_blocks.0.0.weight": (WIDTH, 4, 3, 3),
        f"{unet}label_emb.0.0.weight": (WIDTH, WIDTH),
        **residual_ldm(f"{unet}input_blocks.4.0", WIDTH),
        **attention(f"{unet}input_blocks.4.1", WIDTH),
        f"{unet}input_blocks.3.0.op.weight": (WIDTH, WIDTH, 3, 3),
        **attention(f"{unet}middle_block.1", WIDTH),
        **residual_ldm(f"{unet}middle_block.2", WIDTH),
        f"{unet}output_blocks.2.2.conv.weight": (WIDTH, WIDTH, 3, 3),
        **attention(f"{unet}output_blocks.5.1", WIDTH),
        **clip("conditioner.embedders.0.transformer.", TEXT, 2),
        **open_clip("conditioner.embedders.1.model.", TEXT, 2),
        "first_stage_model.decoder.mid.attn_1.q.weight": (8, 8, 1, 1),
    }


def sdxl_folder() -> dict[str, dict[str, tuple[int, ...]]]:
    """The modules of `sdxl()`, as diffusers names them."""
    return {
        "unet": {
            "conv_in.weight": (WIDTH, 4, 3, 3),
            "add_embedding.linear_1.weight": (WIDTH, WIDTH),
            **residual_hf("down_blocks.1.resnets.0", WIDTH),
            **attention("down_blocks.1.attentions.0", WIDTH),
            "down_blocks.0.downsamplers.0.conv.weight": (WIDTH, WIDTH, 3, 3),
            **attention("mid_block.attentions.0", WIDTH),
            **residual_hf("mid_block.resnets.1", WIDTH),
            "up_blocks.0.upsamplers.0.conv.weight": (WIDTH, WIDTH, 3, 3),
            **attention("up_blocks.1.attentions.2", WIDTH),
        },
        "text_encoder": clip("", TEXT, 2),
        "text_encoder_2": clip("", TEXT, 2),
    }


def sd1() -> dict[str, tuple[int, ...]]:
    unet = "model.diffusion_model."
    return {
        **residual_ldm(f"{unet}input_blocks.1.0", WIDTH),
        **attention(f"{unet}input_blocks.1.1", WIDTH, conv=True),
        f"{unet}input_blocks.3.0.op.weight": (WIDTH, WIDTH, 3, 3),
        f"{unet}output_blocks.2.1.conv.weight": (WIDTH, WIDTH, 3, 3),
        **attention(f"{unet}output_blocks.3.1", WIDTH, conv=True),
        **clip("cond_stage_model.transformer.", TEXT),
    }


def flux() -> dict[str, tuple[int, ...]]:
    return {
        "img_in.weight": (WIDTH, 8),
        "double_blocks.0.img_attn.qkv.weight": (3 * WIDTH, WIDTH),
        "double_blocks.0.img_attn.qkv.bias": (3 * WIDTH,),
        "double_blocks.0.img_attn.norm.key_norm.scale": (WIDTH,),
        "double_blocks.0.img_mod.lin.weight": (6 * WIDTH, WIDTH),
        "single_blocks.3.linear1.weight": (7 * WIDTH, WIDTH),
    }


def random_weights(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=generator) * 0.1 for key, shape in shapes.items()}


def changed(
    weights: Mapping[str, Tensor], skip: tuple[str, ...] = (), *, seed: int = 1, size: float = 0.01
) -> dict[str, Tensor]:
    """A change of falling singular values and a noise floor to every matrix whose key does not start with `skip`."""
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for key, value in weights.items():
        result[key] = value.clone()
        if value.ndim < 2 or key.startswith(skip or ("nothing",)):
            continue
        matrix = value.flatten(1)
        left = torch.randn(matrix.shape[0], 8, generator=generator) / torch.arange(1, 9)
        change = left @ torch.randn(8, matrix.shape[1], generator=generator)
        change += 0.05 * torch.randn(matrix.shape, generator=generator)
        result[key] = value + size * change.view(value.shape)
    return result


def save(weights: Mapping[str, Tensor], path: Path, dtype: torch.dtype = torch.float32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.to(dtype).contiguous() for key, value in weights.items()}, str(path))
    return path


def save_folder(parts: Mapping[str, Mapping[str, Tensor]], root: Path) -> Path:
    for component, weights in parts.items():
        stem = "diffusion_pytorch_model" if component == "unet" else "model"
        save(weights, root / component / f"{stem}.safetensors")
    return root


def product(lora: Mapping[str, Tensor], name: str) -> Tensor:
    """What a module of a LoRA adds to the weight, as a float64 matrix, alpha included."""
    up = lora[f"{name}.lora_up.weight"].double().flatten(1)
    down = lora[f"{name}.lora_down.weight"].double().flatten(1)
    return up @ down * (float(lora[f"{name}.alpha"]) / down.shape[0])


def names(lora: Mapping[str, Tensor]) -> set[str]:
    return {key.split(".")[0] for key in lora}


def read(path: Path) -> dict[str, Tensor]:
    return load_file(str(path))


def truncated(matrix: Tensor, rank: int) -> Tensor:
    """The optimal approximation, by the full SVD in float64."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    return u[:, :rank] * s[:rank] @ v[:rank]
