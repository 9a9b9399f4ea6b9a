"""The tensors of a published checkpoint, by name and shape: a model file of which only the header is there.

These names are those of the published checkpoints (the layout of CompVis' and Stability AI's code), as every release of
sd-scripts reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

Shapes = Iterator[tuple[str, tuple[int, ...]]]

WORDS, POSITIONS = 49408, 77  # of CLIP's text encoders
HEAD = 2  # the VAE's encoder gives mean and variance
VAE_LEVELS = (1, 2, 4, 4)
VAE_CHANNELS = 128
LATENT = 4


FLUX_WIDTH, FLUX_HEAD, FLUX_DOUBLE, FLUX_SINGLE = 3072, 128, 19, 38
FLUX_LATENT, FLUX_VECTOR, FLUX_TIME = 16, 768, 256
SD3_HEAD, SD3_LATENT, SD3_PATCH, SD3_VECTOR, SD3_TIME = 64, 16, 2, 2048, 256
T5_WIDTH, T5_INNER, T5_HEADS, T5_LAYERS, T5_WORDS, T5_DISTANCES = 4096, 10240, 64, 24, 32128, 32


@dataclass(frozen=True)
class MMDiT:
    """Stable Diffusion 3's transformer. positions: along a side. norms: of queries and keys.

    twice: so many of the first blocks attend to the image a second time.
    """

    depth: int
    positions: int
    norms: bool
    twice: int = 0

    @property
    def width(self) -> int:
        """Of a token."""
        return self.depth * SD3_HEAD


@dataclass(frozen=True)
class UNet:
    """channels: of the first level. levels: factor of each; transformers: depth of the transformer at each, 0: none.

    middle: depth of the transformer in the middle. context: width of a text token. labels: width of the size labels.
    """

    levels: tuple[int, ...]
    transformers: tuple[int, ...]
    middle: int
    context: int
    linear: bool
    labels: int = 0
    channels: int = 320


SD1 = UNet((1, 2, 4, 4), (1, 1, 1, 0), 1, 768, linear=False)
SD2 = UNet((1, 2, 4, 4), (1, 1, 1, 0), 1, 1024, linear=True)
SDXL = UNet((1, 2, 4), (0, 2, 10), 10, 2048, linear=True, labels=2816)
SD3_MEDIUM = MMDiT(24, 192, norms=False)
SD35_MEDIUM = MMDiT(24, 384, norms=True, twice=13)
SD35_LARGE = MMDiT(38, 192, norms=True)


def checkpoint(family: str) -> Mapping[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a full-size checkpoint.

    Args:
        family: "sd1", "sd2", "sdxl", "sd3-medium", "sd3.5-medium", "sd3.5-large" or "flux"; or a part of the last four
            that has a file of its own: "ae", "clip_l", "clip_g", "t5xxl".

    Raises:
        KeyError: no such family.
    """
    return dict(_CHECKPOINTS[family]())


def _sd1() -> Shapes:
    yield from _unet(SD1)
    yield from _vae()
    yield from _clip("cond_stage_model.transformer.", 768, 12)


def _sd2() -> Shapes:
    yield from _unet(SD2)
    yield from _vae()
    yield from _open_clip("cond_stage_model.model.", 1024, 24)


def _sdxl() -> Shapes:
    yield from _unet(SDXL)
    yield from _vae()
    yield from _clip("conditioner.embedders.0.transformer.", 768, 12)
    yield from _open_clip("conditioner.embedders.1.model.", 1280, 32)


def _flux() -> Shapes:
    """FLUX.1 dev, in Black Forest Labs' own layout."""
    width, tokens = FLUX_WIDTH, 4 * FLUX_LATENT
    yield from _layer("img_in", width, tokens)
    yield from _layer("txt_in", width, T5_WIDTH)
    for name, inside in (("time_in", FLUX_TIME), ("vector_in", FLUX_VECTOR), ("guidance_in", FLUX_TIME)):
        yield from _layer(f"{name}.in_layer", width, inside)
        yield from _layer(f"{name}.out_layer", width, width)
    for number in range(FLUX_DOUBLE):
        for stream in ("img", "txt"):
            block = f"double_blocks.{number}.{stream}_"
            yield from _layer(f"{block}mod.lin", 6 * width, width)
            yield from _layer(f"{block}attn.qkv", 3 * width, width)
            yield from _norms(f"{block}attn.norm")
            yield from _layer(f"{block}attn.proj", width, width)
            yield from _layer(f"{block}mlp.0", 4 * width, width)
            yield from _layer(f"{block}mlp.2", width, 4 * width)
    for number in range(FLUX_SINGLE):
        block = f"single_blocks.{number}."
        yield from _layer(f"{block}linear1", 7 * width, width)
        yield from _layer(f"{block}linear2", width, 5 * width)
        yield from _norms(f"{block}norm")
        yield from _layer(f"{block}modulation.lin", 3 * width, width)
    yield from _layer("final_layer.linear", tokens, width)
    yield from _layer("final_layer.adaLN_modulation.1", 2 * width, width)


