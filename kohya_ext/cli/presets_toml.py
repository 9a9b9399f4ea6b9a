"""The `presets` commands on TOML files of sd-scripts: settings of a training, and data set configurations."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kohya_ext.cli import presets_flat
from kohya_ext.cli.common import find_checkout, find_environment, training_environments
from kohya_ext.cli.preset_lookup import write_out, written
from kohya_ext.cli.presets_measured import say_measured
from kohya_ext.core.console import Output
from kohya_ext.core.errors import DONE, UsageError

if TYPE_CHECKING:
    from kohya_ext.checkout.checkout import Checkout
    from kohya_ext.presets.findings import Finding
    from kohya_ext.presets.fit import Fitted
    from kohya_ext.presets.release import Release
    from kohya_ext.presets.toml_document import TomlDocument

DATASET = "dataset"
SCRIPT_HELP = "for a TOML file of settings: the training script that reads it, when its settings do not tell"


def add_script(verb: argparse.ArgumentParser) -> None:
    """The option --script."""
    verb.add_argument("--script", metavar="NAME", help=SCRIPT_HELP)


def checked(name: str, given: str | None, checkout: Checkout) -> tuple[str, str, list[Finding]]:
    """Name of the file, what reads it, and the findings. Raises UsageError, UnsupportedError."""
    from kohya_ext.presets.dataset_config import dataset_findings
    from kohya_ext.presets.machine import has_xformers
    from kohya_ext.presets.release import read_training
    from kohya_ext.presets.script_config import config_findings
    from kohya_ext.presets.toml_document import read_document

    document = read_document(Path(name))
    release = read_training(checkout, xformers=has_xformers(training_environments(checkout)))
    if document.kind == DATASET:
        return document.path.name, "--dataset_config", dataset_findings(document, release)
    script = _script(document, given, release)
    findings = config_findings(document, script, release)
    wrong = {finding.key for finding in findings if finding.level == "error"}
    findings += [one for one in presets_flat.second_gui_findings(document, script, checkout) if one.key not in wrong]
    return document.path.name, script, findings


def _script(document: TomlDocument, given: str | None, release: Release) -> str:
    from kohya_ext.presets.script_choice import script_named, script_of, script_of_preset
    from kohya_ext.presets.script_config import settings_of

    if given:
        return script_named(given, release)
    settings = settings_of(document.content).values
    return script_of_preset(settings, release) or script_of(document, settings, release)


def fit(arguments: argparse.Namespace) -> int:
    """Put one TOML file right and write it."""
    from kohya_ext.presets.release import read_training
    from kohya_ext.presets.toml_document import dump_toml, read_document

    out = Output("presets fit", arguments.json)
    repairs: list[str] = []
    document = read_document(Path(arguments.name), repairs)
    for repair in repairs:
        out.item("repaired", repair)
    release = read_training(find_checkout(arguments.checkout, out))
    if Path(arguments.out).suffix.lower() == presets_flat.JSON and document.kind != DATASET:
        script = _script(document, arguments.script, release)
        return presets_flat.fit_to_json(arguments, document, script, out)
    reader, fitted = _fitted(document, arguments.script, release)
    out.item("read by", reader)
    for step in fitted.steps:
        after = "" if step.action in ("dropped", "renamed", "moved") else f" -> {step.after!r}"
        out.item(step.action, f"{step.key}: {step.before!r}{after} ({step.reason})")
    target = Path(arguments.out)
    if target.suffix.lower() != ".toml":
        other = "" if document.kind == DATASET else " or .json"
        raise UsageError(f"{target}: this TOML file can be written to a name that ends in .toml{other}")
    if not arguments.dry_run:
        write_out(target, dump_toml(fitted.values).encode())
    out.item("would write" if arguments.dry_run else "written", str(target))
    steps = [step.as_json() for step in fitted.steps]
    return out.finish(DONE, file=str(target), reader=reader, values=fitted.values, repairs=repairs, steps=steps)


def _fitted(document: TomlDocument, given: str | None, release: Release) -> tuple[str, Fitted]:
    from kohya_ext.presets.dataset_config import fit_dataset
    from kohya_ext.presets.script_config import fit_config

    if document.kind == DATASET:
        return "--dataset_config", fit_dataset(document, release)
    script = _script(document, given, release)
    return script, fit_config(document, script, release)


def command(arguments: argparse.Namespace) -> int:
    """Print the command that trains with a file of settings, or run it and pass its exit code on."""
    from kohya_ext.presets.command import run, shell_line, surroundings
    from kohya_ext.presets.launch_command import LaunchCommands
    from kohya_ext.presets.machine import has_xformers
    from kohya_ext.presets.release import read_training
    from kohya_ext.presets.script_config import Launch, config_findings, launch_words
    from kohya_ext.presets.toml_document import read_document

    out, quiet = Output("presets command", arguments.json), Output("presets command", as_json=True)
    document = read_document(Path(arguments.name))
    if document.kind == DATASET:
        raise UsageError(f"{document.path}: a data set configuration starts no training: give it to a file of settings")
    checkout = find_checkout(arguments.checkout, quiet)
    if checkout.second_gui and not arguments.script:
        script = _script(document, None, read_training(checkout))
        if presets_flat.starts(script, document, checkout):
            return presets_flat.second_gui_command(arguments, document, checkout, script)
    if arguments.fields or arguments.toml:
        raise UsageError("--set and --toml are for presets of the GUI: a TOML file of settings is read as it is")
    environment = find_environment(checkout, arguments.python, quiet)
    python = environment.python
    release = read_training(checkout, xformers=has_xformers([environment]))
    script = _script(document, arguments.script, release)
    for finding in config_findings(document, script, release):
        if finding.level == "error":
            out.warn(f"{finding.key}: {finding.effect}; {finding.fix}")
    model = Path(arguments.model)
    launch = Launch(
        str(arguments.data.resolve()),
        str(model.resolve()) if model.exists() else arguments.model,
        str(arguments.output.resolve()),
        arguments.output_name,
    )
    known = release.arguments_of(script)
    words = launch_words(
        document, script, str(checkout.training_root), surroundings(checkout, python, ""), launch, known
    )
    if arguments.run_it:
        return run(LaunchCommands(training=words), checkout, python, arguments.output.resolve())
    out.document(shell_line(words) + "\n")
    return out.finish(DONE, folder=str(checkout.root), preparation=[], training=words, toml={})


def show(arguments: argparse.Namespace) -> int:
    """The settings of a TOML file, by section, with what each does."""
    from kohya_ext.presets.settings import grouped
    from kohya_ext.presets.toml_document import read_document

    out = Output("presets show", arguments.json)
    document = read_document(Path(arguments.name))
    values = values_of(document)
    out.row(
        f"{document.path.name} ({'a data set configuration' if document.kind == DATASET else 'settings of sd-scripts'})"
    )
    measured = say_measured(document, arguments.checkout, out)
    groups = grouped(list(values))
    for section, keys in groups.items():
        out.line()
        out.row(section)
        for key in keys:
            out.row(f"  {key:<34} {written(values[key]):<16} {_meaning(key)}".rstrip())
    return out.finish(DONE, name=document.name, tab=None, about={}, values=values, measured=measured, sections=groups)


def values_of(document: TomlDocument) -> dict[str, Any]:
    """Every setting by one name: of a data set configuration by the table that it stands in, too."""
    from kohya_ext.presets.dataset_config import flat
    from kohya_ext.presets.script_config import settings_of

    if document.kind == DATASET:
        return flat(document.content)
    settings = settings_of(document.content)
    nested = {f"{name}.{key}": value for name, table in settings.nested.items() for key, value in table.items()}
    return {**settings.values, **nested}


def _meaning(key: str) -> str:
    """What a setting does, by the script's name for it or by the GUI's."""
    from kohya_ext.presets.keys import KEYS_OF_FLAGS
    from kohya_ext.presets.settings import described

    name = key.rpartition(".")[2]
    return described(name) or described(KEYS_OF_FLAGS.get(name, ""))


def named_values(name: str) -> tuple[str, dict[str, Any]]:
    """Name and settings of a TOML file, for a comparison."""
    from kohya_ext.presets.toml_document import read_document

    document = read_document(Path(name))
    return document.name, values_of(document)
