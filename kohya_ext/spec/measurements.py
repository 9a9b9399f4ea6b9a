"""What a run leaves about its memory and its speed, and by which settings it is found again."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kohya_ext.spec.cards import GIB
from kohya_ext.spec.flags import BY_KEY, EMA, ENABLE_EMA, Flag

FILE_NAME = "measured.jsonl"  # next to the record of the installation

# Arguments that decide how much memory a step takes, and how long. Paths, rates and lengths of the run are not among
# them, so that a measurement serves the next run as well.
SETTINGS = (
    "blocks_to_swap", "bucket_reso_steps", "cache_latents", "cache_latents_to_disk",
    "cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk", "conv_dim", "deepspeed", "dynamo_backend",
    "enable_bucket", "fp8_base", "fp8_base_unet", "full_bf16", "full_fp16",
    "fused_backward_pass", "fused_optimizer_groups", "gradient_accumulation_steps", "gradient_checkpointing",
    "highvram", "lowram", "masked_loss", "max_bucket_reso", "max_token_length", "mem_eff_attn", "mixed_precision",
    "network_args", "network_dim", "network_module", "network_train_text_encoder_only", "network_train_unet_only",
    "no_half_vae", "optimizer_args", "optimizer_type", "resolution", "sdpa", "torch_compile", "train_batch_size",
    "train_text_encoder", "train_t5xxl", "use_8bit_adam", "v2", "vae_batch_size", "xformers",
)  # fmt: skip
OF_THE_EMA = tuple(f"ema_{name}" for name in ("device", "dtype", "sigma_rel"))  # where there is one
_OFF: tuple[Any, ...] = (None, False, "", 0, [])


@dataclass(frozen=True)
class Measured:
    """peak: bytes that torch had reserved, None without a GPU. seconds: of an optimizer step, None for a short run.

    died: whether the card's memory ended the run.
    """

    device: str
    peak: int | None
    seconds: float | None
    died: bool
    date: str

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "device": self.device,
            "peak_reserved_bytes": self.peak,
            "seconds_per_step": self.seconds,
            "out_of_memory": self.died,
            "date": self.date,
        }

    def __str__(self) -> str:
        """In words: 17.3 GiB reserved, 1.9 s a step on NVIDIA A100, 2026-11-27."""
        peak = "" if self.peak is None else f"{self.peak / GIB:.1f} GiB reserved"
        pace = "" if self.seconds is None else f"{self.seconds:.3g} s a step"
        died = "; that run ran out of memory" if self.died else ""
        return f"{', '.join(filter(None, (peak, pace))) or 'nothing'} on {self.device}, {self.date}{died}"


def newest(lines: Iterable[str], settings: str) -> Measured | None:
    """The last measurement of these settings among lines of the file; None where there is none."""
    mine = [line for line in lines if settings in line]
    return next((found for line in reversed(mine) if (found := _read(line, settings)) is not None), None)


def _read(line: str, settings: str) -> Measured | None:
    try:
        found: Mapping[str, Any] = json.loads(line)
        if found["settings"] != settings:
            return None
        peak, seconds = found["peak_reserved_bytes"], found["seconds_per_step"]
        return Measured(
            str(found["device"]),
            None if peak is None else int(peak),
            None if seconds is None else float(seconds),
            bool(found["out_of_memory"]),
            str(found["date"]),
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None  # a line that another version wrote, or that was cut off


def digest(script: str, arguments: Mapping[str, Any]) -> str:
    """A few letters that are the same for runs which take the same memory.

    Args:
        script: name of the training script's file.
        arguments: the script's own and ours, by name, as they are given or as text; what is off and what is absent are
            alike. Of ours that are absent the defaults count.
    """
    given = {name: plain for name in SETTINGS if (plain := _plain(arguments.get(name))) not in _OFF}
    if _plain(arguments.get(ENABLE_EMA.key)) not in _OFF:
        given[EMA] = [_plain(_of_the_ema(BY_KEY[name], arguments)) for name in OF_THE_EMA]
    text = json.dumps([script, given], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _of_the_ema(flag: Flag, arguments: Mapping[str, Any]) -> Any:
    value = arguments.get(flag.key)
    with contextlib.suppress(ValueError):
        return flag.default if value == "" else flag.read(arguments)
    return value


def _plain(value: Any) -> Any:
    """The same for a value and its text: words of TOML files, of command lines and of a parser's results."""
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, bool) or value is None:
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        return {"true": True, "false": False}.get(str(value).strip().casefold(), str(value).strip())
