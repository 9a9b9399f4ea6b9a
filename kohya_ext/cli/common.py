"""What the commands on a checkout share: arguments, the search for checkout and environment, the manifest's word."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kohya_ext.core import shell
from kohya_ext.core.about import NAME, PACKAGE
from kohya_ext.core.console import Output, agreed, at_terminal, chosen

if TYPE_CHECKING:
    from kohya_ext.checkout.checkout import Checkout
    from kohya_ext.checkout.discovery import AmbiguousError, FoundCheckout
    from kohya_ext.checkout.environment import Environment, FoundEnvironment
    from kohya_ext.install.manifest import Known, Manifest

CHECKOUT_HELP = (
    "kohya_ss or sd-scripts folder; when omitted: the current folder's, a running GUI's, the templates' locations"
)


ALONE = ("install", "uninstall", "status", "doctor", "update")  # commands whose only words are the checkout's

IN_JSON_HELP = (
    "metadata of a fine-tune (meta_lat.json), whose captions are trained instead of caption files; default: "
    "one of that name in FOLDER, for images without a caption file"
)


def add_checkout(parser: argparse.ArgumentParser) -> None:
    """The argument CHECKOUT."""
    parser.add_argument("checkout", nargs="?", metavar="CHECKOUT", help=CHECKOUT_HELP)


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option --json."""
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of lines")


def add_changing(parser: argparse.ArgumentParser) -> None:
    """The options of commands that change a checkout."""
    parser.add_argument("--dry-run", action="store_true", help="print the change as a unified diff, write nothing")
    parser.add_argument("--verbose", action="store_true", help="with --dry-run: the preset files too, line by line")
    parser.add_argument("--yes", action="store_true", help="do not ask (nothing is asked without a terminal)")
    parser.add_argument(
        "--no-package", action="store_true", help="do not touch Python environments, change only the checkout"
    )


def require_replaceable(arguments: argparse.Namespace) -> None:
    """Windows can neither remove nor replace a program that runs, such as the one pip has made for us.

    Raises ConflictError for the commands that do so, with the same command by another way.
    """
    started_by = Path(sys.argv[0]).with_suffix(".exe")
    if os.name != "nt" or started_by.name.lower() != f"{NAME}.exe" or not started_by.is_file():
        return
    if not hasattr(arguments, "no_package") or arguments.no_package or arguments.dry_run:
        return
    from kohya_ext.core.errors import ConflictError

    again = shell.line(sys.executable, "-m", PACKAGE, *sys.argv[1:])
    raise ConflictError(f"Windows cannot replace {started_by} while it runs; nothing was changed. Run: {again}")


def find_checkout(argument: str | None, out: Output, *, leaving: bool = False) -> Checkout:
    """Search, and say what was found; where several may be meant, a person is asked.

    leaving: to uninstall from it. Raises UnsupportedError; UsageError where several may be meant and nobody is asked.
    """
    from kohya_ext.checkout.discovery import AmbiguousError, search

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


def _one_of(error: AmbiguousError, out: Output) -> FoundCheckout:
    from dataclasses import replace  # here, since it loads `ast`: `kohya-ext --help` stays quick

    from kohya_ext.core.errors import UsageError

    if at_terminal() and not out.as_json:
        out.line("More than one checkout may be meant:")
        number = chosen("Which one?", [f"{choice.checkout.root} ({choice.how})" for choice in error.choices])
        if number is not None:
            return replace(error.choices[number], how="given")
    root = shell.quoted(error.choices[0].checkout.root)
    example = f", for example: kohya-ext {out.command} {root}" if out.command in ALONE else ""
    raise UsageError(f"{error}{example}")


def find_gui(argument: str | None, out: Output) -> Checkout:
    """The same for commands that read the GUI: they continue with a warning if the training code is missing."""
    from kohya_ext.checkout.checkout import HalfCheckoutError

    try:
        return find_checkout(argument, out)
    except HalfCheckoutError as error:
        if error.gui is None:
            raise
        out.warn(f"{error} Until then the arguments of the training script are not checked")
        return error.gui


def find_environment(checkout: Checkout, argument: str | None, out: Output) -> Environment:
    """Search, and say what was found. Raises UsageError."""
    from kohya_ext.checkout.environment import search

    found = search(checkout, argument, os.environ, fallback=Path(sys.executable))
    _say_found(found, out)
    return found.environment


def training_allows(
    out: Output, checkout: Checkout, environments: Sequence[Environment], *, yes: bool, dry_run: bool = False
) -> bool:
    """Whether to change what a running training uses: said in any case, done with --yes or a person's answer.

    Raises ConflictError where a training runs and nobody is there to answer.
    """
    from kohya_ext.checkout.known_locations import machine
    from kohya_ext.checkout.processes import processes_of, running_trainings
    from kohya_ext.core.errors import ConflictError

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
    return agreed("Continue while it is running?", yes=False, default=False)


SAVES_SEARCHED = 4  # levels below the checkout

