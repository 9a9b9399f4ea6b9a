"""`kohya-ext resume`: the command that continues an interrupted run from its last complete state."""

from __future__ import annotations

import argparse
from pathlib import Path

from kohya_ext.cli.common import add_json
from kohya_ext.core.console import Output
from kohya_ext.core.errors import DONE


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    verb = subparsers.add_parser("resume", help="continue an interrupted run from its last complete state")
    verb.add_argument("folder", type=Path, metavar="RUN", help="the output folder of the run, or one of its states")
    verb.add_argument("--name", help="the run's output name, where a folder holds several runs")
    what = verb.add_mutually_exclusive_group()
    what.add_argument("--run", dest="run_it", action="store_true", help="run the command, and end with its exit code")
    what.add_argument("--dry-run", action="store_true", help="print the command only (the default)")
    add_json(verb)
    verb.set_defaults(run=resume)


def resume(arguments: argparse.Namespace) -> int:
    """Find the state, print the command, and run it where that is asked for."""
    from dataclasses import asdict

    from kohya_ext.resume.command import command, run
    from kohya_ext.resume.states import last

    out = Output("resume", arguments.json)
    state, found = last(arguments.folder, arguments.name)
    place = state.record.position
    for one in found.unusable:
        out.item("not taken", f"{one.folder}: {one.why}")
    out.item("state", f"{state.folder}: step {place.step} of {place.total}, epoch {place.epoch + 1}")
    made = command(state)
    details = {
        "state": str(state.folder),
        "complete": state.complete,
        "position": asdict(place),
        "command": list(made.words),
        "folder": made.folder,
        "environment": made.environment,
        "omitted": state.record.launch.omitted,
        "unusable": [{"state": str(one.folder), "why": one.why} for one in found.unusable],
    }
    if state.complete:
        total = "--max_train_epochs" if state.record.settings.get("max_train_epochs") else "--max_train_steps"
        out.item("done", f"all its steps have been made; raise {total} in the command to train on")
    if state.record.launch.omitted:
        out.warn(f"add {', '.join(state.record.launch.omitted)} to the command: their values are not in the state")
    out.item("run" if arguments.run_it else "command", made.text)
    if not arguments.run_it:
        return out.finish(DONE, **details)
    return out.finish(run(made, quiet=arguments.json), **details)
