"""Our command-line flags, on every training script: they are added where Kohya adds its optimizer's."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

from kohya_ext.core.errors import CONFLICT
from kohya_ext.runtime import legacy
from kohya_ext.runtime.report import say, stop
from kohya_ext.runtime.run import run
from kohya_ext.spec.flags import BY_KEY, FEATURES


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
    for feature, ours in FEATURES.items():
        theirs = next((flag.name for flag in ours if flag.name in parser._option_string_actions), None)
        if theirs is None:
            yield from (group.add_argument(flag.name, **flag.settings) for flag in ours)
        elif feature not in run.yielded:
            run.yielded[feature] = theirs
            say(f"this fork has a {theirs} of its own: {feature} of kohya_ext is not available in it")
