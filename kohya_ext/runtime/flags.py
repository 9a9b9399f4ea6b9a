"""Our command-line flags, on every training script: they are added where Kohya adds its optimizer's."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

from kohya_ext.errors import CONFLICT
from kohya_ext.runtime import legacy
from kohya_ext.runtime.report import say, stop

# `default=None` where we must tell "not given" from the default; `options.py` fills in and checks. Kohya reads its TOML
# files into the same namespace without converting, so nothing here may be trusted to have its type.
FLAGS: dict[str, dict[str, Any]] = {
    "--enable_ema": {
        "action": "store_true",
        "help": "keep an exponential moving average (EMA) of the trained weights and save it beside them",
    },
    "--ema_decay": {"type": float, "help": "decay of the EMA for each optimizer step (default 0.9995)"},
    "--ema_schedule": {
        "choices": ["debiased", "constant", "warmup", "exp", "power"],
        "help": "how the EMA starts: debiased (default) leaves no share to the start model, constant is the plain EMA",
    },
    "--ema_update_every": {
        "type": int,
        "help": "update the EMA every N optimizer steps, decay compensated (default 1)",
    },
    "--ema_start_step": {"type": int, "help": "leave the first N optimizer steps out of the EMA (default 0)"},
    "--ema_device": {
        "choices": ["auto", "cuda", "cpu"],
        "help": "where the EMA is kept: auto (default) takes the GPU if at least 20 %% of its memory stays free",
    },
    "--ema_dtype": {
        "choices": ["float32", "bfloat16"],
        "help": "type of the EMA (default float32; bfloat16 is rounded stochastically)",
    },
    "--ema_save": {
        "choices": ["beside", "only"],
        "help": "save the EMA as NAME-ema beside the raw weights (default), or only the EMA, under the plain name",
    },
    "--ema_sample": {
        "choices": ["raw", "ema", "both"],
        "help": "weights that sample images are made from (default raw)",
    },
    "--ema_sigma_rel": {"type": float, "help": "relative width of the average for --ema_schedule power, 0 to 0.28"},
    "--ema_exp_beta": {"type": float, "help": "old command lines: selects the schedule exp (0: warmup)"},
    "--ema_save_only_ema_weights": {"action": "store_true", "help": "old command lines: the same as --ema_save only"},
    "--kohya_ext_log_every": {
        "type": int,
        "help": "every N steps, log the effective learning rate and the share of weights that moved (default 0: never)",
    },
}


# Each stays away as a whole where a fork has a flag of the same name: half of it would be read from the fork's flag.
FEATURES = {
    "EMA": tuple(flag for flag in FLAGS if "ema" in flag),
    "telemetry": tuple(flag for flag in FLAGS if "ema" not in flag),
}

# feature -> the fork's flag that it gave way to
gave_way: dict[str, str] = {}


def add_optimizer_arguments(original: Callable[..., Any], parser: argparse.ArgumentParser) -> Any:
    """Kohya's optimizer flags, then ours. In a tree with old replaced files: Kohya's only, or the end of the run."""
    result = original(parser)
    if legacy.found():
        # a TOML may ask for them as well: options.read decides when that has been read
        if any(word.partition("=")[0] in FLAGS for word in sys.argv):
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
    ours: set[argparse.Action] = set()

    @functools.wraps(parse)
    def parse_known_args(*args: Any, **kwargs: Any) -> Any:
        if not ours:
            ours.update(_add(parser))
        return parse(*args, **kwargs)

    @functools.wraps(matching)
    def get_option_tuples(word: str) -> list[Any]:
        # what is short for a flag of Kohya's alone stays so: --enable_b is not made ambiguous by --enable_ema
        found = matching(word)
        return [match for match in found if match[0] not in ours] or found

    parser.parse_known_args = parse_known_args  # type: ignore[method-assign]
    parser._get_option_tuples = get_option_tuples  # type: ignore[assignment,method-assign]


def _add(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    group = parser.add_argument_group("kohya_ext")
    for feature, names in FEATURES.items():
        theirs = next((flag for flag in names if flag in parser._option_string_actions), None)
        if theirs is None:
            yield from (group.add_argument(flag, **FLAGS[flag]) for flag in names)
        elif feature not in gave_way:
            gave_way[feature] = theirs
            say(f"this fork has a {theirs} of its own: {feature} of kohya_ext is not available in it")
