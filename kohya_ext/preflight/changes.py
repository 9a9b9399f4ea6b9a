"""Changes that take memory off a run, the cheapest first, each tried by running the script again with it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from kohya_ext.preflight.arguments import ScriptCommand
from kohya_ext.spec.flags import ENABLE_EMA
from kohya_ext.spec.optimizers import ADACOOR, ours

Given = Mapping[str, Any]


@dataclass(frozen=True)
class MemoryChange:
    """One change: its arguments, what it costs, and where it applies. dropped: arguments that it takes away."""

    text: str
    costs: str
    arguments: Mapping[str, Any]
    applies: Callable[[Given, frozenset[str]], bool]
    dropped: tuple[str, ...] = ()


def _off(name: str) -> Callable[[Given, frozenset[str]], bool]:
    return lambda given, known: name in known and not given.get(name)


def _can_fuse(given: Given, known: frozenset[str]) -> bool:
    name = given.get("optimizer_type")
    optimizer = ours(name)
    one = int(given.get("gradient_accumulation_steps") or 1) == 1
    fusable = optimizer.fused if optimizer else str(name or "").casefold() == "adafactor"
    return "fused_backward_pass" in known and not given.get("fused_backward_pass") and one and fusable


def _can_fuse_ours(given: Given, known: frozenset[str]) -> bool:
    return _foreign(given, known) and _can_fuse({**given, "optimizer_type": ADACOOR.name}, known)


def _text_outputs(given: Given, known: frozenset[str]) -> bool:
    trains = given.get("train_text_encoder") or ("network_module" in given and not given.get("network_train_unet_only"))
    shuffles = any(given.get(name) for name in ("shuffle_caption", "caption_dropout_rate", "caption_tag_dropout_rate"))
    return "cache_text_encoder_outputs" in known and not (trains or shuffles or given.get("cache_text_encoder_outputs"))


def _full_bf16(given: Given, known: frozenset[str]) -> bool:
    return "full_bf16" in known and not any(given.get(name) for name in ("full_bf16", "full_fp16"))


def _averages(given: Given, known: frozenset[str]) -> bool:
    return bool(given.get(ENABLE_EMA.key)) and given.get("ema_device") != "cpu"


def _half_states(given: Given, known: frozenset[str]) -> bool:
    return str(given.get("optimizer_type", "")).casefold() == "adamw"


def _foreign(given: Given, known: frozenset[str]) -> bool:
    name = str(given.get("optimizer_type", "")).casefold()
    return ours(name) is None and name != "adafactor" and "optimizer_type" in known


# Rates of single parts: with another optimizer the one rate of all takes their place.
PART_RATES = (
    "unet_lr", "text_encoder_lr", "learning_rate_te", "learning_rate_te1", "learning_rate_te2", "learning_rate_te3",
    "block_lr",
)  # fmt: skip
FUSED = MemoryChange("a fused backward pass", "clipping by tensor", {"fused_backward_pass": True}, _can_fuse)
TO_ADACOOR = MemoryChange(
    f"optimizer {ADACOOR.name} at learning rate {ADACOOR.rate:g}",
    "another optimizer: its steps are not those of yours",
    {
        "optimizer_type": ADACOOR.name,
        "learning_rate": f"{ADACOOR.rate:g}",
        "optimizer_args": [f"{name}={value}" for name, value in ADACOOR.arguments.items()],
    },
    _foreign,
    PART_RATES,
)
# Its sums alone take as much as other optimizers' 8-bit states; without whole gradients it takes less.
TO_FUSED_ADACOOR = MemoryChange(
    f"{TO_ADACOOR.text} with {FUSED.text}",
    f"{TO_ADACOOR.costs}; {FUSED.costs}",
    {**TO_ADACOOR.arguments, **FUSED.arguments},
    _can_fuse_ours,
    PART_RATES,
)
BATCH = "train_batch_size"
HALF_BATCH = MemoryChange("half the batch size", "noisier steps", {}, lambda given, _: _batch_size(given) > 1)

# By what they cost: nothing first, then time, then quality. One that only a change before it makes possible is asked
# for once more.
CHANGES: tuple[MemoryChange, ...] = (
    MemoryChange("cache the latents", "nothing", {"cache_latents": True}, _off("cache_latents")),
    MemoryChange("cache the text encoders' outputs", "nothing", {"cache_text_encoder_outputs": True}, _text_outputs),
    MemoryChange("keep the EMA on the CPU", "some time", {"ema_device": "cpu"}, _averages),
    FUSED,
    MemoryChange(
        "gradient checkpointing",
        "about a quarter more time",
        {"gradient_checkpointing": True},
        _off("gradient_checkpointing"),
    ),
    MemoryChange("optimizer AdamW8bit", "a little precision", {"optimizer_type": "AdamW8bit"}, _half_states),
    HALF_BATCH,
    TO_ADACOOR,
    FUSED,
    TO_FUSED_ADACOOR,
    MemoryChange(
        "bf16 weights (full_bf16)",
        "precision of small steps",
        {"full_bf16": True, "mixed_precision": "bf16"},
        _full_bf16,
    ),
)


def one_by_one(
    command: ScriptCommand, known: frozenset[str]
) -> Generator[tuple[MemoryChange, ScriptCommand], bool, None]:
    """Each change that applies after those that were kept, and the command with all of them.

    Args:
        command: as it is.
        known: the arguments of its script.

    Yields:
        The change and the changed command; `send(True)` keeps it.
    """
    for change in CHANGES:
        while change.applies(command.given(), known):
            one = _halved(command) if change is HALF_BATCH else change
            tried = changed(command, one)
            if not (yield one, tried):
                break
            command = tried
            if change is not HALF_BATCH:
                break


def _batch_size(given: Given) -> int:
    return int(given.get(BATCH) or 1)


def _halved(command: ScriptCommand) -> MemoryChange:
    size = _batch_size(command.given()) // 2
    return replace(HALF_BATCH, text=f"batch size {size}", arguments={BATCH: size})


def changed(command: ScriptCommand, *changes: MemoryChange) -> ScriptCommand:
    """A command with changes made to it."""
    result = deepcopy(command)
    for change in changes:
        for name in change.dropped:
            if not _is_zero(result.value(name)):  # a part that is not trained is not to be trained now
                result.drop(name)
        for name, value in change.arguments.items():
            result.give(name, value)
    return result


def _is_zero(rate: Any) -> bool:
    try:
        return rate is not None and float(rate) == 0
    except (TypeError, ValueError):
        return False
