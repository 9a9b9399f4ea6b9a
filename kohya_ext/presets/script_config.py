"""Settings of sd-scripts as TOML (`--config_file`), against the training script that reads them.

A script takes each table's settings as if they stood at the top, puts them into its arguments without asking argparse,
and so converts nothing, checks no choice and never mentions a name that it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from kohya_ext.presets.check import says_nothing
from kohya_ext.presets.dataset_schema import argument_types
from kohya_ext.presets.findings import LEVELS, Finding, Level
from kohya_ext.presets.fit import Fitted
from kohya_ext.presets.keys import DEAD, KEYS_OF_FLAGS
from kohya_ext.presets.launch_command import Surroundings
from kohya_ext.presets.release import Release
from kohya_ext.presets.rules import rate_findings
from kohya_ext.presets.script_run import ScriptRun
from kohya_ext.presets.script_values import converted_value, fault_of, weighed
from kohya_ext.presets.toml_document import TomlDocument, alike, data_set_finding, reader_findings
from kohya_ext.presets.training_rules import optimizer_of, training_findings
from kohya_ext.pysource.arguments import Argument
from kohya_ext.spec import second_gui
from kohya_ext.spec.flags import is_ours
from kohya_ext.spec.optimizers import ours
from kohya_ext.spec.preset_files import TABLE

# What GUIs write into their TOML for themselves; no script reads it.
OF_THE_GUI = frozenset(
    {
        "dynamo_mode",
        "epoch",
        "model_train_type",
        "noise_offset_type",
        "sdxl",
        second_gui.FAMILY,
        second_gui.TRAINING_TYPE,
    }
)
# The GUI's name of a setting -> the script's, as they are mixed up in files written by hand.
GUI_NAMES = {key: name for name, key in KEYS_OF_FLAGS.items()}
# Settings that a script looks at only when another one is given.
ONLY_WITH = {"resume_from_huggingface": "resume"}
ABOUT_FILES = ("config_file", "output_config")
MOST_NAMED = 3
NAMED = "optimizer_type"


@dataclass(frozen=True)
class Settings:
    """What a script gets from a file: `values` by name. nested: tables in tables, which it ignores, by dotted name.

    twice: names that are in two tables -> all their values, of which the last one counts.
    """

    values: Mapping[str, Any]
    nested: Mapping[str, Mapping[str, Any]]
    twice: Mapping[str, list[Any]]


def settings_of(content: Mapping[str, Any]) -> Settings:
    """The settings as a script takes them together."""
    values: dict[str, Any] = {}
    nested: dict[str, Mapping[str, Any]] = {}
    seen: dict[str, list[Any]] = {}
    for section, table in content.items():
        if section == TABLE and isinstance(table, dict):  # says what no script reads
            continue
        pairs = table.items() if isinstance(table, dict) else [(section, table)]
        for key, value in pairs:
            if isinstance(value, dict):
                nested[f"{section}.{key}"] = value
                continue
            seen.setdefault(key, []).append(value)
            values[key] = value
    return Settings(
        values, nested, {key: each for key, each in seen.items() if len(each) > 1 and each[:1] * len(each) != each}
    )


def config_findings(document: TomlDocument, script: str, release: Release) -> list[Finding]:
    """Everything that is wrong or doubtful about settings for a script, the worst first."""
    arguments = release.arguments_of(script)
    settings = settings_of(document.content)
    findings = [*reader_findings(document), *data_set_finding(settings.values), *_placed(settings, arguments, script)]
    types = argument_types(release.training)
    for key, value in settings.values.items():
        argument = arguments.get(key)
        if argument is None:
            findings.append(_unknown(key, settings.values, script, release))
        elif key in ONLY_WITH and not settings.values.get(ONLY_WITH[key]):
            continue
        elif (fault := fault_of(value, argument, types.get(key))) is not None:
            fault = weighed(fault, key, settings.values, script)
            findings.append(Finding(fault.level, fault.rule, key, value, fault.effect, fault.fix))
    if ours(settings.values.get("optimizer_type")) is not None and not release.patched:
        effect = f"{script} stops: this checkout does not have kohya_ext, and so no such optimizer"
        value = settings.values["optimizer_type"]
        findings.append(
            Finding("error", "not-installed", "optimizer_type", value, effect, "kohya-ext install CHECKOUT")
        )
    wrong = {one.key for one in findings if one.level == "error"}
    if isinstance(settings.values.get(NAMED), str):
        wrong.discard(NAMED)  # without its name an optimizer would be judged as the default one
    usable = {key: value for key, value in settings.values.items() if key in arguments and key not in wrong}
    run = ScriptRun(script, {key: _as_parsed(value, arguments[key]) for key, value in usable.items()}, arguments)
    words = " ".join(map(str, run.value("optimizer_args") or ()))
    form = {**settings.values, "optimizer": optimizer_of(run), "optimizer_args": words}
    for one in (*training_findings(run, settings.values, release), *rate_findings(form, release)):
        named = _in_the_scripts_words(one, settings.values)
        if named.key not in wrong:
            findings.append(named)
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))


def _as_parsed(value: Any, argument: Argument) -> Any:
    """A value as argparse would have it, for rules that judge command lines too."""
    if argument.type == "bool":
        return bool(value)
    return value if value != "" else None


def _in_the_scripts_words(finding: Finding, values: Mapping[str, Any]) -> Finding:
    """A finding of a rule that speaks of the GUI's fields, about the arguments of the script."""
    if finding.key == "LoRA_type":
        fix = "name the network of the model family in network_module, or another script with --script"
        return replace(finding, key="network_module", value=values.get("network_module"), fix=fix)
    name = finding.key if finding.key in values else GUI_NAMES.get(finding.key, finding.key)
    fix = finding.fix.replace(finding.key, name)
    return replace(finding, key=name, value=values.get(name), fix=fix)


