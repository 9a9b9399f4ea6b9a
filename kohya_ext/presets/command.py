"""A preset as the commands that the installed GUI would run, for training without the GUI."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kohya_ext.core import shell
from kohya_ext.core.errors import UsageError
from kohya_ext.presets.check import effective
from kohya_ext.presets.convert import convert, parse_number, shown_at_start
from kohya_ext.presets.document import Preset
from kohya_ext.presets.fit import fit_to_release
from kohya_ext.presets.keys import SECRETS
from kohya_ext.presets.launch_command import LaunchCommands, Surroundings, as_sent, launch_commands
from kohya_ext.presets.machine import WITHOUT
from kohya_ext.presets.privacy import holds_secret
from kohya_ext.presets.project import Project
from kohya_ext.presets.release import Release
from kohya_ext.presets.rules import contradictions, training_defects
from kohya_ext.presets.schema import Schema, offering_ours
from kohya_ext.presets.script_run import ScriptRun, script_run
from kohya_ext.presets.start import WORDS
from kohya_ext.presets.toml_document import toml_value
from kohya_ext.presets.training_rules import training_findings
from kohya_ext.presets.without_gui import commands_without_gui
from kohya_ext.pysource.sources import FolderSources

if TYPE_CHECKING:
    from kohya_ext.checkout.checkout import Checkout

PROMPTS = "sample_prompts"  # a field with their text, and an argument that names a file with it
EPOCHS = "max_train_epochs"  # precedes every other length of the training
MERGE = "merge_captions_to_metadata.py"  # the step that writes the captions' metadata
# Up to v23.1 commands are lines for a shell; what means something there, and what still does between double quotes.
SHELL_CHARACTERS = ("$", "`", "\\", ";", "|", "&", "<", ">", "\n", "\r")
QUOTE = '"'


def commands(
    preset: Preset, release: Release, checkout: Checkout, project: Project, where: Surroundings
) -> LaunchCommands:
    """What the GUI of the checkout would run for a preset and a project; of bare sd-scripts, what its scripts take.

    Raises UsageError when the data folder is missing or empty, a field is unknown or a text would mean something else
    in a shell; UnsupportedError when the release cannot take the preset or its code cannot be followed.
    """
    if checkout.gui_root is None:
        return commands_without_gui(preset, release, project, where)
    schema = offering_ours(release.schema)
    form: dict[str, Any] = {}
    for key, one in schema.fields.items():
        start = shown_at_start(one)
        form[key] = "" if key in SECRETS or not start.usable else start.value
    fitted = fit_to_release(preset, release, loaded=False, keep_personal=True)
    form.update(fitted.values)
    form.update({key: preset.values[key] for key in WORDS if isinstance(preset.values.get(key), str) and key in form})
    form.update(project.settings(schema.tab))
    form.update(_typed(project.fields, schema))
    form = {key: as_sent(value, schema.fields.get(key), release.gradio) for key, value in form.items()}
    images = project.images(schema.tab)
    result = launch_commands(release.gui or FolderSources(checkout.root), schema.tab, form, images, where)
    _refuse_what_a_shell_reads(result, form, project.settings(schema.tab))
    if project.model_is_missing:
        result.complaints.append(f"--model {project.model}: there is no such file")
    result.complaints += [
        f"{one.key} changed from {one.before} to {one.after}: {one.reason}"
        for one in fitted.steps
        if one.reason == WITHOUT or (one.action == "changed" and parse_number(one.before) != parse_number(one.after))
    ]
    result.complaints += _without_effect(project.fields, form)
    result.complaints += _complaints(preset, form, release, result)
    result.prompts = dict(_prompts(script_run(result, release), form))
    return result


def _prompts(training: ScriptRun | None, form: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    file, text = None if training is None else training.value(PROMPTS), form.get(PROMPTS)
    if isinstance(file, str) and file and isinstance(text, str):
        yield file, text


def _without_effect(given: Collection[str], form: Mapping[str, Any]) -> Iterator[str]:
    """Lengths of the training that were given while the one that precedes them was not."""
    epochs = parse_number(form.get(EPOCHS) or 0)
    for key in ("epoch", "max_train_steps"):
        if epochs and key in given and EPOCHS not in given:
            yield f"{key} has no effect while {EPOCHS} is {epochs:g}: give --set {EPOCHS}=N"


def _complaints(preset: Preset, form: Mapping[str, Any], release: Release, result: LaunchCommands) -> Iterator[str]:
    """What the user should know before running the commands."""
    secret = sorted(key for key in SECRETS if holds_secret(key, preset.values.get(key)))
    if secret:
        yield f"{', '.join(secret)} skipped: secrets are not taken from presets; give them with --set"
    trained = effective(form, release)
    findings = [*contradictions(trained, release), *training_defects(trained, release)]
    training = script_run(result, release)
    keys = {finding.key for finding in findings}
    if training is not None:
        findings += [one for one in training_findings(training, form, release) if one.key not in keys]
    for finding in findings:
        if finding.level == "error":
            yield f"{finding.key}: {finding.effect}; {finding.fix}"
    if form.get("create_caption") is True and MERGE not in str(result.preparation):
        yield (
            f"this release's GUI never runs {MERGE} (a fault of v24.1.2 and v24.1.3): no metadata is there unless "
            "you run it first; or use another release"
        )


def _refuse_what_a_shell_reads(result: LaunchCommands, form: Mapping[str, Any], project: Mapping[str, str]) -> None:
    """The GUI's own words have none of these characters: where a line holds one, a setting brought it."""
    line = "".join(command for command in (*result.preparation, result.training) if isinstance(command, str))
    if not line:
        return
    meant = [character for character in SHELL_CHARACTERS if character in line]
    for key, value in form.items():
        quoted = key in project and QUOTE in str(value)
        if isinstance(value, str) and (quoted or any(character in value for character in meant)):
            raise UsageError(
                f"{key} = {value!r}: this release builds a shell line, where quotes and $ ` \\ ; | & < > mean "
                "something else; change it, rename the file or folder"
            )
    if meant:
        raise UsageError(f"a setting puts {' '.join(map(repr, meant))} into the shell line of this release")


