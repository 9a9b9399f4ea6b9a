"""The tensors of a full SDXL checkpoint, by name and shape, and two files of that size: a base and its fine-tune."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]

CHANNELS, DEPTHS = (320, 640, 1280), (0, 2, 10)  # of the three stages of the U-Net
TIME, CONTEXT, LABEL = 1280, 2048, 2816
TOKENS, PLACES = 49408, 77
VAE_WEIGHTS = 83_653_863
RANK, DECAY, FLOOR = 512, 0.7, 0.03  # of a fine-tune's difference


def tensors() -> Shapes:
    """Every tensor of the U-Net and both text encoders; the VAE, which no LoRA touches, as one of its size."""
    shapes: Shapes = {f"model.diffusion_model.{key}": shape for key, shape in _unet().items()}
    shapes |= {f"conditioner.embedders.0.transformer.text_model.{key}": shape for key, shape in _clip().items()}
    shapes |= {f"conditioner.embedders.1.model.{key}": shape for key, shape in _open_clip().items()}
    return {**shapes, "first_stage_model.decoder.conv_in.weight": (VAE_WEIGHTS,)}


def difference(
    shape: tuple[int, ...], generator: torch.Generator, decay: float = DECAY, floor: float = FLOOR
) -> Tensor:
    """(m, n): 512 singular values falling like j^-decay over Gaussian noise, by default about a third of the norm."""
    rows, columns = shape[0], math.prod(shape[1:])
    inner = min(RANK, rows, columns)
    left = torch.randn(rows, inner, generator=generator) / rows**0.5
    right = torch.randn(inner, columns, generator=generator) / columns**0.5
    values = torch.arange(1, inner + 1) ** -decay
    return (left * values) @ right + floor * torch.randn(rows, columns, generator=generator) / rows**0.5


def write_pair(base: Path, tuned: Path, size: float = 0.3) -> None:
    """Both files in float16, tensor by tensor. size: norm of the first direction of each matrix' difference."""
    shapes = tensors()
    with base.open("wb") as first, tuned.open("wb") as second:
        for file in (first, second):
            file.write(_header(shapes))
        generator = torch.Generator().manual_seed(0)
        for shape in shapes.values():
            before = 0.02 * torch.randn(shape, generator=generator)
            after = before
            if len(shape) > 1:
                after = before + size * difference(shape, generator).view(shape)
            for file, tensor in ((first, before), (second, after)):
                file.write(tensor.half().contiguous().view(-1).view(torch.uint8).numpy().data)