def _placed(settings: Settings, arguments: Mapping[str, Argument], script: str) -> Iterator[Finding]:
    """Settings in places where they do not count."""
    for name, table in settings.nested.items():
        lost = [key for key, value in table.items() if key in arguments and not says_nothing(key, value)]
        level: Level = "error" if set(lost) - set(settings.values) else "warning"
        several = ", ".join(lost[:MOST_NAMED]) or "nothing that it knows"
        effect = f"{script} ignores a table inside a table: {several}"
        yield Finding(
            level, "nested-table", name, None, effect, "move the settings to the top, or to a table of their own"
        )
    for key, each in settings.twice.items():
        effect = f"it is in two tables, as {' and as '.join(map(repr, each[-2:]))}: the last one counts"
        yield Finding("warning", "given-twice", key, each[-1], effect, "remove one of them")


def _unknown(key: str, values: Mapping[str, Any], script: str, release: Release) -> Finding:
    """A name that is not an argument of the script, which takes it and does nothing with it."""
    arguments, value = release.arguments_of(script), values[key]
    if is_ours(key):
        level: Level = "note" if release.patched else "error"
        effect = "a setting of kohya_ext" if release.patched else "ignored: kohya_ext is not in this checkout"
        return Finding(level, "not-installed", key, value, effect, "kohya-ext install CHECKOUT")
    if key in DEAD or key in OF_THE_GUI or key in ABOUT_FILES:
        return Finding("note", "dead-key", key, value, f"{script} does not read it", "leave it, or remove it")
    if says_nothing(key, value):
        effect = f"ignored: {script} has no such argument, and the value asks for nothing"
        return Finding("note", "neutral-key", key, value, effect, "leave it, or remove it")
    name = renamed(key, arguments)
    if name:
        fix = f"remove it: {name} is there, too" if name in values else f"rename it to {name}"
        return Finding("warning", "renamed-key", key, value, f"lost: {script} ignores it", fix)
    others = [one for one in release.trainers() if one != script and key in release.arguments_of(one)]
    if others:
        effect = f"lost: {script} has no such argument, unlike {', '.join(others[:MOST_NAMED])}"
        return Finding("warning", "wrong-script", key, value, effect, "remove it, or name the script with --script")
    near = get_close_matches(key, arguments, n=1, cutoff=0.8)
    fix = f"did you mean {near[0]}?" if near else "remove it"
    return Finding(
        "warning", "unknown-key", key, value, f"lost: no script of this release has it; {script} ignores it", fix
    )


def renamed(key: str, arguments: Mapping[str, Argument]) -> str:
    """What the script calls a setting that stands there under the GUI's name, or as it is on a command line."""
    plain = key.removeprefix("--").replace("-", "_")
    names = (plain, GUI_NAMES.get(plain, ""))
    return next((name for name in names if name != key and name in arguments), "")


def fit_config(document: TomlDocument, script: str, release: Release) -> Fitted:
    """Settings that the script reads as they are meant, all at the top: what is right stays as it is.

    Tables have no meaning for a script. What it does not know goes, but never a setting of kohya_ext.
    """
    arguments = release.arguments_of(script)
    settings = settings_of(document.content)
    types = argument_types(release.training)
    fitted = Fitted()
    given = dict(settings.values)
    for name, table in settings.nested.items():
        for key, value in table.items():
            if key in arguments and key not in given and not isinstance(value, dict):
                given[key] = value
                fitted.note("moved", f"{name}.{key}", value, value, "a table inside a table is ignored")
    for key, value in given.items():
        argument = arguments.get(key)
        if argument is None and (better := renamed(key, arguments)) and better not in given:
            fitted.note("renamed", key, value, value, f"{script} calls it {better}")
            key, argument = better, arguments[better]
        if argument is None:
            if is_ours(key) or key in (second_gui.FAMILY, second_gui.TRAINING_TYPE):
                fitted.values[key] = value
            else:
                fitted.note("dropped", key, value, None, f"{script} ignores it")
            continue
        new = alike(value)
        fault = fault_of(new, argument, types.get(key))
        if fault is not None and fault.rule != "not-offered":
            usable, new = converted_value(new, argument)
            if not usable:
                fitted.note("dropped", key, value, None, fault.effect)
                continue
        if new != value or type(new) is not type(value):
            fitted.note(
                "converted", key, value, new, fault.effect if fault else "the items of a list must be of one kind"
            )
        fitted.values[key] = new
    if isinstance(document.content.get(TABLE), dict):
        fitted.values[TABLE] = document.content[TABLE]
    return fitted


@dataclass(frozen=True)
class Launch:
    """What a file leaves open, as for a preset: folders and files as the user gives them."""

    data: str
    model: str
    output: str
    name: str


def launch_words(
    document: TomlDocument,
    script: str,
    root: str,
    where: Surroundings,
    launch: Launch,
    arguments: Mapping[str, Argument] | None = None,
) -> list[str]:
    """The command that trains with a file of settings; a flag has the last word over the file.

    arguments: those of the script; what it insists on is asked for before the file is read.
    """
    settings = settings_of(document.content).values
    required = [name for name, argument in (arguments or {}).items() if argument.required and settings.get(name)]
    data = [] if settings.get("dataset_config") else ["--train_data_dir", launch.data]
    return [
        *(where.accelerate, "launch", "--num_cpu_threads_per_process", "2", f"{root}/{script}"),
        *("--config_file", str(document.path.resolve()), *data),
        *(word for name in required for word in (f"--{name}", str(settings[name]))),
        *("--pretrained_model_name_or_path", launch.model, "--output_dir", launch.output, "--output_name", launch.name),
    ]
