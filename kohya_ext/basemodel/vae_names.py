"""Names of a VAE's weights: as checkpoints have them (the original code's), and as diffusers does."""

from __future__ import annotations

import re

PREFIX = "first_stage_model."
PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
LEVELS = 4  # resolutions of the encoder and of the decoder, whose count runs the other way in diffusers

_DOWN = re.compile(r"encoder\.down_blocks\.(\d)\.(resnets|downsamplers)\.(\d)\.(.+)")
_UP = re.compile(r"decoder\.up_blocks\.(\d)\.(resnets|upsamplers)\.(\d)\.(.+)")
_MIDDLE = re.compile(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d)\.(.+)")
_ATTENTION = {
    "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
    "query": "q", "key": "k", "value": "v", "proj_attn": "proj_out",
}  # fmt: skip


def in_checkpoint(key: str) -> str | None:
    """What a checkpoint calls the weight that a file of a VAE calls `key`; None for anything else."""
    key = key.removeprefix(PREFIX)
    if not key.startswith(PARTS):
        return None
    return PREFIX + (_original(key) if "_blocks." in key or "mid_block." in key or "conv_norm_out" in key else key)


def _original(key: str) -> str:
    if match := _DOWN.fullmatch(key):
        level, kind, place, rest = match.groups()
        block = f"block.{place}" if kind == "resnets" else "downsample"
        return f"encoder.down.{level}.{block}.{_shortcut(rest)}"
    if match := _UP.fullmatch(key):
        level, kind, place, rest = match.groups()
        block = f"block.{place}" if kind == "resnets" else "upsample"
        return f"decoder.up.{LEVELS - 1 - int(level)}.{block}.{_shortcut(rest)}"
    if match := _MIDDLE.fullmatch(key):
        half, kind, place, rest = match.groups()
        if kind == "resnets":
            return f"{half}.mid.block_{int(place) + 1}.{_shortcut(rest)}"
        name, _, what = rest.rpartition(".")
        return f"{half}.mid.attn_{int(place) + 1}.{_ATTENTION.get(name, name)}.{what}"
    return key.replace("conv_norm_out", "norm_out")


def _shortcut(rest: str) -> str:
    return rest.replace("conv_shortcut", "nin_shortcut")
