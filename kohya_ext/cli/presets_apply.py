"""The `presets` commands that make something: fit, install, command."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from kohya_ext.cli import presets_flat, presets_toml
from kohya_ext.cli.common import (
    add_changing,
    add_checkout,
    add_json,
    find_checkout,
    find_environment,
    training_environments,
)
from kohya_ext.cli.preset_lookup import (
    NAME_HELP,
    TABS,
    given_fields,
    is_toml,
    preset_named,
    preset_to_fit,
    release_to_train,
    say_steps,
    write_out,
)
from kohya_ext.core.console import Output
from kohya_ext.core.errors import DONE, UsageError


def register(verbs: argparse._SubParsersAction[Any]) -> None:
    """Add the three commands."""
    verb = verbs.add_parser("fit", help="make a preset complete and valid for the installed GUI")
    verb.add_argument("name", metavar="FILE", help=NAME_HELP)
    verb.add_argument("--out", metavar="FILE", required=True, help="where to write it")
    verb.add_argument("--tab", choices=TABS, help="when the path does not tell it")
    verb.add_argument("--dry-run", action="store_true", help="show what would be changed, write nothing")
    presets_toml.add_script(verb)
    add_checkout(verb)
    add_json(verb)
    verb.set_defaults(run=fit)
    verb = verbs.add_parser("refit", help="fit the installed presets to the release that is there now")
    verb.add_argument("--dry-run", action="store_true", help="show what would be changed, write nothing")
    verb.add_argument("--python", metavar="PATH", help="the Python that runs Kohya")
    add_checkout(verb)
    add_json(verb)
    verb.set_defaults(run=refit)
    _register_command(verbs)
    _register_install(verbs)


def _register_command(verbs: argparse._SubParsersAction[Any]) -> None:
    verb = verbs.add_parser("command", help="print what the installed GUI would run for a preset, preparation included")
    verb.add_argument("name", metavar="NAME", help=NAME_HELP)
    images = "the images with their captions; for other tabs than finetune in folders called REPEATS_NAME"
    verb.add_argument("--data", metavar="DIR", required=True, type=Path, help=images)
    verb.add_argument("--model", metavar="FILE", required=True, help="the base model: file, folder or name on a hub")
    verb.add_argument("--output", metavar="DIR", required=True, type=Path, help="where model and metadata are written")
    verb.add_argument("--name", dest="output_name", metavar="NAME", default="last", help="name of the model (last)")
    verb.add_argument(
        "--set", dest="fields", metavar="KEY=VALUE", action="append", default=[], help="any other field of the tab"
    )
    verb.add_argument("--python", metavar="PATH", help="the Python that runs Kohya")
    presets_toml.add_script(verb)
    verb.add_argument("--tab", choices=TABS, help="when the path does not tell it")
    verb.add_argument(
        "--toml", action="store_true", help="print the TOML file that training reads (kohya_ss v24 and later)"
    )
    verb.add_argument("--run", dest="run_it", action="store_true", help="run the commands; exit with training's code")
    add_checkout(verb)
    add_json(verb)
    verb.set_defaults(run=command)


def _register_install(verbs: argparse._SubParsersAction[Any]) -> None:
    verb = verbs.add_parser("install", help="install presets into a checkout, fitted to its GUI; patches nothing")
    verb.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="bundled presets (default: all); a folder is taken as the checkout",
    )
    add_changing(verb)
    add_json(verb)
    verb.set_defaults(run=install)


def fit(arguments: argparse.Namespace) -> int:
    """Fit one preset and write it, as JSON or TOML. Raises UnsupportedError when the release lacks what it requires."""
    from kohya_ext.presets.document import dump_values
    from kohya_ext.presets.explained import with_about
    from kohya_ext.presets.fit import fit_to_release
    from kohya_ext.presets.warm_up import drop_refused_warm_up

    if is_toml(arguments.name):
        return presets_toml.fit(arguments)
    if is_toml(arguments.out):
        return presets_flat.fit_to_toml(arguments)
    out = Output("presets fit", arguments.json)
    preset, repairs, release = preset_to_fit(arguments, out)
    fitted = fit_to_release(preset, release)
    drop_refused_warm_up(fitted, release)
    target = Path(arguments.out)
    if not arguments.dry_run:
        write_out(target, dump_values(with_about(preset, fitted.values, release)))
    say_steps(fitted, out)
    filled = sum(step.action == "filled" for step in fitted.steps)
    if filled:
        out.item("filled", f"{filled} absent keys with the GUI's own defaults")
    out.item("would write" if arguments.dry_run else "written", f"{target} ({len(fitted.values)} settings)")
    return out.finish(
        DONE, file=str(target), values=fitted.values, repairs=repairs, steps=[step.as_json() for step in fitted.steps]
    )


def install(arguments: argparse.Namespace) -> int:
    """Install presets by name, keeping the others. Raises UnsupportedError when the release cannot take one."""
    from kohya_ext.core.errors import UnsupportedError
    from kohya_ext.install import apply
    from kohya_ext.install.manifest import known
    from kohya_ext.presets.collection import collect_all
    from kohya_ext.presets.document import bundled, find_bundled
    from kohya_ext.presets.machine import has_xformers

    out = Output("presets install", arguments.json)
    folders = [name for name in arguments.names if Path(name).is_dir()]
    if len(folders) > 1:
        raise UsageError(f"one checkout at a time, not {' and '.join(folders)}")
    chosen = {find_bundled(name).name for name in arguments.names if name not in folders}
    checkout = find_checkout(folders[0] if folders else None, out)
    recorded = apply.installed(checkout)
    there = {Path(entry.path).stem for entry in recorded.files if entry.kind == "preset"} if recorded else set()
    wanted = [preset for preset in bundled() if not chosen or preset.name in chosen | there]
    collection = collect_all(checkout, wanted, xformers=has_xformers(training_environments(checkout)))
    for name, reason in collection.refused.items():
        if name in chosen:
            raise UnsupportedError(reason)
        out.item("skipped", f"{name}: {reason}")
    patch_set = recorded.patch_set if recorded else "presets"
    # a newer copy of us brings its own lines along, and then the package must be of the same version
    environments = known(checkout.root, recorded).environments if patch_set != "presets" else []
    outcome = apply.install(
        checkout,
        patch_set=patch_set,
        presets=collection.files,
        environments=environments,
        dry_run=arguments.dry_run,
    )
    for change in outcome.plan.changes:
        out.item("would add" if arguments.dry_run else "written", change.path)
    if arguments.dry_run and arguments.verbose:
        out.line(outcome.plan.diff().rstrip("\n"))
    for path in outcome.plan.kept:
        out.item("kept", f"{path} (not from kohya_ext, or edited since)")
    if not outcome.plan.changes:
        out.item("unchanged", "everything is in place already")
    elif not arguments.dry_run:
        out.item("next steps", "restart the GUI and reload the page: it reads its list of presets at start only")
    return out.finish(DONE, refused=collection.refused, **outcome.as_json())


def refit(arguments: argparse.Namespace) -> int:
    """What an upgrade of Kohya asks for: the installed presets for the release that is there now, the rest as it is."""
    from kohya_ext import presets
    from kohya_ext.checkout.environment import inspect
    from kohya_ext.install import apply
    from kohya_ext.presets.machine import has_xformers

    out = Output("presets refit", arguments.json)
    checkout = find_checkout(arguments.checkout, out)
    recorded = apply.installed(checkout)
    named = [inspect(Path(arguments.python))] if arguments.python else training_environments(checkout)
    wanted = presets.collect(checkout, xformers=has_xformers(named))
    outcome = apply.refit(checkout, wanted, dry_run=arguments.dry_run)
    for change in outcome.plan.presets:
        verb = "removed" if change.after is None else "fitted"
        out.item(f"would be {verb}" if arguments.dry_run else verb, change.path)
    for path in outcome.plan.kept:
        out.item("kept", f"{path} (edited since)")
    if not outcome.plan.presets:
        out.item("unchanged", f"the presets fit {checkout.release}")
    before = recorded.release if recorded else None
    return out.finish(DONE, before=before, release=checkout.release, **outcome.as_json())


def command(arguments: argparse.Namespace) -> int:
    """Print the commands, or run them and pass the exit code on."""
    import time

    from kohya_ext.presets.command import as_toml, commands, run, shell_line, surroundings
    from kohya_ext.presets.project import Project
    from kohya_ext.tensors.families import refuse_refiner

    if is_toml(arguments.name):
        return presets_toml.command(arguments)
    refuse_refiner(Path(arguments.model))
    out = Output("presets command", arguments.json)
    quiet = Output("presets command", as_json=True)  # the commands alone go to standard output
    checkout = find_checkout(arguments.checkout, quiet)
    environment = find_environment(checkout, arguments.python, quiet)
    python = environment.python
    preset = preset_named(arguments.name, arguments.tab)
    release = release_to_train(checkout, preset.tab, environment)
    fields = given_fields(arguments.fields)
    project = Project(arguments.data, arguments.model, arguments.output, arguments.output_name, fields)
    if arguments.run_it and project.model_is_missing:
        raise UsageError(f"--model {project.model}: there is no such file; nothing was run")
    where = surroundings(checkout, python, time.strftime("%Y%m%d-%H%M%S"))
    result = commands(preset, release, checkout, project, where)
    for complaint in result.complaints:
        out.warn(complaint)
    if arguments.run_it:
        return run(result, checkout, python, arguments.output.resolve())
    if arguments.toml and not result.toml:
        raise UsageError(f"kohya_ss {checkout.release} passes its settings on the command line: there is no TOML file")
    for settings in result.toml.values() if arguments.toml else ():
        out.document(as_toml(settings))
    lines = [*result.preparation, result.training or ""]
    for line in () if arguments.toml else lines:
        out.document(shell_line(line) + "\n")
    return out.finish(
        DONE, folder=str(checkout.root), preparation=result.preparation, training=result.training, toml=result.toml
    )
