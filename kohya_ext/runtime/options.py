"""Our command-line flags: added to every training script, read from Kohya's `args`, checked, refused with a reason.

They are added where Kohya adds its optimizer's. It reads its TOML files into the same namespace as the command line,
without converting anything.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from kohya_ext.core.errors import CONFLICT
from kohya_ext.runtime import heldout, legacy
from kohya_ext.runtime.run import run, say, stop
from kohya_ext.spec import adacoor
from kohya_ext.spec.conflicts import FUSED, conflicts
from kohya_ext.spec.flags import (
    BY_KEY,
    EMA,
    ENABLE_EMA,
    EXACT_RESUME,
    FEATURES,
    LOG_EVERY,
    NO_EMA,
    RESUME,
    SAVE_ON_SIGNAL,
    TELEMETRY,
    Flag,
    Values,
    faults,
    without_ema,
)
from kohya_ext.spec.named_arguments import named_arguments
from kohya_ext.spec.optimizers import ours

# beta of the schedule exp where it was chosen by its name
EXP_BETA = 15.0


def add_optimizer_arguments(original: Callable[..., Any], parser: argparse.ArgumentParser) -> Any:
    """Kohya's optimizer flags, then ours. In a tree with old replaced files: Kohya's only, or the end of the run."""
    result = original(parser)
    if legacy.found():
        # a TOML may ask for them as well: options.read decides when that has been read
        if any(word.partition("=")[0].removeprefix("--") in BY_KEY for word in sys.argv if word.startswith("--")):
            stop(legacy.message(), CONFLICT)
        say(legacy.message())
        return result
    _add_when_parsing(parser)
    return result


def _add_when_parsing(parser: argparse.ArgumentParser) -> None:
    """Ours come last, as the command line is read: by then a fork has added its own, which win."""
    if "parse_known_args" in vars(parser):
        return
    parse, matching = parser.parse_known_args, parser._get_option_tuples
    added: set[argparse.Action] = set()

    @functools.wraps(parse)
    def parse_known_args(*args: Any, **kwargs: Any) -> Any:
        if not added:
            added.update(_add(parser))
        result = parse(*args, **kwargs)
        heldout.notice(result[0])
        return result

    @functools.wraps(matching)
    def get_option_tuples(word: str) -> list[Any]:
        # what is short for a flag of Kohya's alone stays so: --enable_b is not made ambiguous by --enable_ema
        found = matching(word)
        return [match for match in found if match[0] not in added] or found

    parser.parse_known_args = parse_known_args  # type: ignore[method-assign]
    parser._get_option_tuples = get_option_tuples  # type: ignore[assignment,method-assign]


def _add(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    group = parser.add_argument_group("kohya_ext")
    for feature, flags in FEATURES.items():
        theirs = next((flag.name for flag in flags if flag.name in parser._option_string_actions), None)
        if theirs is None:
            yield from (group.add_argument(flag.name, **flag.settings) for flag in flags)
        elif feature not in run.yielded:
            run.yielded[feature] = theirs
            say(f"this fork has a {theirs} of its own: {feature} of kohya_ext is not available in it")


@dataclass(frozen=True)
class EmaOptions:
    """What `--enable_ema` and the `--ema_*` flags say, in their final types.

    snapshot_every: steps from one to the next, 0 for one with each save, None for none.
    """

    decay: float
    schedule: str
    update_every: int
    start_step: int
    device: str
    dtype: str
    save: str
    sample: str
    sigma_rel: tuple[float, ...] | None
    exp_beta: float
    snapshot_every: int | None
    snapshot_dtype: str
    snapshot_keep: int | None


def read(args: argparse.Namespace) -> EmaOptions | None:
    """The EMA settings in `args`; None when EMA is off. Stops the run when they cannot be honoured."""
    theirs = run.yielded.get(EMA)
    given = vars(args)
    if theirs is not None and theirs != ENABLE_EMA.name and given.get(ENABLE_EMA.key):  # from a TOML
        stop(f"enable_ema is set, but this fork has a {theirs} of its own: EMA of kohya_ext is not available in it")
    if theirs is not None:
        return None
    _stop_at(ENABLE_EMA, given)
    wanted = ENABLE_EMA.read(given)
    if legacy.found():
        if wanted or ours(getattr(args, "optimizer_type", None)):
            stop(legacy.message(), CONFLICT)
        return None
    if not wanted:
        ignored = without_ema(given)
        if ignored is not None:
            say(f"{ignored} {NO_EMA}")
        return None
    for _, fault in faults(given):
        stop(fault)
    for conflict in conflicts(given):
        stop(f"{conflict.flag}: {conflict.effect}; {conflict.fix}")
    values = {key.removeprefix("ema_"): flag.read(given) for key, flag in BY_KEY.items() if flag.feature == EMA}
    only, exp_beta = values.pop("save_only_ema_weights"), values.pop("exp_beta")
    del values[ENABLE_EMA.key]
    if only:
        values["save"] = "only"
    if exp_beta is not None:
        values["schedule"] = "exp" if exp_beta > 0 else "warmup"
    settings = {field.name: values[field.name] for field in fields(EmaOptions) if field.name in values}
    return EmaOptions(**settings, exp_beta=EXP_BETA if exp_beta is None else exp_beta)


def _stop_at(flag: Flag, given: Values) -> None:
    fault = flag.fault(given)
    if fault is not None:
        stop(fault)


def log_every(args: argparse.Namespace) -> int:
    """The steps from one measurement of the optimizer to the next, 0 for none."""
    if TELEMETRY in run.yielded:
        return 0
    _stop_at(LOG_EVERY, vars(args))
    steps: int = LOG_EVERY.read(vars(args))
    if steps and getattr(args, "deepspeed", False):
        stop(
            f"{LOG_EVERY.name} does not work with DeepSpeed, by which the optimizer sees flat parts of weights, each "
            "group in a step of its own; remove it"
        )
    if steps and legacy.found():
        stop(legacy.message(), CONFLICT)
    return steps


@dataclass(frozen=True)
class ResumeOptions:
    """What `--kohya_ext_exact_resume` and `--kohya_ext_save_on_signal` say; there are none where neither is given."""

    save_on_signal: bool


def exact_resume(args: argparse.Namespace) -> ResumeOptions | None:
    """The settings of an exact resume; None when it is off."""
    if RESUME in run.yielded:
        return None
    given = vars(args)
    for flag in FEATURES[RESUME]:
        _stop_at(flag, given)
    on_signal: bool = SAVE_ON_SIGNAL.read(given)
    if not on_signal and not EXACT_RESUME.read(given):
        return None
    if legacy.found():
        stop(legacy.message(), CONFLICT)
    return ResumeOptions(on_signal)


def check(args: argparse.Namespace) -> None:
    """Stop the run where something that is neither EMA nor measurement was asked for and cannot be done."""
    optimizer = ours(getattr(args, "optimizer_type", None))
    if legacy.found() or optimizer is None:
        return
    deepspeed = getattr(args, "deepspeed", False)
    if deepspeed and named_arguments(getattr(args, "optimizer_args", None)).get(adacoor.AUTO_LR):
        stop(f"{adacoor.AUTO_LR} does not work with DeepSpeed: {adacoor.NO_DEEPSPEED}; give a --learning_rate instead")
    fused = next((flag for flag in FUSED if getattr(args, flag, None)), None)
    if fused is None:
        return
    if deepspeed:
        stop(f"--{fused} does not work with DeepSpeed, which makes its own steps; remove one of them")
    if int(getattr(args, "gradient_accumulation_steps", 1) or 1) != 1:
        stop(f"--{fused} steps in the backward pass: set --gradient_accumulation_steps 1")
    if not optimizer.fused:
        stop(f"--{fused} does not work with {optimizer.name}; remove one of the two")
    if getattr(args, "mixed_precision", None) == "fp16" and not optimizer.loss_scaling:
        stop(f"--{fused} with {optimizer.name} cannot undo the loss scaling of fp16: use --mixed_precision bf16 or no")