def _header(shapes: Shapes) -> bytes:
    table, end = {}, 0
    for key, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        table[key] = {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _unet() -> Shapes:
    shapes: Shapes = {
        **_linear("time_embed.0", TIME, CHANNELS[0]), **_linear("time_embed.2", TIME, TIME),
        **_linear("label_emb.0.0", TIME, LABEL), **_linear("label_emb.0.2", TIME, TIME),
        **_conv("input_blocks.0.0", CHANNELS[0], 4),
    }  # fmt: skip
    number, wide, skips = 1, CHANNELS[0], [CHANNELS[0]]
    for stage, (channels, depth) in enumerate(zip(CHANNELS, DEPTHS, strict=True)):
        for _ in range(2):
            shapes |= _residual(f"input_blocks.{number}.0", wide, channels)
            shapes |= _attention(f"input_blocks.{number}.1", channels, depth)
            number, wide = number + 1, channels
            skips.append(wide)
        if stage < len(CHANNELS) - 1:
            shapes |= _conv(f"input_blocks.{number}.0.op", wide, wide)
            number += 1
            skips.append(wide)
    shapes |= _residual("middle_block.0", wide, wide)
    shapes |= _attention("middle_block.1", wide, DEPTHS[-1])
    shapes |= _residual("middle_block.2", wide, wide)
    number = 0
    for stage in reversed(range(len(CHANNELS))):
        for layer in range(3):
            place = f"output_blocks.{number}"
            shapes |= _residual(f"{place}.0", wide + skips.pop(), CHANNELS[stage])
            wide = CHANNELS[stage]
            shapes |= _attention(f"{place}.1", wide, DEPTHS[stage])
            if stage and layer == 2:
                shapes |= _conv(f"{place}.2.conv", wide, wide)
            number += 1
    return {**shapes, **_norm("out.0", wide), **_conv("out.2", 4, wide)}


def _residual(name: str, before: int, after: int) -> Shapes:
    shapes: Shapes = {
        **_norm(f"{name}.in_layers.0", before), **_conv(f"{name}.in_layers.2", after, before),
        **_linear(f"{name}.emb_layers.1", after, TIME),
        **_norm(f"{name}.out_layers.0", after), **_conv(f"{name}.out_layers.3", after, after),
    }  # fmt: skip
    return shapes if before == after else {**shapes, **_conv(f"{name}.skip_connection", after, before, 1)}


def _attention(name: str, width: int, depth: int) -> Shapes:
    if not depth:
        return {}
    shapes: Shapes = {**_norm(f"{name}.norm", width), **_linear(f"{name}.proj_in", width, width)}
    for layer in range(depth):
        block = f"{name}.transformer_blocks.{layer}"
        for attention, context in (("attn1", width), ("attn2", CONTEXT)):
            shapes[f"{block}.{attention}.to_q.weight"] = (width, width)
            shapes[f"{block}.{attention}.to_k.weight"] = (width, context)
            shapes[f"{block}.{attention}.to_v.weight"] = (width, context)
            shapes |= _linear(f"{block}.{attention}.to_out.0", width, width)
        shapes |= _linear(f"{block}.ff.net.0.proj", 8 * width, width) | _linear(f"{block}.ff.net.2", width, 4 * width)
        for number in (1, 2, 3):
            shapes |= _norm(f"{block}.norm{number}", width)
    return shapes | _linear(f"{name}.proj_out", width, width)


def _clip(width: int = 768, layers: int = 12) -> Shapes:
    shapes: Shapes = {
        "embeddings.token_embedding.weight": (TOKENS, width),
        "embeddings.position_embedding.weight": (PLACES, width),
    }
    for layer in range(layers):
        name = f"encoder.layers.{layer}"
        for part in ("q", "k", "v", "out"):
            shapes |= _linear(f"{name}.self_attn.{part}_proj", width, width)
        shapes |= _linear(f"{name}.mlp.fc1", 4 * width, width) | _linear(f"{name}.mlp.fc2", width, 4 * width)
        shapes |= _norm(f"{name}.layer_norm1", width) | _norm(f"{name}.layer_norm2", width)
    return shapes | _norm("final_layer_norm", width)


def _open_clip(width: int = 1280, layers: int = 32) -> Shapes:
    shapes: Shapes = {
        "token_embedding.weight": (TOKENS, width), "positional_embedding": (PLACES, width),
        "text_projection": (width, width), "logit_scale": (),
    }  # fmt: skip
    for layer in range(layers):
        name = f"transformer.resblocks.{layer}"
        shapes |= {f"{name}.attn.in_proj_weight": (3 * width, width), f"{name}.attn.in_proj_bias": (3 * width,)}
        shapes |= _linear(f"{name}.attn.out_proj", width, width)
        shapes |= _linear(f"{name}.mlp.c_fc", 4 * width, width) | _linear(f"{name}.mlp.c_proj", width, 4 * width)
        shapes |= _norm(f"{name}.ln_1", width) | _norm(f"{name}.ln_2", width)
    return shapes | _norm("ln_final", width)


def _linear(name: str, out: int, inner: int) -> Shapes:
    return {f"{name}.weight": (out, inner), f"{name}.bias": (out,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _conv(name: str, out: int, inner: int, kernel: int = 3) -> Shapes:
    return {f"{name}.weight": (out, inner, kernel, kernel), f"{name}.bias": (out,)}