def _norms(name: str) -> Shapes:
    for part in ("query_norm", "key_norm"):
        yield f"{name}.{part}.scale", (FLUX_HEAD,)


def _sd3(model: MMDiT) -> Shapes:
    """Stable Diffusion 3 with its VAE; the text encoders have files of their own."""
    top, width = "model.diffusion_model.", model.width
    yield f"{top}pos_embed", (1, model.positions**2, width)
    yield from _layer(f"{top}x_embedder.proj", width, SD3_LATENT, SD3_PATCH, SD3_PATCH)
    for name, inside in (("t_embedder", SD3_TIME), ("y_embedder", SD3_VECTOR)):
        yield from _layer(f"{top}{name}.mlp.0", width, inside)
        yield from _layer(f"{top}{name}.mlp.2", width, width)
    yield from _layer(f"{top}context_embedder", width, T5_WIDTH)
    for number in range(model.depth):
        block = f"{top}joint_blocks.{number}."
        last = number == model.depth - 1  # its text goes nowhere
        yield from _stream(f"{block}context_block.", model, ends=last, twice=False)
        yield from _stream(f"{block}x_block.", model, ends=False, twice=number < model.twice)
    yield from _layer(f"{top}final_layer.linear", SD3_LATENT * SD3_PATCH**2, width)
    yield from _layer(f"{top}final_layer.adaLN_modulation.1", 2 * width, width)
    yield from _vae(latent=SD3_LATENT, quantised=False)


def _stream(name: str, model: MMDiT, *, ends: bool, twice: bool) -> Shapes:
    """One of the two streams of a joint block."""
    width = model.width
    for attention in ("attn", "attn2")[: 1 + twice]:
        yield from _layer(f"{name}{attention}.qkv", 3 * width, width)
        if not ends:
            yield from _layer(f"{name}{attention}.proj", width, width)
        for part in ("ln_q", "ln_k") if model.norms else ():
            yield f"{name}{attention}.{part}.weight", (SD3_HEAD,)
    if not ends:
        yield from _layer(f"{name}mlp.fc1", 4 * width, width)
        yield from _layer(f"{name}mlp.fc2", width, 4 * width)
    yield from _layer(f"{name}adaLN_modulation.1", (2 if ends else 9 if twice else 6) * width, width)


def _t5() -> Shapes:
    """The encoder of T5 v1.1 XXL."""
    yield "shared.weight", (T5_WORDS, T5_WIDTH)
    for number in range(T5_LAYERS):
        attention, dense = (f"encoder.block.{number}.layer.{place}." for place in (0, 1))
        for part in ("q", "k", "v", "o"):
            yield from _layer(f"{attention}SelfAttention.{part}", T5_WIDTH, T5_WIDTH, bias=False)
        if not number:
            yield f"{attention}SelfAttention.relative_attention_bias.weight", (T5_DISTANCES, T5_HEADS)
        yield from _layer(f"{attention}layer_norm", T5_WIDTH, bias=False)
        for part in ("wi_0", "wi_1"):
            yield from _layer(f"{dense}DenseReluDense.{part}", T5_INNER, T5_WIDTH, bias=False)
        yield from _layer(f"{dense}DenseReluDense.wo", T5_WIDTH, T5_INNER, bias=False)
        yield from _layer(f"{dense}layer_norm", T5_WIDTH, bias=False)
    yield from _layer("encoder.final_layer_norm", T5_WIDTH, bias=False)


def _clip_l() -> Shapes:
    yield from _clip("", 768, 12)