def _typed(fields: Mapping[str, str], schema: Schema) -> dict[str, Any]:
    """Fields given as text, as the GUI's fields hold them. Raises UsageError."""
    typed = {}
    for key, text in fields.items():
        one = schema.fields.get(key)
        if one is None:
            raise UsageError(f"{key}: the {schema.tab} tab of this release has no such field")
        converted = convert(text, one)
        if not converted.usable or converted.problem:
            raise UsageError(f"{key}: {converted.problem}")
        typed[key] = converted.value
    return typed


def shell_line(command: str | Sequence[str]) -> str:
    """A command as it can be pasted into a shell."""
    return command if isinstance(command, str) else shell.line(*command)


def as_toml(settings: Mapping[str, Any]) -> str:
    """Settings as TOML; strings, numbers, switches and lists of these are all a training script takes."""
    return "".join(f"{key} = {toml_value(value)}\n" for key, value in settings.items())


def run(launch: LaunchCommands, checkout: Checkout, python: Path, output: Path) -> int:
    """Runs the commands in the checkout with its environment; the exit code of the first that fails, else 0.

    Like the GUI it makes the output folder; unlike the GUI it stops when a preparation step fails.
    Raises UsageError when the folder cannot be made or written to, or when the environment lacks the launcher.
    """
    environ = _environ(checkout, python)
    steps = [*launch.preparation, *([] if launch.training is None else [launch.training])]
    for program in (step[0] for step in steps if not isinstance(step, str)):
        if shutil.which(program, path=environ["PATH"]) is None:
            raise UsageError(
                f"{program} is neither in {python.parent} nor on PATH, and Kohya starts training with it: activate "
                f"Kohya's environment, or finish its own setup (setup.sh or gui-uv.sh)"
            )
    try:
        output.mkdir(parents=True, exist_ok=True)
        _write_files(launch)
    except OSError as error:
        raise UsageError(f"{output}: cannot be written: {error.strerror or error}") from error
    for step in steps:
        code = subprocess.run(step, shell=isinstance(step, str), cwd=checkout.root, env=environ).returncode
        if code:
            return code
    return 0


def _write_files(launch: LaunchCommands) -> None:
    """The TOML file and the file of sample prompts."""
    for name, text in {**{name: as_toml(settings) for name, settings in launch.toml.items()}, **launch.prompts}.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")


def _environ(checkout: Checkout, python: Path) -> dict[str, str]:
    """The environment that the GUI gives its training: both trees importable, its own programs first."""
    environ = dict(os.environ)
    trees = dict.fromkeys(str(folder) for folder in (checkout.root, checkout.training_root))
    environ["PYTHONPATH"] = os.pathsep.join([*trees, *filter(None, [environ.get("PYTHONPATH")])])
    environ["PATH"] = os.pathsep.join([str(python.parent), environ.get("PATH", os.defpath)])
    return environ


def surroundings(checkout: Checkout, python: Path, stamp: str) -> Surroundings:
    """The GUI's surroundings in a checkout with that Python."""
    programs = (python.parent / name for name in ("accelerate", "accelerate.exe"))
    accelerate = next((str(path) for path in programs if path.is_file()), "accelerate")
    return Surroundings(str(checkout.root), str(python), accelerate, stamp)
