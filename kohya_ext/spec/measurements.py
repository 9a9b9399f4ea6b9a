"""What a run leaves about its memory and its speed, and by which settings it is found again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

FILE_NAME = "measured.jsonl"  # next to the record of the installation

# Arguments that decide how much memory a step takes, and how long. Paths, rates and lengths of the run are not among
# them, so that a measurement serves the next run as well.
SETTINGS = (
    "base_weights", "blocks_to_swap", "bucket_reso_steps", "cache_latents", "cache_latents_to_disk",
    "cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk", "conv_dim", "deepspeed", "dynamo_backend",
    "ema_device", "ema_dtype", "enable_bucket", "enable_ema", "fp8_base", "fp8_base_unet", "full_bf16", "full_fp16",
    "fused_backward_pass", "fused_optimizer_groups", "gradient_accumulation_steps", "gradient_checkpointing",
    "highvram", "lowram", "masked_loss", "max_bucket_reso", "max_token_length", "mem_eff_attn", "mixed_precision",
    "network_args", "network_dim", "network_module", "network_train_text_encoder_only", "network_train_unet_only",
    "no_half_vae", "optimizer_args", "optimizer_type", "resolution", "sdpa", "torch_compile", "train_batch_size",
    "train_text_encoder", "train_t5xxl", "use_8bit_adam", "v2", "vae_batch_size", "xformers",
)  # fmt: skip
_OFF: tuple[Any, ...] = (None, False, "", 0, [], ())


def digest(script: str, arguments: Mapping[str, Any]) -> str:
    """A few letters that are the same for runs which take the same memory.

    Args:
        script: name of the training script's file.
        arguments: the script's own, by name; what is off and what is not given are alike.
    """
    given = {name: arguments.get(name) for name in SETTINGS if arguments.get(name) not in _OFF}
    text = json.dumps([script, given], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