# Where a search found an environment that is evidence enough to install into it besides the one that is remembered.
WEAK_EVIDENCE = ("a known location", "the system's Python", "the Python that runs this installer")


def environments_to_install(
    checkout: Checkout, recorded: Manifest | None, argument: str | None, out: Output
) -> list[Environment]:
    """The one that was named; else those that this checkout remembers, and the one that runs it now. Raises UsageError.

    Those remembered are brought to this version too: lines of one version and a package of another do not belong
    together.
    """
    from kohya_ext.checkout.environment import search
    from kohya_ext.core.errors import UsageError
    from kohya_ext.install.manifest import known

    remembered = known(checkout.root, recorded).environments
    wanted = {environment.purelib: environment for environment in remembered}
    try:
        found = search(checkout, argument, os.environ, fallback=Path(sys.executable))
    except UsageError:
        if argument is not None or not wanted:
            raise
    else:
        if argument is not None or not wanted or not (found.warnings or found.how in WEAK_EVIDENCE):
            wanted.pop(found.environment.purelib, None)
            wanted[found.environment.purelib] = found.environment
            _say_found(found, out)
            remembered = [one for one in remembered if one.purelib != found.environment.purelib]
    for environment in remembered:
        _say(environment, ", installed into before", out)
    return list(wanted.values())


def environments_to_leave(checkout: Checkout, recorded: Manifest | None) -> list[Environment]:
    """Those that this checkout remembers; without a record, the one that runs it, should its register name us."""
    from kohya_ext.install.package import read_register

    if recorded is not None:
        from kohya_ext.install.manifest import known

        return known(checkout.root, recorded).environments
    found = known_environments(checkout, None).environments
    return [one for one in found if str(checkout.root) in read_register(one).checkouts]


def _say_found(found: FoundEnvironment, out: Output) -> None:
    _say(found.environment, "" if found.how == "given" else f", found in {found.how}", out)
    for warning in found.warnings:
        out.warn(warning)


def _say(environment: Environment, how: str, out: Output) -> None:
    out.item("environment", f"{environment.python} (Python {environment.version}, {environment.kind}{how})")


def known_environments(checkout: Checkout, recorded: Manifest | None) -> Known:
    """The environments that the package was put into for this checkout; where none is left, the one that a search
    finds.
    """
    from kohya_ext.checkout.environment import search
    from kohya_ext.core.errors import UsageError
    from kohya_ext.install.manifest import Known, known

    found = known(checkout.root, recorded)
    if found.present:
        return found
    try:
        environment = search(checkout, None, os.environ, fallback=Path(sys.executable)).environment
    except UsageError:
        return found
    if not (environment.runs_kohya or environment.modules.get("kohya_ext")):
        return found  # any Python, which says nothing of Kohya's
    return Known(((environment, None),), found.gone)


def training_environments(checkout: Checkout, named: str | None = None) -> list[Environment]:
    """Those that the package was put into for this checkout, else the one that trains for it; empty where there is
    none. Says nothing and never raises: what a preset is judged by where it can be known.

    Args:
        checkout: that is trained from.
        named: the user's choice of a Python, which precedes all others; what is wrong with it is raised.
    """
    from kohya_ext.checkout.environment import search
    from kohya_ext.core.errors import KohyaExtError
    from kohya_ext.install.manifest import known, read

    if named is not None:
        return [search(checkout, named, os.environ).environment]
    with suppress(KohyaExtError):  # `status` and `doctor` speak of a broken record
        if found := known(checkout.root, read(checkout.root)).environments:
            return found
    with suppress(KohyaExtError):
        return [search(checkout, None, os.environ).environment]
    return []


def clear_abandoned_saves(checkout: Checkout, out: Output) -> int:
    """Remove the temporary folders that killed saves of an EMA have left below `checkout`; how many there were.

    They may be as large as a model. Those that a living process uses are not touched; a folder of outputs that lies
    elsewhere is cleared by the next save there.
    """
    import shutil

    from kohya_ext.runtime.safe_save import abandoned
    from kohya_ext.spec.outputs import SAVING_PREFIX

    cleared = 0
    for folder, names, _ in os.walk(checkout.root):
        depth = len(Path(folder).relative_to(checkout.root).parts)
        found = abandoned(Path(folder)) if any(name.startswith(SAVING_PREFIX) for name in names) else []
        for left in found:
            shutil.rmtree(left, ignore_errors=True)
            out.item("recovered", f"{left}: left by a save that was killed; removed")
        cleared += len(found)
        here = Path(folder)
        names[:] = [
            name
            for name in names
            if depth < SAVES_SEARCHED and not name.startswith(".") and not (here / name / "pyvenv.cfg").exists()
        ]
    return cleared


def checkout_json(checkout: Checkout) -> dict[str, Any]:
    """The fields of a checkout that `--json` shows."""
    return {
        "root": str(checkout.root),
        "kind": checkout.kind,
        "release": checkout.release,
        "layout": checkout.layout,
        "second_gui": checkout.second_gui,
    }
