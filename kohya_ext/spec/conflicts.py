"""Which of Kohya's settings an EMA cannot work with: the one table of them, for the run and for `presets check`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from kohya_ext.spec.flags import BY_KEY, ENABLE_EMA, SNAPSHOT_EVERY, Values

# Settings that step in the backward pass: before gradients are accumulated, and before a loss scale is taken out.
FUSED = ("fused_backward_pass", "fused_optimizer_groups", "blockwise_fused_optimizers")
START_STEP = BY_KEY["ema_start_step"]


@dataclass(frozen=True)
class Conflict:
    """A setting of Kohya's. name: of its argument; found: tells from all arguments whether it is there.

    effect: why that ends the run. fix: what to do. flag: ours that does not go with it, whose value `found` has seen.
    """

    name: str
    found: Callable[[Values], bool]
    effect: str
    fix: str
    flag: str = ENABLE_EMA.name


def _schedule_free(values: Values) -> bool:
    return str(values.get("optimizer_type") or "").lower().endswith("schedulefree")


def _starts_too_late(values: Values) -> bool:
    last = 0 if _number(values.get("max_train_epochs")) else _number(values.get("max_train_steps"))
    return last > 0 and START_STEP.fault(values) is None and START_STEP.read(values) >= last


def _no_safetensors(values: Values) -> bool:
    if values.get(SNAPSHOT_EVERY.key) is None:
        return False
    form = values.get("save_model_as")
    if form in ("ckpt", "diffusers", "diffusers_safetensors"):
        return True
    # of a full fine-tune; networks have a form by default, and no switch
    return form != "safetensors" and values.get("use_safetensors") is False


def _offloaded_to_disk(values: Values, name: str) -> bool:
    return bool(values.get("deepspeed")) and str(values.get(name) or "").lower() == "nvme"


def _number(value: Any) -> float:
    try:
        return float(value or 0)
    except (TypeError, ValueError):
        return 0.0


CONFLICTS = (
    Conflict(
        "deepspeed",
        lambda values: bool(values.get("deepspeed")) and any(values.get(name) for name in FUSED),
        "DeepSpeed makes its own steps, and none in the backward pass",
        f"remove {', '.join(f'--{name}' for name in FUSED)}",
    ),
    Conflict(
        "offload_optimizer_device",
        lambda values: _offloaded_to_disk(values, "offload_optimizer_device"),
        "it needs the weights at every step, and DeepSpeed has them on a disk between two steps",
        "offload the optimizer to cpu",
    ),
    Conflict(
        "offload_param_device",
        lambda values: _offloaded_to_disk(values, "offload_param_device"),
        "it needs the weights at every save, and DeepSpeed has them on a disk while they are not used",
        "offload the parameters to cpu",
    ),
    Conflict(
        "optimizer_type",
        _schedule_free,
        "it does not work with a schedule-free optimizer, which averages the weights itself: those in training are not "
        "the ones to average",
        "use only one of them",
    ),
    Conflict(
        "max_train_steps",
        _starts_too_late,
        "it is not before the last step of the training: the EMA would never start",
        "lower it",
        START_STEP.name,
    ),
    Conflict(
        "save_model_as",
        _no_safetensors,
        "an EMA of another length can only be written as .safetensors",
        "set save_model_as to safetensors",
        SNAPSHOT_EVERY.name,
    ),
)
SETTINGS = (
    "deepspeed",
    *FUSED,
    "offload_optimizer_device",
    "offload_param_device",
    "optimizer_type",
    "max_train_epochs",
    "max_train_steps",
    "save_model_as",
    "use_safetensors",
)


def conflicts(values: Values) -> Iterator[Conflict]:
    """Those of a run with an EMA. values: all arguments, ours and Kohya's."""
    return (one for one in CONFLICTS if one.found(values))
