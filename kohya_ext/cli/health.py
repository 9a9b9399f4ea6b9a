"""`kohya-ext status` only looks; `kohya-ext doctor` also recovers, and checks what a run needs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kohya_ext.cli.common import (
    add_checkout,
    add_json,
    checkout_json,
    clear_abandoned_saves,
    find_checkout,
    find_environment,
    known_environments,
)
from kohya_ext.core.console import Output
from kohya_ext.core.errors import DONE, FOUND_PROBLEMS, RECOVERED, UsageError

if TYPE_CHECKING:
    from kohya_ext.checkout.checkout import Checkout
    from kohya_ext.checkout.environment import Environment
    from kohya_ext.install.manifest import Known
    from kohya_ext.install.requirements import Check
    from kohya_ext.install.status import Status

MARKS = {"ok": "ok", "warning": "warning", "problem": "PROBLEM"}

AS_INSTALLED = {"ours": "as installed"}  # the states of files, in words for people


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands."""
    parser = subparsers.add_parser("status", help="show what is installed in a checkout, and what has changed since")
    add_checkout(parser)
    parser.add_argument("--hooks", action="store_true", help="also list every hook with the file that defines it")
    add_json(parser)
    parser.set_defaults(run=status)
    parser = subparsers.add_parser(
        "doctor", help="check everything a run needs, recover an interrupted install, show fixes for the rest"
    )
    add_checkout(parser)
    parser.add_argument(
        "--python", metavar="PATH", help="the Python that runs Kohya (interpreter or environment folder)"
    )
    add_json(parser)
    parser.set_defaults(run=doctor)


def status(arguments: argparse.Namespace) -> int:
    """Report; exit 1 when something is to be fixed."""
    from kohya_ext.install import apply

    out = Output("status", arguments.json)
    checkout = find_checkout(arguments.checkout, out)
    recorded = apply.installed(checkout)
    found = apply.status(checkout, known_environments(checkout, recorded) if recorded else None)
    _show(out, found, with_hooks=arguments.hooks)
    return out.finish(found.exit_code, checkout=checkout_json(checkout), **found.as_json())


def doctor(arguments: argparse.Namespace) -> int:
    """Recover, report, check; exit 5 after a recovery, 1 when a problem is left, else 0."""
    from kohya_ext.install import apply, repair
    from kohya_ext.install import update as updating

    out = Output("doctor", arguments.json)
    checkout = find_checkout(arguments.checkout, out)
    recovery = apply.recover(checkout)
    if recovery is not None:
        out.item("recovered", str(recovery))
    resumed = updating.resume(checkout)
    if resumed is not None:
        out.item("recovered", "an interrupted update: kohya_ext is installed again")
    environments = _environments(arguments, checkout)
    repaired = repair.environments(checkout, environments)
    for one in repaired:
        out.item("recovered", one)
    cleared = clear_abandoned_saves(checkout, out)
    found = apply.status(checkout, environments)
    _show(out, found, with_hooks=False)
    environment = _environment(environments, checkout, out)
    checks = _checked(out, checkout, environment, patched=found.installed)
    failed = not found.clean or environment is None or any(check.level == "problem" for check in checks)
    recovered = recovery is not None or resumed is not None or bool(repaired) or bool(cleared)
    code = RECOVERED if recovered else FOUND_PROBLEMS if failed else DONE
    out.line()
    out.line("Problems found: the fixes are above." if failed else "No problems found.")
    return out.finish(
        code,
        checkout=checkout_json(checkout),
        recovered={"verb": recovery.verb, "side": recovery.side} if recovery else None,
        repaired=repaired,
        status=found.as_json(),
        environment=environment.as_json() if environment else None,
        checks=[check.as_json() for check in checks],
    )


def _environments(arguments: argparse.Namespace, checkout: Checkout) -> Known:
    """The one that was named, else those that the package was put into, else the one that a search finds."""
    from pathlib import Path

    from kohya_ext.checkout.environment import inspect
    from kohya_ext.install import apply
    from kohya_ext.install.manifest import Known

    recorded = apply.installed(checkout)
    if arguments.python is None:
        return known_environments(checkout, recorded)
    named = inspect(Path(arguments.python))
    remembered = known_environments(checkout, recorded).present if recorded else ()
    digests = [digest for one, digest in remembered if one.purelib == named.purelib]
    return Known(((named, digests[0] if digests else None),))


def _environment(environments: Known, checkout: Checkout, out: Output) -> Environment | None:
    """The last of `environments`; the first search says which one there is, or why there is none."""
    if not environments.present:
        try:
            return find_environment(checkout, None, out)
        except UsageError as error:
            out.item("PROBLEM", str(error))
            return None
    one, digest = environments.present[-1]
    how = ", the one installed into" if digest else ""
    out.item("environment", f"{one.python} (Python {one.version}, {one.kind}{how})")
    return one


def _checked(out: Output, checkout: Checkout, environment: Environment | None, *, patched: bool) -> list[Check]:
    from kohya_ext.install import requirements

    if environment is None:
        return []
    checks = requirements.check(checkout, environment, deep=True, patched=patched)
    for check in checks:
        fix = f"\nfix: {check.fix}" if check.fix else ""
        out.item(MARKS[check.level], f"{check.name}: {check.detail}{fix}")
    for said in requirements.GUI_SAYS if checkout.gui_root is not None else ():
        out.item("note", said)
    return checks


def _show(out: Output, found: Status, *, with_hooks: bool) -> None:
    if not found.installed:
        out.item("installed", "no")
    else:
        out.item("installed", f"kohya_ext {found.version}, patch set {found.patch_set}, onto {found.installed_release}")
    for file in found.files:
        out.item(file.kind, f"{file.path}: {file.problem or AS_INSTALLED.get(file.state, file.state)}")
    for package in found.packages:
        out.item("package", f"{package.version or ''} in {package.place}: {package.condition}".strip())
    if with_hooks:
        for row in found.hooks:
            out.item("hook", row.text)
    else:
        present = sum(row.status in ("found", "older") for row in found.hooks)
        out.item("hooks", f"{present} functions of this release found")
    for problem in found.problems:
        out.item("PROBLEM", problem)
    for note in found.notes:
        out.item("note", note)