def _clip_g() -> Shapes:
    yield from _clip("", 1280, 32)
    yield from _layer("text_projection", 1280, 1280, bias=False)


def _flux_autoencoder() -> Shapes:
    yield from _vae("", FLUX_LATENT, quantised=False)


_CHECKPOINTS: dict[str, Callable[[], Shapes]] = {
    "sd1": _sd1, "sd2": _sd2, "sdxl": _sdxl, "flux": _flux, "sd3-medium": partial(_sd3, SD3_MEDIUM),
    "sd3.5-medium": partial(_sd3, SD35_MEDIUM), "sd3.5-large": partial(_sd3, SD35_LARGE),
    "ae": _flux_autoencoder, "clip_l": _clip_l, "clip_g": _clip_g, "t5xxl": _t5,
}  # fmt: skip


def _layer(name: str, *weight: int, bias: bool = True) -> Shapes:
    yield f"{name}.weight", weight
    if bias:
        yield f"{name}.bias", weight[:1]


def _unet(model: UNet) -> Shapes:
    top, base = "model.diffusion_model.", model.channels
    time = base * 4
    yield from _two_layers(f"{top}time_embed", base, time)
    if model.labels:
        yield from _two_layers(f"{top}label_emb.0", model.labels, time)
    yield from _layer(f"{top}input_blocks.0.0", base, LATENT, 3, 3)
    widths, width, number = [base], base, 0
    for level, factor in enumerate(model.levels):
        for _ in range(2):
            number += 1
            yield from _residual(f"{top}input_blocks.{number}.0.", width, base * factor, time)
            width = base * factor
            yield from _transformer(f"{top}input_blocks.{number}.1.", width, model.transformers[level], model)
            widths.append(width)
        if level < len(model.levels) - 1:
            number += 1
            yield from _layer(f"{top}input_blocks.{number}.0.op", width, width, 3, 3)
            widths.append(width)
    yield from _residual(f"{top}middle_block.0.", width, width, time)
    yield from _transformer(f"{top}middle_block.1.", width, model.middle, model)
    yield from _residual(f"{top}middle_block.2.", width, width, time)
    number = 0
    for level in reversed(range(len(model.levels))):
        for block in range(3):
            place = f"{top}output_blocks.{number}."
            out = base * model.levels[level]
            yield from _residual(f"{place}0.", width + widths.pop(), out, time)
            width = out
            depth = model.transformers[level]
            yield from _transformer(f"{place}1.", width, depth, model)
            if level and block == 2:
                yield from _layer(f"{place}{2 if depth else 1}.conv", width, width, 3, 3)
            number += 1
    yield from _layer(f"{top}out.0", base)
    yield from _layer(f"{top}out.2", LATENT, base, 3, 3)


def _two_layers(name: str, inside: int, outside: int) -> Shapes:
    yield from _layer(f"{name}.0", outside, inside)
    yield from _layer(f"{name}.2", outside, outside)


def _residual(name: str, inside: int, outside: int, time: int) -> Shapes:
    yield from _layer(f"{name}in_layers.0", inside)
    yield from _layer(f"{name}in_layers.2", outside, inside, 3, 3)
    yield from _layer(f"{name}emb_layers.1", outside, time)
    yield from _layer(f"{name}out_layers.0", outside)
    yield from _layer(f"{name}out_layers.3", outside, outside, 3, 3)
    if inside != outside:
        yield from _layer(f"{name}skip_connection", outside, inside, 1, 1)


def _transformer(name: str, width: int, depth: int, model: UNet) -> Shapes:
    if not depth:
        return
    ends = () if model.linear else (1, 1)
    yield from _layer(f"{name}norm", width)
    yield from _layer(f"{name}proj_in", width, width, *ends)
    for number in range(depth):
        block = f"{name}transformer_blocks.{number}."
        for attention, source in (("attn1", width), ("attn2", model.context)):
            yield from _layer(f"{block}{attention}.to_q", width, width, bias=False)
            yield from _layer(f"{block}{attention}.to_k", width, source, bias=False)
            yield from _layer(f"{block}{attention}.to_v", width, source, bias=False)
            yield from _layer(f"{block}{attention}.to_out.0", width, width)
        yield from _layer(f"{block}ff.net.0.proj", width * 8, width)
        yield from _layer(f"{block}ff.net.2", width, width * 4)
        for norm in ("norm1", "norm2", "norm3"):
            yield from _layer(f"{block}{norm}", width)
    yield from _layer(f"{name}proj_out", width, width, *ends)


