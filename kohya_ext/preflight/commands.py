"""What a preset, a file of settings or a command line would run, as scripts and their arguments."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kohya_ext.checkout.checkout import Checkout
from kohya_ext.core.errors import UsageError, did_you_mean
from kohya_ext.preflight.arguments import ScriptCommand, script_command
from kohya_ext.preflight.prepare import MAIN_MODEL, Workplace
from kohya_ext.preflight.stand_ins import family_of
from kohya_ext.presets.command import commands, surroundings
from kohya_ext.presets.document import Preset
from kohya_ext.presets.findings import Finding
from kohya_ext.presets.launch_command import LaunchCommands
from kohya_ext.presets.project import Project
from kohya_ext.presets.release import Release, script_for
from kohya_ext.presets.script_choice import script_named, script_of
from kohya_ext.presets.script_config import config_findings, settings_of
from kohya_ext.presets.script_run import script_run
from kohya_ext.presets.script_values import typed_values
from kohya_ext.presets.toml_document import read_document
from kohya_ext.presets.training_rules import training_findings

NAME = "preflight"


@dataclass(frozen=True)
class Given:
    """What the user names besides the settings; None and empty: stand-ins."""

    data: Path | None = None
    model: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Planned:
    """commands: the scripts, the training last. findings: what a check of the text says. form: the GUI's fields."""

    commands: list[ScriptCommand]
    findings: list[Finding] = field(default_factory=list)
    form: Mapping[str, Any] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)

    @property
    def training(self) -> ScriptCommand:
        """The script that trains."""
        return self.commands[-1]


def of_preset(
    preset: Preset, release: Release, checkout: Checkout, python: Path, given: Given, place: Workplace
) -> Planned:
    """What the installed GUI would run for a preset.

    Args:
        preset: as it ships or as the user's file has it.
        release: its tab of the installed GUI.
        checkout: where it is installed.
        python: that runs Kohya.
        given: data are mirrored, since caches are written next to images.
        place: gets stand-ins for what is not given.

    Returns:
        The preparation steps and the training.

    Raises:
        UsageError: a field or a folder is wrong.
        UnsupportedError: the release cannot take the preset, or its code cannot be followed.
    """
    script = script_for(release.schema.tab, preset.values)
    in_concept = release.schema.tab != "finetune" or checkout.gui_root is None
    if given.data is None:
        data, place.own_images = place.images(in_concept=in_concept), True
    else:
        data = _mirror(given.data, place)
    model = given.model or place.model(NAME, family_of(script, v2=preset.values.get("v2") is True))
    project = Project(data, model, place.folder / "output", NAME, given.fields)
    place.output(".")
    where = surroundings(checkout, python, time.strftime("%Y%m%d-%H%M%S"))
    installed = replace(release, patched=True)  # a preset of ours is meant for such a checkout
    try:
        launch = commands(preset, installed, checkout, project, where)
    except UsageError as error:
        raise UsageError(place.by_their_names(str(error))) from error
    for name, text in launch.prompts.items():  # below the output folder, which is ours
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")
    training = script_run(launch, installed)
    form = {**preset.values, **given.fields}
    findings = [] if training is None else list(training_findings(training, form, installed))
    return Planned(_scripts(launch), findings, form, launch.complaints)


def _scripts(launch: LaunchCommands) -> list[ScriptCommand]:
    found = []
    steps: list[Any] = [*launch.preparation, launch.training]
    for step in steps:
        words = shlex.split(step) if isinstance(step, str) else list(step or ())
        command = script_command(words, launch.toml if step is launch.training else {})
        if command is not None:
            found.append(command)
    if not found:
        raise UsageError("this release's GUI runs no script for these settings")
    return found


def of_file(name: str, script: str | None, release: Release, checkout: Checkout, given: Given) -> Planned:
    """What a TOML file of settings starts.

    Args:
        name: of the file.
        release: the training code.
        checkout: where that is installed.
        given: takes the place of what the file says.
        script: its name, when the settings do not tell it.

    Returns:
        The one script.

    Raises:
        UsageError: the file is not one of settings, or has no script.
    """
    document = read_document(Path(name))
    if document.kind == "dataset":
        raise UsageError(f"{name}: a data set configuration starts no training: give it to a file of settings")
    settings = dict(settings_of(document.content).values)
    _fill(settings, given)
    chosen = script_named(script, release) if script else script_of(document, settings, release)
    settings.update(typed_values(given.fields, chosen, release.arguments_of(chosen), {}))
    findings = config_findings(replace(document, content=settings), chosen, release)
    file = str(checkout.training_root / chosen)
    return Planned([ScriptCommand(file, ["--config_file", str(document.path)], settings)], findings, settings)


def _fill(settings: dict[str, Any], given: Given) -> None:
    if given.data is not None and not settings.get("dataset_config"):
        settings["train_data_dir"] = str(given.data.resolve())
    elif not settings.get("dataset_config"):
        settings.setdefault("train_data_dir", "(none given)")
    settings[MAIN_MODEL] = given.model or settings.get(MAIN_MODEL) or "(none given)"
    settings.setdefault("output_dir", "output")
    settings.setdefault("output_name", NAME)


def of_words(words: Sequence[str], release: Release, checkout: Checkout, given: Given) -> Planned:
    """A script and its flags, as they would stand on a command line.

    Raises:
        UsageError: the release has no such script.
    """
    command = script_command(list(words), {})
    if command is None:
        raise UsageError(f"{' '.join(words)}: name a training script after --, as in: -- sdxl_train.py FLAGS...")
    file = checkout.training_root / Path(command.script).name
    if not file.is_file():
        close = did_you_mean(file.name, release.trainers())
        raise UsageError(f"{checkout.training_root} has no script {file.name}{close}")
    command.script = str(file)
    for name, value in (("train_data_dir", given.data and str(given.data.resolve())), (MAIN_MODEL, given.model)):
        if value:
            command.drop(name)
            command.words.append(f"--{name}={value}")
    for name, value in given.fields.items():
        command.drop(name)
        command.words.append(f"--{name}={value}")
    return Planned([command], [], command.given())


def digest_of(command: ScriptCommand, release: Release) -> str:
    """Under which runs of a command leave what they measure; "" where that cannot be told."""
    launched = LaunchCommands(training=[command.script, *command.words], toml={"": command.settings})
    found = script_run(launched, release)
    return "" if found is None else found.settings(command.settings)


def _mirror(folder: Path, place: Workplace) -> Path:
    try:
        if not folder.is_dir():
            raise UsageError(f"--data {folder}: no such folder")
        return place.mirror(folder)
    except OSError as error:
        raise UsageError(f"--data {folder}: cannot be read: {error.strerror or error}") from error
