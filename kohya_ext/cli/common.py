"""What the commands on a checkout share: arguments, the search for checkout and environment, the manifest's word."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kohya_ext.cli.output import Output, agreed, at_terminal, chosen

if TYPE_CHECKING:
    from kohya_ext.install.checkout import AmbiguousError, Checkout, Found
    from kohya_ext.install.environment import Environment
    from kohya_ext.install.manifest import Manifest

CHECKOUT_HELP = (
    "kohya_ss or sd-scripts folder; when omitted: the current folder's, a running GUI's, the templates' places"
)


ALONE = ("install", "uninstall", "status", "doctor", "update")  # commands whose only words are the checkout's


def add_checkout(parser: argparse.ArgumentParser) -> None:
    """The argument CHECKOUT."""
    parser.add_argument("checkout", nargs="?", metavar="CHECKOUT", help=CHECKOUT_HELP)


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option --json."""
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of lines")


def add_changing(parser: argparse.ArgumentParser) -> None:
    """The options of commands that change a checkout."""
    parser.add_argument("--dry-run", action="store_true", help="print the unified diff, write nothing")
    parser.add_argument("--yes", action="store_true", help="do not ask (without a terminal nothing is asked anyway)")
    parser.add_argument(
        "--no-package", action="store_true", help="leave Python environments alone: only the checkout is changed"
    )


def find_checkout(argument: str | None, out: Output, *, leaving: bool = False) -> Checkout:
    """Search, and say what was found; where several may be meant, a person is asked.

    leaving: to take us out of it. Raises UnsupportedError; UsageError where several may be meant and nobody is asked.
    """
    from kohya_ext.install.checkout import AmbiguousError, search

    try:
        found = search(argument, os.environ, leaving=leaving)
    except AmbiguousError as error:
        found = _one_of(error, out)
    for reason in found.rejected:
        out.item("skipped", reason)
    checkout = found.checkout
    how = "" if found.how == "given" else f", found in {found.how}"
    out.item("checkout", f"{checkout.root} ({checkout.kind} {checkout.release}, {checkout.layout}{how})")
    return checkout


def _one_of(error: AmbiguousError, out: Output) -> Found:
    from dataclasses import replace  # here, since it loads `ast`: `kohya-ext --help` stays quick

    from kohya_ext.errors import UsageError

    if at_terminal() and not out.as_json:
        out.line("More than one checkout may be meant:")
        number = chosen("Which one?", [f"{choice.checkout.root} ({choice.how})" for choice in error.choices])
        if number is not None:
            return replace(error.choices[number], how="given")
    root = shlex.quote(str(error.choices[0].checkout.root))
    example = f", for example: kohya-ext {out.command} {root}" if out.command in ALONE else ""
    raise UsageError(f"{error}{example}")


def find_gui(argument: str | None, out: Output) -> Checkout:
    """The same for commands that read the GUI: they go on, with a warning, where the training code is missing."""
    from kohya_ext.install.checkout import HalfCheckoutError

    try:
        return find_checkout(argument, out)
    except HalfCheckoutError as error:
        if error.gui is None:
            raise
        out.warn(f"{error} Until then nothing is judged by the training script's arguments")
        return error.gui


def find_environment(checkout: Checkout, argument: str | None, out: Output) -> Environment:
    """Search, and say what was found. Raises UsageError."""
    from kohya_ext.install.environment import search

    found = search(checkout, argument, os.environ, fallback=Path(sys.executable))
    environment = found.environment
    how = "" if found.how == "given" else f", found in {found.how}"
    out.item("environment", f"{environment.python} (Python {environment.version}, {environment.kind}{how})")
    for warning in found.warnings:
        out.warn(warning)
    return environment


def training_allows(
    out: Output, checkout: Checkout, environments: Sequence[Environment], *, yes: bool, dry_run: bool = False
) -> bool:
    """Whether to change what a running training uses: said in any case, done with --yes or a person's answer.

    Raises ConflictError where a training runs and nobody is there to answer.
    """
    from kohya_ext.errors import ConflictError
    from kohya_ext.install.places import machine
    from kohya_ext.install.processes import processes_of, running_trainings

    pythons = [environment.python for environment in environments]
    found = running_trainings(processes_of(machine(os.environ)), [checkout.root], pythons)
    if not found:
        return True
    said = f"a training is running in {checkout.root} or its environment: {', '.join(map(str, found))}"
    if yes or dry_run:
        out.warn(said)
        return True
    if not at_terminal() or out.as_json:
        raise ConflictError(f"{said}. Nothing was changed. Run this again when it has ended, or now with --yes")
    out.warn(said)
    return agreed("Go on while it is running?", yes=False, default=False)


def recorded_environments(recorded: Manifest | None) -> list[Environment]:
    """The environments that the package was put into for this checkout and that still exist."""
    from kohya_ext.errors import UsageError
    from kohya_ext.install.environment import inspect

    present = []
    for row in package_rows(recorded):
        with contextlib.suppress(UsageError):
            present.append(inspect(Path(row["python"]), home=row.get("home")))
    return present


def package_rows(recorded: Manifest | None) -> list[dict[str, Any]]:
    """What the manifest remembers: [{"python": path of the interpreter, "home": HOME to run it with or None}]."""
    package: Mapping[str, Any] = (recorded.package if recorded else None) or {}
    rows = package.get("environments")
    return [dict(row) for row in rows if isinstance(row, dict) and "python" in row] if isinstance(rows, list) else []


def package_record(recorded: Manifest | None, environment: Environment) -> dict[str, Any]:
    """What the manifest shall remember once the package is in `environment` as well."""
    row = {"python": str(environment.python), "home": environment.home}
    rows = package_rows(recorded)
    return {"environments": rows if row in rows else [*rows, row]}


def checkout_json(checkout: Checkout) -> dict[str, Any]:
    """The fields of a checkout that `--json` shows."""
    return {
        "root": str(checkout.root),
        "kind": checkout.kind,
        "release": checkout.release,
        "layout": checkout.layout,
    }
