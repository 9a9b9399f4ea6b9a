"""`kohya-ext preflight`: will it start, what will it train, does it fit the card: the installed script is asked."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from kohya_ext.cli.common import add_json, find_checkout, find_environment
from kohya_ext.cli.parser import Parser
from kohya_ext.cli.preset_lookup import NAME_HELP, TABS, given_fields, is_toml, preset_named, release_to_train
from kohya_ext.cli.presets_toml import SCRIPT_HELP
from kohya_ext.core.console import Output
from kohya_ext.core.errors import DONE, FOUND_PROBLEMS, UsageError

if TYPE_CHECKING:
    from kohya_ext.checkout.checkout import Checkout
    from kohya_ext.checkout.environment import Environment
    from kohya_ext.preflight.commands import Given, Planned
    from kohya_ext.preflight.prepare import Workplace
    from kohya_ext.presets.release import Release

ONLY = ("start", "data", "memory")
COMMAND = "script_words"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser("preflight", help="will it start, what will it train, does it fit")
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"{NAME_HELP}, or after -- a script of sd-scripts and its flags; a folder is taken as the checkout",
    )
    parser.add_argument("--data", metavar="DIR", type=Path, help="your images (default: a few generated ones)")
    parser.add_argument("--model", metavar="FILE", help="the base model (default: a full-size one, shapes alone)")
    parser.add_argument(
        "--set", dest="fields", metavar="KEY=VALUE", action="append", default=[], help="any other field or argument"
    )
    parser.add_argument("--tab", choices=TABS, help="when the path does not tell it")
    parser.add_argument("--script", metavar="NAME", help=SCRIPT_HELP)
    parser.add_argument("--python", metavar="PATH", help="the Python that runs Kohya")
    parser.add_argument("--only", choices=ONLY, help="stop when this is answered (default: all three)")
    parser.add_argument("--card", metavar="CARD", help="the card to judge by: its memory or name (24GB, 'RTX 4090')")
    parser.add_argument("--price", metavar="PER_HOUR", type=float, help="of the card: says what all steps cost")
    add_json(parser)
    if isinstance(parser, Parser):
        parser.any_order, parser.after_dashes = True, COMMAND
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Ask, and print the answer; exit code 1 where the run would not start, not fit, or train nothing."""
    from kohya_ext.cli.preflight_report import say
    from kohya_ext.preflight.child import workplace
    from kohya_ext.preflight.commands import Given
    from kohya_ext.preflight.memory import card_memory
    from kohya_ext.preflight.prepare import Workplace
    from kohya_ext.preflight.run import Preflight

    out = Output("preflight", arguments.json)
    name, folder = _named(arguments)
    if arguments.price is not None and not 0 <= arguments.price < math.inf:
        raise UsageError(f"--price {arguments.price}: give what an hour on the card costs, as in --price 0.4")
    given = Given(arguments.data, _model(arguments.model), given_fields(arguments.fields))
    card = None if arguments.card is None else card_memory(arguments.card)
    checkout = find_checkout(folder, out)
    environment = find_environment(checkout, arguments.python, out)
    _require_kohya(environment)
    with workplace() as temporary:
        place = Workplace(temporary)
        planned, release = _planned(arguments, name, checkout, environment, given, place, out)
        for complaint in planned.complaints:
            out.warn(complaint)
        asked = Preflight(planned, release, checkout, environment.python, place, card)
        answer = asked.answer(arguments.only or "all")
    answer.price = arguments.price
    if arguments.price is not None and answer.hours is None:
        out.warn("--price: no run with these settings has been measured here, so nobody knows how long one takes")
    if card is not None and arguments.only in ("start", "data"):
        out.warn(f"--card is about memory, for which --only {arguments.only} does not ask")
    say(answer, out, arguments.only)
    return out.finish(
        DONE if answer.ok else FOUND_PROBLEMS, folder=str(checkout.root), **answer.as_json(arguments.only)
    )


def _named(arguments: argparse.Namespace) -> tuple[str | None, str | None]:
    """The settings and the checkout, as they are named."""
    folders = [name for name in arguments.names if Path(name).is_dir()]
    names = [name for name in arguments.names if name not in folders]
    words = getattr(arguments, COMMAND)
    missing = [name for name in names if os.sep in name and not Path(name).exists()]
    if missing and len(names) + bool(words) > 1:
        raise UsageError(f"{missing[-1]}: there is no such folder or file")
    if not names and not words:
        raise UsageError(
            "name what is to be trained: a preset (`kohya-ext presets list`), a file of settings, or a script and its "
            "flags after --"
        )
    if len(folders) > 1 or len(names) + bool(words) != 1:
        raise UsageError("name one preset or file, or a script and its flags after --; and at most one checkout")
    return (names[0] if names else None), (folders[0] if folders else None)


def _planned(
    arguments: argparse.Namespace,
    name: str | None,
    checkout: Checkout,
    environment: Environment,
    given: Given,
    place: Workplace,
    out: Output,
) -> tuple[Planned, Release]:
    from kohya_ext.preflight.commands import of_file, of_preset, of_words
    from kohya_ext.presets.release import read_training

    if name is None:
        release = read_training(checkout)
        return of_words(getattr(arguments, COMMAND), release, checkout, given), release
    if is_toml(name):
        release = read_training(checkout)
        return of_file(name, arguments.script, release, checkout, given), release
    preset = preset_named(name, arguments.tab)
    if arguments.tab is None and Path(name).exists():
        out.item("settings", f"{name}, as the {preset.tab} tab has them (--tab {'|'.join(TABS)} for another)")
    release = release_to_train(checkout, preset.tab, environment)
    return of_preset(preset, release, checkout, environment.python, given, place), release


def _model(name: str | None) -> str | None:
    if name is None:
        return None
    if not Path(name).exists():
        raise UsageError(f"--model {name}: there is no such file; without --model the shapes of the published one do")
    return str(Path(name).resolve())


def _require_kohya(environment: Environment) -> None:
    if not environment.runs_kohya:
        raise UsageError(
            f"{environment.python} has no torch or no accelerate: a preflight runs Kohya's script, so finish Kohya's "
            "own setup first, or name its Python with --python PATH"
        )
