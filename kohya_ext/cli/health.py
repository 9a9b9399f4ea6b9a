"""`kohya-ext status` only looks; `kohya-ext doctor` also recovers, and checks what a run needs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kohya_ext.cli.common import (
    add_checkout,
    add_json,
    checkout_json,
    find_checkout,
    find_environment,
    recorded_environments,
)
from kohya_ext.cli.output import Output
from kohya_ext.errors import DONE, FOUND_PROBLEMS, RECOVERED, UsageError

if TYPE_CHECKING:
    from kohya_ext.install.checkout import Checkout
    from kohya_ext.install.environment import Environment
    from kohya_ext.install.requirements import Check
    from kohya_ext.install.status import Status

MARKS = {"ok": "ok", "warning": "warning", "problem": "PROBLEM"}


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands."""
    parser = subparsers.add_parser("status", help="what is installed in a checkout, and what has drifted since")
    add_checkout(parser)
    parser.add_argument("--hooks", action="store_true", help="also list every hook with the file that defines it")
    add_json(parser)
    parser.set_defaults(run=status)
    parser = subparsers.add_parser(
        "doctor", help="check all a run needs, recover an interrupted install, say the cures"
    )
    add_checkout(parser)
    parser.add_argument(
        "--python", metavar="PATH", help="the Python that runs Kohya (interpreter or environment folder)"
    )
    add_json(parser)
    parser.set_defaults(run=doctor)


def status(arguments: argparse.Namespace) -> int:
    """Report; exit 1 when something needs a cure."""
    from kohya_ext.install import status as states

    out = Output("status", arguments.json)
    checkout = find_checkout(arguments.checkout, out)
    found = states.status(checkout)
    _show(out, found, with_hooks=arguments.hooks)
    return out.finish(found.exit_code, checkout=checkout_json(checkout), **found.as_json())


def doctor(arguments: argparse.Namespace) -> int:
    """Recover, report, check; exit 5 after a recovery, 1 when a problem is left, else 0."""
    from kohya_ext.install import apply
    from kohya_ext.install import status as states
    from kohya_ext.install import update as updating

    out = Output("doctor", arguments.json)
    checkout = find_checkout(arguments.checkout, out)
    recovery = apply.recover(checkout)
    if recovery is not None:
        out.item("recovered", str(recovery))
    resumed = updating.resume(checkout)
    if resumed is not None:
        out.item("recovered", "an interrupted update: our files are on again")
    found = states.status(checkout)
    _show(out, found, with_hooks=False)
    environment = _environment(arguments, checkout, out)
    checks = _checked(out, checkout, environment, patched=found.installed)
    failed = not found.clean or environment is None or any(check.level == "problem" for check in checks)
    code = RECOVERED if recovery is not None or resumed is not None else FOUND_PROBLEMS if failed else DONE
    out.line()
    out.line("Problems found: see above for the cures." if failed else "No problems found.")
    return out.finish(
        code,
        checkout=checkout_json(checkout),
        recovered={"verb": recovery.verb, "side": recovery.side} if recovery else None,
        status=found.as_json(),
        environment=environment.as_json() if environment else None,
        checks=[check.as_json() for check in checks],
    )


def _environment(arguments: argparse.Namespace, checkout: Checkout, out: Output) -> Environment | None:
    from kohya_ext.install import apply

    if arguments.python is None:
        recorded = recorded_environments(apply.installed(checkout))
        if recorded:
            one = recorded[-1]
            out.item("environment", f"{one.python} (Python {one.version}, {one.kind}, the one installed into)")
            return one
    try:
        return find_environment(checkout, arguments.python, out)
    except UsageError as error:
        if arguments.python is not None:
            raise
        out.item("PROBLEM", str(error))
        return None


def _checked(out: Output, checkout: Checkout, environment: Environment | None, *, patched: bool) -> list[Check]:
    from kohya_ext.install import requirements

    if environment is None:
        return []
    checks = requirements.check(checkout, environment, deep=True, patched=patched)
    for check in checks:
        cure = f"\ncure: {check.cure}" if check.cure else ""
        out.item(MARKS[check.level], f"{check.name}: {check.detail}{cure}")
    return checks


def _show(out: Output, found: Status, *, with_hooks: bool) -> None:
    if not found.installed:
        out.item("installed", "no")
    else:
        out.item("installed", f"kohya_ext {found.version}, patch set {found.patch_set}, onto {found.installed_release}")
    for file in found.files:
        out.item(file.kind, f"{file.path}: {file.problem or file.state}")
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
