"""Where a preset departs from the guide's advice for full fine-tuning of SDXL, and the guide's reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kohya_ext.presets.convert import parse_number
from kohya_ext.presets.findings import Finding

# Key -> the value advised, and why.
ADVICE: dict[str, tuple[Any, str]] = {
    "max_train_epochs": (100, "beyond a hundred epochs hardly anything is learned"),
    "lr_scheduler": ("constant", "a cosine only equals a lower constant rate"),
    "lr_warmup": (0, "a warm-up only equals a lower constant rate"),
    "lr_warmup_steps": (0, "a warm-up only equals a lower constant rate"),
    "train_batch_size": (1, "larger batches dampen what is learned and need another rate"),
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
    "sdxl_no_half_vae": (True, "it cures a fault of SDXL's VAE in half precision"),
    "clip_skip": (1, "other values are for models that were trained with them"),
    "max_token_length": (75, "captions are short"),
    "noise_offset": (0, "better light, but worse results overall"),
    "multires_noise_iterations": (0, "left off with the other kinds of noise"),
    "caption_dropout_rate": (0, "training without captions is worse"),
    "caption_dropout_every_n_epochs": (0, "training without captions is worse"),
    "color_aug": (False, "an artificial way to enlarge the data set"),
    "flip_aug": (False, "an artificial way to enlarge the data set"),
    "shuffle_caption": (False, "made no difference even with tags"),
    "bucket_reso_steps": (64, "left at its default"),
    "bucket_no_upscale": (False, "small pictures should be upscaled by hand beforehand"),
    "full_fp16": (False, "it costs much quality"),
    "full_bf16": (False, "it costs much quality"),
    "gradient_checkpointing": (False, "only where memory forces it; memory-saving attention comes first"),
    "keep_tokens": (0, "left off"),
    "block_lr": ("", "for those who know exactly what they do"),
    "save_state": (False, "resumed runs never went well, and states take much disk"),
    "min_timestep": (0, "other ranges gave worse results"),
    "max_timestep": (1000, "other ranges gave worse results"),
    "v_pred_like_loss": (0, "gave bad results in the GUI author's own tests"),
}


def departures(values: Mapping[str, Any]) -> Iterator[Finding]:
    """A note for each setting that differs from the guide's advice; absent settings are no departure."""
    for key, (advised, reason) in ADVICE.items():
        value = values.get(key)
        if value is None or _same(value, advised):
            continue
        yield Finding("note", "guide", key, value, f"the guide advises {advised!r}: {reason}", f"set it to {advised!r}")


def _same(value: Any, advised: Any) -> bool:
    if isinstance(advised, bool) or isinstance(value, bool):
        return value is advised
    if isinstance(advised, (int, float)):
        return parse_number(value) == advised
    return str(value) == str(advised)
