"""Where a preset departs from the guide's advice for full fine-tuning of SDXL, and the guide's reason."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from kohya_ext.presets.convert import optimizer_argument, parse_number
from kohya_ext.presets.document import Preset
from kohya_ext.presets.findings import Finding
from kohya_ext.presets.keys import ADAPTIVE, EXTRA, RATES, flags_in
from kohya_ext.spec.optimizers import ADACOOR, ours

# Key -> the value advised, and why.
ADVICE: dict[str, tuple[Any, str]] = {
    "max_train_epochs": (100, "beyond a hundred epochs hardly anything is learned"),
    "max_train_steps": (0, "an epoch is always a whole pass over the images, steps are not"),
    "save_every_n_epochs": (100, "the last model is enough, with a hundred epochs"),
    "dataset_repeats": (1, "the newest configurations; 2 went with an accumulation of 3 before"),
    "gradient_accumulation_steps": (1, "the newest configurations; it dampens learning like a larger batch"),
    "lr_scheduler": ("constant", "a cosine only equals a lower constant rate"),
    "lr_warmup": (0, "a warm-up only equals a lower constant rate"),
    "lr_warmup_steps": (0, "a warm-up only equals a lower constant rate"),
    "train_batch_size": (1, "larger batches dampen what is learned and need another rate"),
    "enable_bucket": (True, "images of any shape are trained without cropping them by hand"),
    "create_buckets": (True, "images of any shape are trained without cropping them by hand"),
    "min_snr_gamma": (5, "likeness improves noticeably"),
    "mixed_precision": ("fp16", "gave better results than bf16 and fp32"),
    "save_precision": ("fp16", "gave better results than bf16 and fp32"),
    "max_resolution": ("1024,1024", "SDXL's own resolution"),
    "caption_extension": (".txt", "the captions are made from file names with this extension"),
    "train_text_encoder": (True, "results are much worse without it"),
    "sdxl_cache_text_encoder_outputs": (False, "only worth it where memory is all that counts"),
    "cache_latents": (False, "it excludes random crops"),
    "cache_latents_to_disk": (False, "it excludes random crops"),
    "random_crop": (True, "the one augmentation that does no harm"),
    "sdxl_no_half_vae": (True, "it fixes a fault of SDXL's VAE in half precision"),
    "clip_skip": (1, "other values are for models that were trained with them"),
    "max_token_length": (75, "captions are short"),
    "noise_offset": (0, "better light, but worse results overall"),
    "adaptive_noise_scale": (0, "belongs to the noise offset"),
    "multires_noise_iterations": (0, "left off with the other kinds of noise"),
    "caption_dropout_rate": (0, "training without captions is worse"),
    "caption_dropout_every_n_epochs": (0, "training without captions is worse"),
    "color_aug": (False, "an artificial way to enlarge the data set"),
    "flip_aug": (False, "an artificial way to enlarge the data set"),
    "shuffle_caption": (False, "made no difference even with tags"),
    "bucket_reso_steps": (64, "left at its default"),
    "bucket_no_upscale": (False, "small images should be upscaled by hand beforehand"),
    "full_fp16": (False, "it costs much quality"),
    "full_bf16": (False, "it costs much quality"),
    "gradient_checkpointing": (False, "only where memory requires it; memory-saving attention comes first"),
    "keep_tokens": (0, "left off"),
    "block_lr": ("", "for those who know exactly what they do"),
    "save_state": (False, "resumed runs never went well, and states take much disk"),
    "min_timestep": (0, "other ranges gave worse results"),
    "max_timestep": (1000, "other ranges gave worse results"),
    "v_pred_like_loss": (0, "gave bad results in the GUI author's own tests"),
    "scale_v_pred_loss_like_noise_pred": (False, "matters to SD 2 models only"),
    "mem_eff_attn": (False, "left off"),
    "persistent_data_loader_workers": (False, "left off"),
}

# The optimizers that it has configurations for -> their learning rate, and why that one.
ADVISED_RATES: dict[str, tuple[float, str]] = {
    ADACOOR.name.casefold(): (1, f"its configuration has this rate, together with {ADACOOR.words}"),
    "lion": (1e-7, "anything higher distorts"),
    "adamw": (1e-6, "anything higher ruins the model, anything lower learns too little"),
    "adamw8bit": (1e-6, "anything higher ruins the model, anything lower learns too little"),
}
EMA_DECAY = 0.9995


def departures(preset: Preset) -> Iterator[Finding]:
    """A note for each setting that differs from the guide's advice; absent settings do not count as a departure.

    Where the preset's own `_about` block says why it departs, that is quoted.
    """
    purposes = _purposes(preset.about)
    for finding in (*_fields(preset), *_optimizer(preset.values), *_flags(preset.values)):
        if finding.key in purposes:
            finding = replace(finding, fix=f"none, it is intentional in this preset: {purposes[finding.key]}")
        yield finding


def _fields(preset: Preset) -> Iterator[Finding]:
    for key, advised, reason in _advice(preset):
        value = preset.values.get(key)
        if value is not None and not _same(value, advised):
            effect = f"the guide advises {json.dumps(advised)}: {reason}"
            yield Finding("note", "guide", key, value, effect, f"set it to {json.dumps(advised)}")


def _advice(preset: Preset) -> Iterator[tuple[str, Any, str]]:
    """Key, advised value, reason; the learning rates depend on the optimizer, and are those of a full fine-tune."""
    for key, (advised, reason) in ADVICE.items():
        yield key, advised, reason
    rate = ADVISED_RATES.get(_name(preset.values))
    if rate is not None and preset.tab in ("finetune", "dreambooth"):
        for key in RATES:
            yield key, *rate


def _name(values: Mapping[str, Any]) -> str:
    return str(values.get("optimizer") or "").casefold().rpartition(".")[2]


def _optimizer(values: Mapping[str, Any]) -> Iterator[Finding]:
    name, value = _name(values), values.get("optimizer")
    if name.startswith(ADAPTIVE):
        effect = "the guide advises against it: adaptive optimizers only ever raise the rate, until the model is ruined"
        yield Finding("note", "guide", "optimizer", value, effect, f"use {ADACOOR.name}, Lion or AdamW")
    elif name == "pagedadamw8bit":
        effect = "the guide advises against it: half as fast, and no better"
        yield Finding("note", "guide", "optimizer", value, effect, "use AdamW8bit")
    elif name and name not in ADVISED_RATES:
        effect = "the guide has no configuration for it, and so no learning rate"
        yield Finding("note", "guide", "optimizer", value, effect, f"use {ADACOOR.name}, Lion or AdamW")
    arguments = str(values.get("optimizer_args") or "")
    optimizer = ours(value)
    if optimizer is None:
        return
    for argument, advised in optimizer.arguments.items():
        if optimizer_argument(arguments, argument) != float(advised):
            effect = f"the guide gives {optimizer.name} {argument}={advised}"
            yield Finding("note", "guide", "optimizer_args", arguments, effect, f"set it to {argument}={advised}")


def _flags(values: Mapping[str, Any]) -> Iterator[Finding]:
    flags = flags_in(values.get(EXTRA))
    decay = flags.get("ema_decay", EMA_DECAY)
    if "enable_ema" in flags and parse_number(decay) != EMA_DECAY:
        effect = f"the guide advises {EMA_DECAY}: the decay of its configuration"
        yield Finding("note", "guide", EXTRA, f"--ema_decay={decay}", effect, f"set it to {EMA_DECAY}")


def _purposes(about: Mapping[str, Any]) -> dict[str, str]:
    """Key -> reason, of a preset's `derived` settings."""
    derived = about.get("derived")
    rows = derived.items() if isinstance(derived, Mapping) else ()
    return {key.strip(): str(reason) for keys, reason in rows for key in str(keys).split(",")}


def _same(value: Any, advised: Any) -> bool:
    if isinstance(advised, bool) or isinstance(value, bool):
        return value is advised
    if isinstance(advised, (int, float)):
        return parse_number(value) == advised
    return str(value) == str(advised)