def _vae(top: str = "first_stage_model.", latent: int = LATENT, *, quantised: bool = True) -> Shapes:
    base = VAE_CHANNELS
    widest = base * VAE_LEVELS[-1]
    yield from _layer(f"{top}encoder.conv_in", base, 3, 3, 3)
    width = base
    for level, factor in enumerate(VAE_LEVELS):
        for block in range(2):
            yield from _vae_block(f"{top}encoder.down.{level}.block.{block}.", width, base * factor)
            width = base * factor
        if level < len(VAE_LEVELS) - 1:
            yield from _layer(f"{top}encoder.down.{level}.downsample.conv", width, width, 3, 3)
    yield from _vae_middle(f"{top}encoder.", widest)
    yield from _layer(f"{top}encoder.norm_out", widest)
    yield from _layer(f"{top}encoder.conv_out", latent * HEAD, widest, 3, 3)
    if quantised:
        yield from _layer(f"{top}quant_conv", latent * HEAD, latent * HEAD, 1, 1)
        yield from _layer(f"{top}post_quant_conv", latent, latent, 1, 1)
    yield from _layer(f"{top}decoder.conv_in", widest, latent, 3, 3)
    yield from _vae_middle(f"{top}decoder.", widest)
    width = widest
    for level in reversed(range(len(VAE_LEVELS))):
        for block in range(3):
            yield from _vae_block(f"{top}decoder.up.{level}.block.{block}.", width, base * VAE_LEVELS[level])
            width = base * VAE_LEVELS[level]
        if level:
            yield from _layer(f"{top}decoder.up.{level}.upsample.conv", width, width, 3, 3)
    yield from _layer(f"{top}decoder.norm_out", base)
    yield from _layer(f"{top}decoder.conv_out", 3, base, 3, 3)


def _vae_block(name: str, inside: int, outside: int) -> Shapes:
    yield from _layer(f"{name}norm1", inside)
    yield from _layer(f"{name}conv1", outside, inside, 3, 3)
    yield from _layer(f"{name}norm2", outside)
    yield from _layer(f"{name}conv2", outside, outside, 3, 3)
    if inside != outside:
        yield from _layer(f"{name}nin_shortcut", outside, inside, 1, 1)


def _vae_middle(name: str, width: int) -> Shapes:
    yield from _vae_block(f"{name}mid.block_1.", width, width)
    yield from _layer(f"{name}mid.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        yield from _layer(f"{name}mid.attn_1.{part}", width, width, 1, 1)
    yield from _vae_block(f"{name}mid.block_2.", width, width)


def _clip(top: str, width: int, layers: int) -> Shapes:
    model = f"{top}text_model."
    yield f"{model}embeddings.token_embedding.weight", (WORDS, width)
    yield f"{model}embeddings.position_embedding.weight", (POSITIONS, width)
    for number in range(layers):
        layer = f"{model}encoder.layers.{number}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _layer(f"{layer}self_attn.{part}", width, width)
        yield from _layer(f"{layer}layer_norm1", width)
        yield from _layer(f"{layer}mlp.fc1", width * 4, width)
        yield from _layer(f"{layer}mlp.fc2", width, width * 4)
        yield from _layer(f"{layer}layer_norm2", width)
    yield from _layer(f"{model}final_layer_norm", width)


def _open_clip(top: str, width: int, layers: int) -> Shapes:
    yield f"{top}positional_embedding", (POSITIONS, width)
    yield f"{top}text_projection", (width, width)
    yield f"{top}token_embedding.weight", (WORDS, width)
    yield f"{top}logit_scale", ()
    for number in range(layers):
        layer = f"{top}transformer.resblocks.{number}."
        yield f"{layer}attn.in_proj_weight", (width * 3, width)
        yield f"{layer}attn.in_proj_bias", (width * 3,)
        yield from _layer(f"{layer}attn.out_proj", width, width)
        yield from _layer(f"{layer}ln_1", width)
        yield from _layer(f"{layer}ln_2", width)
        yield from _layer(f"{layer}mlp.c_fc", width * 4, width)
        yield from _layer(f"{layer}mlp.c_proj", width, width * 4)
    yield from _layer(f"{top}ln_final", width)
