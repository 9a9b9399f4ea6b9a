"""`kohya-ext install` and `kohya-ext uninstall`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kohya_ext.cli.common import (
    add_changing,
    add_checkout,
    add_json,
    checkout_json,
    clear_abandoned_saves,
    environments_to_install,
    environments_to_leave,
    find_checkout,
    training_allows,
    training_environments,
)
from kohya_ext.core import shell
from kohya_ext.core.about import NAME, PACKAGE
from kohya_ext.core.console import Output, agreed
from kohya_ext.core.errors import DONE

if TYPE_CHECKING:
    from kohya_ext.checkout.checkout import Checkout
    from kohya_ext.checkout.environment import Environment
    from kohya_ext.files.journal import Change
    from kohya_ext.install.apply import Outcome
    from kohya_ext.install.manifest import Manifest

PATCH_SETS = ("hook", "inline")
PRESETS_ONLY = "presets"
FIRST_PRESETS_LIST = (22,)  # the finetune tab has a list of presets from v22.0.0


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands."""
    parser = subparsers.add_parser("install", help="install AdaCoor, EMA and the presets into a Kohya checkout")
    add_checkout(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--patch-set", choices=PATCH_SETS, help="hook (default), or inline for forks that it does not fit"
    )
    what.add_argument("--presets-only", action="store_true", help="install the presets, patch nothing")
    parser.add_argument(
        "--python", metavar="PATH", help="the Python that runs Kohya (interpreter or environment folder)"
    )
    parser.add_argument(
        "--fix-warmup", action="store_true", help="write lr_warmup = 0 into config.toml where gradio 6 needs it"
    )
    add_changing(parser)
    add_json(parser)
    parser.set_defaults(run=install)
    parser = subparsers.add_parser("uninstall", help="remove kohya_ext; the checkout is byte-identical to before")
    add_checkout(parser)
    add_changing(parser)
    add_json(parser)
    parser.set_defaults(run=uninstall)


def install(arguments: argparse.Namespace) -> int:
    """Find checkout and environment, plan, put the package in, change the checkout, and say what is left to do."""
    from kohya_ext import presets
    from kohya_ext.checkout import merging
    from kohya_ext.install import apply, pending
    from kohya_ext.install.plan import patch_set_there
    from kohya_ext.presets.machine import has_xformers

    out = Output("install", arguments.json)
    checkout = find_checkout(arguments.checkout, out)
    merging.refuse(checkout)
    recorded = apply.installed(checkout)
    left = pending.read(checkout.root)
    there = recorded.patch_set if recorded else left.patch_set if left else patch_set_there(checkout)
    patch_set = _patch_set(arguments, there)
    environments: list[Environment] = []
    if not arguments.no_package and not arguments.presets_only:
        environments = environments_to_install(checkout, recorded, arguments.python, out)
    environment = environments[-1] if environments else None
    train = environments or training_environments(checkout, arguments.python)
    wanted = presets.collect(checkout, xformers=has_xformers(train))
    replaces = not arguments.presets_only and _replaces(checkout, recorded, environments, patch_set, wanted)
    allowed = not replaces or training_allows(out, checkout, environments, yes=arguments.yes, dry_run=arguments.dry_run)
    if arguments.dry_run:
        outcome = apply.install(checkout, patch_set=patch_set, presets=wanted, environments=environments, dry_run=True)
        return _dry_run(out, checkout, outcome, environment, verbose=arguments.verbose)
    if not allowed or not agreed(f"Install into {checkout.root}?", yes=arguments.yes):
        out.line("Nothing was changed.")
        return out.finish(DONE, checkout=checkout_json(checkout), changed=False)
    outcome = apply.install(checkout, patch_set=patch_set, presets=wanted, environments=environments)
    pending.end(checkout.root)  # of an update that was killed: done by this
    clear_abandoned_saves(checkout, out)
    for result in outcome.packages:
        out.item("package", result.detail)
    _report(out, outcome, patch_set)
    checks = _checks(out, checkout, environment, patched=patch_set != PRESETS_ONLY)
    _offer_warmup(out, checkout, environment, arguments)
    restart = _what_next(out, checkout, environment, patch_set) if checkout.gui_root else None
    return out.finish(
        DONE,
        checkout=checkout_json(checkout),
        environment=environment.as_json() if environment else None,
        package=outcome.as_json()["packages"][-1] if outcome.packages else None,
        patch_set=patch_set,
        **outcome.as_json(),
        checks=checks,
        restart=restart,
    )


