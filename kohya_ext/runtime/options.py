"""What a run asks of us, read from Kohya's `args`: converted, checked, refused with a reason.

Kohya reads its TOML files into the same namespace as the command line, without converting anything.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from kohya_ext.core.errors import CONFLICT
from kohya_ext.runtime import flags, legacy
from kohya_ext.runtime.report import say, stop
from kohya_ext.spec.hooks import ADACOOR_NAMES, EMA_SWITCH, LOG_SWITCH

T = TypeVar("T")

# All of them step in the backward pass: before gradients are accumulated, and before a loss scale is taken out.
_FUSED_FLAGS = ("fused_backward_pass", "fused_optimizer_groups", "blockwise_fused_optimizers")


@dataclass(frozen=True)
class EmaOptions:
    """What `--enable_ema` and the `--ema_*` flags say, in their final types."""

    decay: float
    schedule: str
    update_every: int
    start_step: int
    device: str
    dtype: str
    save: str
    sample: str
    sigma_rel: float | None
    exp_beta: float


def read(args: argparse.Namespace) -> EmaOptions | None:
    """The EMA settings in `args`; None when EMA is off. Stops the run when they cannot be honoured."""
    theirs = flags.gave_way.get("EMA")
    if theirs is not None and theirs != "--enable_ema" and getattr(args, EMA_SWITCH, None):  # from a TOML
        stop(f"enable_ema is set, but this fork has a {theirs} of its own: EMA of kohya_ext is not available in it")
    if theirs is not None:
        return None
    wanted = _read(args, EMA_SWITCH, _boolean, False)
    if legacy.found():
        if wanted or names_adacoor(args):
            stop(legacy.message(), CONFLICT)
        return None
    if not wanted:
        ignored = [name for name, value in vars(args).items() if name.startswith("ema_") and value not in (None, False)]
        if ignored:
            say(f"--{ignored[0]} is set, but --enable_ema is not: this run keeps no EMA")
        return None
    _refuse_what_cannot_work(args)
    schedule, exp_beta = _schedule(args)
    only = _read(args, "ema_save_only_ema_weights", _boolean, False)
    return EmaOptions(
        decay=_read(args, "ema_decay", _share, 0.9995),
        schedule=schedule,
        update_every=_read(args, "ema_update_every", _positive, 1),
        start_step=_read(args, "ema_start_step", _not_negative, 0),
        device=_read(args, "ema_device", _one_of("auto", "cuda", "cpu"), "auto"),
        dtype=_read(args, "ema_dtype", _one_of("float32", "bfloat16"), "float32"),
        save="only" if only else _read(args, "ema_save", _one_of("beside", "only"), "beside"),
        sample=_read(args, "ema_sample", _one_of("raw", "ema", "both"), "raw"),
        sigma_rel=_sigma_rel(args, schedule),
        exp_beta=exp_beta,
    )


def names_adacoor(args: argparse.Namespace) -> bool:
    """True when `--optimizer_type` names our optimizer, in any case and by either of its names."""
    return str(getattr(args, "optimizer_type", None) or "").lower() in ADACOOR_NAMES


def log_every(args: argparse.Namespace) -> int:
    """The steps from one measurement of the optimizer to the next, 0 for none."""
    if "telemetry" in flags.gave_way:
        return 0
    steps: int = _read(args, LOG_SWITCH, _not_negative, 0)
    if steps and legacy.found():
        stop(legacy.message(), CONFLICT)
    return steps


def check(args: argparse.Namespace) -> None:
    """Stop the run where something that is neither EMA nor measurement was asked for and cannot be done."""
    if legacy.found() or not names_adacoor(args):
        return
    if getattr(args, "deepspeed", False):
        stop("AdaCoor does not work with DeepSpeed, which replaces the parameters it was given; leave one out")
    fused = next((flag for flag in _FUSED_FLAGS if getattr(args, flag, None)), None)
    if fused is None:
        return
    if int(getattr(args, "gradient_accumulation_steps", 1) or 1) != 1:
        stop(f"--{fused} steps in the backward pass: set --gradient_accumulation_steps 1")
    if getattr(args, "mixed_precision", None) == "fp16":
        stop(f"--{fused} with AdaCoor cannot undo the loss scaling of fp16: use --mixed_precision bf16 or no")


def _refuse_what_cannot_work(args: argparse.Namespace) -> None:
    if getattr(args, "deepspeed", False):
        stop(
            "--enable_ema does not work with DeepSpeed, which keeps the weights in partitions of its own; leave one out"
        )
    if str(getattr(args, "optimizer_type", "") or "").lower().endswith("schedulefree"):
        stop(
            f"--enable_ema makes no sense with {args.optimizer_type}: a schedule-free optimizer averages by itself, "
            "and the weights in training are not the ones to average; leave one out"
        )


def _schedule(args: argparse.Namespace) -> tuple[str, float]:
    """The name of the schedule and the beta of `exp`; the old `--ema_exp_beta` alone selects a schedule."""
    chosen = _read(args, "ema_schedule", _one_of("debiased", "constant", "warmup", "exp", "power"), None)
    beta = _read(args, "ema_exp_beta", _not_negative_float, None)
    if chosen is not None and beta is not None:
        stop("--ema_schedule and the old --ema_exp_beta both choose a schedule; give one of them")
    if beta is not None:
        return ("exp", beta) if beta > 0 else ("warmup", 0.0)
    return chosen or "debiased", 15.0


def _sigma_rel(args: argparse.Namespace, schedule: str) -> float | None:
    value = _read(args, "ema_sigma_rel", _width, None)
    if (value is not None) != (schedule == "power"):
        stop("--ema_sigma_rel belongs to --ema_schedule power: give both or neither")
    return value


def _read(args: argparse.Namespace, name: str, convert: Callable[[Any], T], default: T | Any) -> Any:
    value = getattr(args, name, None)
    if value is None:
        return default
    try:
        return convert(value)
    except (TypeError, ValueError) as error:
        stop(f"--{name} is {value!r}: {error}")


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text not in ("true", "false", "1", "0", ""):
        raise ValueError("expected true or false")
    return text in ("true", "1")


def _share(value: Any) -> float:
    number = float(value)
    if not 0.0 <= number < 1.0:
        raise ValueError("expected a number from 0 up to, not including, 1 (0.9995 is usual)")
    return number


def _width(value: Any) -> float:
    number = float(value)
    if not 0.0 < number <= 0.28:
        raise ValueError("expected a number above 0 and up to 0.28 (0.05 to 0.15 is usual)")
    return number


def _not_negative_float(value: Any) -> float:
    number = float(value)
    if not 0.0 <= number < float("inf"):
        raise ValueError("expected a number of at least 0")
    return number


def _whole(value: Any) -> int:
    if isinstance(value, bool) or int(value) != float(value):
        raise ValueError("expected a whole number")
    return int(value)


def _positive(value: Any) -> int:
    if _whole(value) < 1:
        raise ValueError("expected a whole number of at least 1")
    return _whole(value)


def _not_negative(value: Any) -> int:
    if _whole(value) < 0:
        raise ValueError("expected a whole number of at least 0")
    return _whole(value)


def _one_of(*choices: str) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}")
        return str(value)

    return convert
