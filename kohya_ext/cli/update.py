"""`kohya-ext update`."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from kohya_ext.cli.common import (
    add_checkout,
    add_json,
    checkout_json,
    find_checkout,
    training_allows,
)
from kohya_ext.core.console import Output, agreed
from kohya_ext.core.errors import DONE, FOUND_PROBLEMS

if TYPE_CHECKING:
    from kohya_ext.checkout.checkout import Checkout
    from kohya_ext.install.update import Preview


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser("update", help="uninstall, git pull with submodules, install again")
    add_checkout(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask (nothing is asked without a terminal)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done and pulled, change nothing")
    add_json(parser)
    parser.set_defaults(run=update)


def update(arguments: argparse.Namespace) -> int:
    """Update; exit 1 with git's words when git refused, with our files on again."""
    from kohya_ext.checkout.known_locations import restart_hint
    from kohya_ext.install import apply
    from kohya_ext.install import update as updating
    from kohya_ext.install.manifest import known

    out = Output("update", arguments.json)
    checkout = find_checkout(arguments.checkout, out)
    if arguments.dry_run:
        return _dry_run(out, updating.preview(checkout), checkout)
    environments = known(checkout.root, apply.installed(checkout)).environments
    allowed = training_allows(out, checkout, environments, yes=arguments.yes)
    if not allowed or not agreed(f"Update {checkout.root} with git pull?", yes=arguments.yes):
        out.line("Nothing was changed.")
        return out.finish(DONE, checkout=checkout_json(checkout), changed=False)
    done = updating.update(checkout, out.item)
    if done.reinstalled is not None:
        out.item("installed", ", ".join(change.path for change in done.reinstalled.plan.changes))
        for path in done.reinstalled.plan.kept:
            out.item("kept", f"{path} (not from kohya_ext, or edited since)")
    out.item("release", f"{done.before} -> {done.after}" if done.before != done.after else done.after)
    if done.failure is not None:
        out.warn(done.failure)
    elif checkout.gui_root is not None:
        out.item("next steps", restart_hint(checkout.root, os.environ))
    return out.finish(
        DONE if done.failure is None else FOUND_PROBLEMS,
        checkout=checkout_json(checkout),
        before=done.before,
        after=done.after,
        failure=done.failure,
        reinstalled=done.reinstalled.as_json() if done.reinstalled else None,
    )


def _dry_run(out: Output, planned: Preview, checkout: Checkout) -> int:
    """Exit 1 where the remote cannot be asked, as the update itself would."""
    out.item("uninstall", ", ".join(planned.files) or "nothing: kohya_ext is not installed here")
    out.item("git", f"{planned.command}: {planned.news}")
    out.item("install", "the same files again, fitted to the release that was pulled")
    if planned.failure is not None:
        out.warn(planned.failure)
    return out.finish(
        DONE if planned.failure is None else FOUND_PROBLEMS,
        dry_run=True,
        checkout=checkout_json(checkout),
        files=list(planned.files),
        commits_to_pull=planned.behind,
        failure=planned.failure,
    )