def _replaces(
    checkout: Checkout,
    recorded: Manifest | None,
    environments: list[Environment],
    patch_set: str,
    presets: dict[str, bytes],
) -> bool:
    """Whether an install would change what an earlier one put there, and a running training may have loaded."""
    from kohya_ext.install import apply
    from kohya_ext.install import package as packages

    there = {packages.state(environment) for environment in environments}
    if recorded is None and there <= {"absent"}:
        return False
    if there - {"same"} or apply.interrupted(checkout):
        return True
    planned = apply.install(checkout, patch_set=patch_set, presets=presets, environments=environments, dry_run=True)
    return bool(planned.plan.changes)


def _patch_set(arguments: argparse.Namespace, before: str | None) -> str:
    """A second install without options keeps what the first one chose."""
    installed = before if before in PATCH_SETS else None
    if arguments.presets_only:
        return installed or PRESETS_ONLY
    return str(arguments.patch_set or installed or PATCH_SETS[0])


def _dry_run(
    out: Output, checkout: Checkout, outcome: Outcome, environment: Environment | None, *, verbose: bool
) -> int:
    """Show the patch, and how many preset files; all of both with `verbose` or as JSON."""
    from kohya_ext.install import package

    if environment is not None:
        there = package.state(environment)
        said = {"absent": "would be installed into", "other": "would replace the copy in"}.get(there, "is in")
        out.item("package", f"{NAME} {said} {environment.place}")
    if not outcome.plan.changes:
        out.line("Nothing to do: everything is in place.")
    diff = outcome.plan.diff()
    if shown := diff if verbose or out.as_json else outcome.plan.diff(presets=False):
        out.line(shown.rstrip("\n"))
    if outcome.plan.presets and not verbose:
        out.item("presets", _counted(outcome.plan.presets))
    _kept_and_notes(out, outcome)
    return out.finish(DONE, dry_run=True, checkout=checkout_json(checkout), **outcome.as_json(), diff=diff)


def _counted(changes: Sequence[Change]) -> str:
    """`8 files to add in presets/finetune/user_presets (--verbose shows them)`."""
    kinds = {"to add": 0, "to change": 0, "to remove": 0}
    for change in changes:
        kinds["to remove" if change.after is None else "to add" if change.before is None else "to change"] += 1
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    folders = sorted({change.path.rpartition("/")[0] for change in changes})
    return f"{counts} in {', '.join(folders)} (--verbose shows their content)"


def _report(out: Output, outcome: Outcome, patch_set: str) -> None:
    if outcome.recovery is not None:
        out.item("recovered", str(outcome.recovery))
    for change in outcome.plan.changes:
        verb = "removed" if change.after is None else "added" if change.before is None else "changed"
        out.item(verb, change.path)
    if not outcome.changed:
        out.item("unchanged", "everything is in place already")
    elif patch_set in PATCH_SETS and outcome.plan.verb == "install":
        out.item("backup", "the originals are in .kohya_ext/backup; kohya-ext uninstall restores them")
    if outcome.plan.hooks:
        found = [row for row in outcome.plan.hooks if row.status in ("found", "older")]
        out.item("hooks", f"{len(found)} functions of this release found")
    _kept_and_notes(out, outcome)


def _kept_and_notes(out: Output, outcome: Outcome) -> None:
    for path in outcome.plan.kept:
        out.item("kept", f"{path} (not from kohya_ext, or edited since)")
    for note in outcome.plan.notes:
        out.item("note", note)


def _checks(
    out: Output, checkout: Checkout, environment: Environment | None, *, patched: bool
) -> list[dict[str, Any]] | None:
    """What a run needs besides: shown with its fix, but no reason to fail, for our part is done."""
    from kohya_ext.install import requirements

    if environment is None:
        return None
    checks = requirements.check(checkout, environment, patched=patched)
    unset = [check for check in checks if check.level == "problem"]
    if any(check.name == requirements.TORCH for check in unset):  # no use in naming the rest one by one
        names = ", ".join(check.name for check in unset)
        out.item("missing", f"{names}: not in {environment.place}\nfix: {unset[0].fix}")
    else:
        for check in checks:
            if check.level != "ok":
                label = "missing" if check.level == "problem" else "note"
                fix = f"\nfix: {check.fix}" if check.fix else ""
                out.item(label, f"{check.name}: {check.detail}{fix}")
    return [check.as_json() for check in checks]


