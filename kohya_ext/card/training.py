"""The training in a table: what the file itself records, and what the preset adds where the file is silent.

A full fine-tune of sd-scripts records little but the modelspec; a LoRA records nearly everything. Paths, file names
of the author's machine and session numbers stay out: a model page is public.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from kohya_ext.card import family as families
from kohya_ext.card.family import recorded_name
from kohya_ext.card.model import LORA, Model
from kohya_ext.spec.flags import ENABLE_EMA
from kohya_ext.spec.outputs import EMA_METADATA

PRESETS_MODEL = "pretrained_model_name_or_path"
EXTRACTED = "kohya_ext_lora_"
MOST_DIGITS = 5  # of a side in pixels
NOTHING = ("", "none", "null", "false", "0", "0.0")

# label, key of the file, key of the GUI's preset
_PLAIN = (
    ("Epochs", "ss_epoch", "max_train_epochs"),
    ("Steps", "ss_steps", ""),
    ("Images", "ss_num_train_images", ""),
    ("Batch size", "ss_total_batch_size", "train_batch_size"),
    ("Gradient accumulation", "ss_gradient_accumulation_steps", "gradient_accumulation_steps"),
    ("Scheduler", "ss_lr_scheduler", "lr_scheduler"),
    ("Warm-up steps", "ss_lr_warmup_steps", "lr_warmup_steps"),
    ("Resolution", "ss_resolution", "max_resolution"),
    ("Precision", "ss_mixed_precision", "mixed_precision"),
    ("Min SNR gamma", "ss_min_snr_gamma", "min_snr_gamma"),
    ("Noise offset", "ss_noise_offset", "noise_offset"),
    ("Loss", "ss_loss_type", "loss_type"),
    ("Clip skip", "ss_clip_skip", "clip_skip"),
    ("Token length", "ss_max_token_length", "max_token_length"),
)
_USUAL = {"Loss": ("l2",), "Gradient accumulation": ("1",)}  # not worth a row
_FLAG = re.compile(r"--ema_(decay|schedule)[= ]+([\w.+-]+)")


def summary(model: Model, preset: Mapping[str, Any]) -> dict[str, str]:
    """Label -> value, in the order of the page. `preset`: settings of the GUI, {} without a preset."""
    found = model.metadata
    rows = {
        "Base model": _base_model(model, preset),
        "Method": _method(model, preset),
        "Optimizer": _optimizer(found, preset),
        "Learning rate": _learning_rates(found, preset),
    }
    for label, recorded, chosen in _PLAIN:
        value = _said(found.get(recorded)) or _said(preset.get(chosen))
        if value and value not in _USUAL.get(label, ()):
            rows[label] = _resolution(value) if label == "Resolution" else value
    rows["EMA"] = _average(found, preset)
    rows["Trained"] = _when(found)
    return {label: value for label, value in rows.items() if value}


def clip_skip(model: Model, preset: Mapping[str, Any]) -> str:
    """The clip skip of the training, "" where nothing is known."""
    return _said(model.metadata.get("ss_clip_skip")) or _said(preset.get("clip_skip"))


def size(model: Model, preset: Mapping[str, Any]) -> str:
    """Width x height of the training in pixels, "" where nothing is known."""
    stated = "" if model.contradiction else model.spec("resolution")  # sd-scripts writes that of the stated family
    for value in (stated, model.metadata.get("ss_resolution"), preset.get("max_resolution")):
        if found := _resolution(_said(value)):
            return found
    return f"{model.family.width}x{model.family.height}" if model.family.width else ""


def _said(value: Any) -> str:
    text = "" if value is None else str(value).strip()
    return "" if text.lower() in NOTHING else text


def _base_model(model: Model, preset: Mapping[str, Any]) -> str:
    """As the training was given it, without its folders; nothing where the tensors are of another family."""
    if model.contradiction and families.base(model.metadata) != model.base:
        return ""
    given = recorded_name(model.metadata) or ("" if model.base.name else _said(preset.get(PRESETS_MODEL)))
    if not given:
        return model.base.name
    return model.base.name if model.base.base == given else re.split(r"[\\/]", given.rstrip("\\/"))[-1]


def _method(model: Model, preset: Mapping[str, Any]) -> str:
    if model.kind != LORA:
        encoder = ", text encoders too" if preset.get("train_text_encoder") else ""
        return f"full fine-tune{encoder}" if preset else ""
    found = model.metadata
    rank, alpha = _said(found.get("ss_network_dim")), _said(found.get("ss_network_alpha"))
    how = "extracted from a full fine-tune" if f"{EXTRACTED}tuned_sha256" in found else "LoRA training"
    size = f", rank {rank}" if rank else ""
    return how + size + (f", alpha {alpha.removesuffix('.0')}" if alpha else "")


def _optimizer(found: Mapping[str, str], preset: Mapping[str, Any]) -> str:
    recorded = _said(found.get("ss_optimizer"))
    if recorded:
        name, _, arguments = recorded.partition("(")
        return name.rsplit(".", 1)[-1] + (f" ({arguments.rstrip(')')})" if arguments else "")
    name, arguments = _said(preset.get("optimizer")), _said(preset.get("optimizer_args"))
    return f"{name} ({arguments})" if name and arguments else name


def _learning_rates(found: Mapping[str, str], preset: Mapping[str, Any]) -> str:
    rate = _said(found.get("ss_learning_rate")) or _said(preset.get("learning_rate"))
    parts = [_number(rate)] if rate else []
    for label, recorded, chosen in (
        ("U-Net", "ss_unet_lr", "unet_lr"),
        ("text encoder", "ss_text_encoder_lr", "learning_rate_te"),
    ):
        other = _said(found.get(recorded)) or ("" if found.get("ss_learning_rate") else _said(preset.get(chosen)))
        if other and _number(other) != _number(rate):
            parts.append(f"{label} {_number(other)}")
    return ", ".join(parts)


def _number(text: str) -> str:
    try:
        return f"{float(text):g}"
    except ValueError:
        return text


def _resolution(text: str) -> str:
    """Both "(1024, 1024)" and "1024,1024" and "1024x1024" as 1024x1024; "" for anything else."""
    sides = re.findall(r"[0-9]+", text)
    if not 1 <= len(sides) <= 2 or max(map(len, sides)) > MOST_DIGITS or not re.fullmatch(r"[\s\d,x()\[\]]+", text):
        return ""
    return f"{sides[0]}x{sides[-1]}"


def _average(found: Mapping[str, str], preset: Mapping[str, Any]) -> str:
    recorded = {key.removeprefix(EMA_METADATA): value for key, value in found.items() if key.startswith(EMA_METADATA)}
    if not recorded:
        flags = str(preset.get("additional_parameters", ""))
        if ENABLE_EMA.name not in flags:
            return ""
        recorded = dict(_FLAG.findall(flags))
        return f"of the same run, decay {recorded['decay']}" if "decay" in recorded else "of the same run"
    parts = [f"{name} {recorded[name]}" for name in ("schedule", "decay", "sigma_rel") if _said(recorded.get(name))]
    return "this file is the average of the weights" + (f" ({', '.join(parts)})" if parts else "")


def _when(found: Mapping[str, str]) -> str:
    try:
        begun, ended = (float(found[f"ss_training_{name}_at"]) for name in ("started", "finished"))
        day = datetime.fromtimestamp(ended, timezone.utc).date().isoformat()
        minutes = round((ended - begun) / 60)
    except (KeyError, ValueError, OverflowError, OSError):
        return _said(found.get("modelspec.date"))[:10]
    if not 0 < minutes < 60 * 24 * 365:
        return day
    return f"{day}, in {minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{day}, in {minutes} min"


def concepts(model: Model) -> list[str]:
    """Names of data-set folders such as `5_ewpp woman`, without the repeats: likely trigger words, to be looked at."""
    try:
        folders = json.loads(model.metadata.get("ss_dataset_dirs", "{}"))
        names = [re.fullmatch(r"\d+_(.+)", name) for name in folders]
    except (ValueError, TypeError, RecursionError):
        return []
    return sorted({match[1].replace("_", " ").strip() for match in names if match})