def _offer_warmup(
    out: Output, checkout: Checkout, environment: Environment | None, arguments: argparse.Namespace
) -> None:
    """The fix for gradio 6 is a line in a file of the user's: written only when told to."""
    from kohya_ext.install import gui_gradio, requirements

    if environment is None or checkout.gui_root is None or gui_gradio.warmup_is_number(checkout):
        return
    if requirements.gradio(checkout, environment).level == "ok":
        return
    told: bool = arguments.fix_warmup
    if not told and not arguments.yes and sys.stdin and sys.stdin.isatty() and sys.stdout.isatty():
        told = agreed(f"Write {gui_gradio.CURE} into {checkout.root / gui_gradio.CONFIG}?", yes=False)
    if told:
        path = gui_gradio.write_warmup(checkout)
        out.item("written", f"{path}: {gui_gradio.CURE} (yours from now on: uninstall keeps it)")


def _what_next(out: Output, checkout: Checkout, environment: Environment | None, patch_set: str) -> str:
    from kohya_ext.checkout.known_locations import restart_hint
    from kohya_ext.core.shell import console_script
    from kohya_ext.install.requirements import numbers
    from kohya_ext.spec.flags import ENABLE_EMA, SECTION
    from kohya_ext.spec.optimizers import ADACOOR

    restart = restart_hint(checkout.root, os.environ)
    out.line()
    out.item("next steps", restart)
    listed = checkout.layout == "submodule" or (
        checkout.presets_dir and numbers(checkout.release) >= FIRST_PRESETS_LIST
    )
    how = "choose a preset under user_presets" if listed else "open one of presets/finetune/user_presets with Load"
    if patch_set in PATCH_SETS:
        out.item("", f"Finetune tab: {how}, or {ADACOOR.setting}.")
        out.item("", f"EMA: tick {ENABLE_EMA.label} under {SECTION}.")
    else:
        out.item("", f"Finetune tab: {how}.")
    if environment is not None:
        script = console_script(environment.scripts)
        program = [script] if script else [environment.python, "-m", PACKAGE]
        out.item("", f"Check: {shell.line(*program, 'doctor', checkout.root)}")
    return restart


def uninstall(arguments: argparse.Namespace) -> int:
    """Put the originals back; then, when no other checkout needs it, take the package out of the environment."""
    import kohya_ext.runtime.safe_save  # noqa: F401 - the package may be gone when we clear abandoned saves
    from kohya_ext import presets
    from kohya_ext.checkout import merging
    from kohya_ext.install import apply, pending
    from kohya_ext.presets.machine import has_xformers

    out = Output("uninstall", arguments.json)
    checkout = find_checkout(arguments.checkout, out, leaving=True)
    merging.refuse(checkout)
    recorded = apply.installed(checkout)
    wanted = (
        presets.collect(checkout, xformers=has_xformers(training_environments(checkout))) if recorded is None else {}
    )
    environments = [] if arguments.no_package else environments_to_leave(checkout, recorded)
    allowed = not (recorded or environments) or training_allows(
        out, checkout, environments, yes=arguments.yes, dry_run=arguments.dry_run
    )
    if arguments.dry_run:
        outcome = apply.uninstall(checkout, presets=wanted, dry_run=True)
        return _dry_run(out, checkout, outcome, None, verbose=arguments.verbose)
    if not allowed or (recorded and not agreed(f"Uninstall kohya_ext from {checkout.root}?", yes=arguments.yes)):
        out.line("Nothing was changed.")
        return out.finish(DONE, checkout=checkout_json(checkout), changed=False)
    outcome = apply.uninstall(checkout, presets=wanted, environments=environments)
    pending.end(checkout.root)
    clear_abandoned_saves(checkout, out)
    if outcome.plan.changes or outcome.recovery:
        _report(out, outcome, recorded.patch_set if recorded else "")
    else:
        _kept_and_notes(out, outcome)
    for result in outcome.packages:
        out.item("package", result.detail)
    return out.finish(DONE, checkout=checkout_json(checkout), **outcome.as_json())
