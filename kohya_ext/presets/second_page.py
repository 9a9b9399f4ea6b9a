"""What the second GUI does with a file of settings: opens it, shows it, and writes what a training reads.

Every value goes through the field it belongs to, then through the tab's own derivation, whose result replaces it. So
what the training reads may be less than what the file holds.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kohya_ext.core.errors import UnsupportedError
from kohya_ext.presets.check import says_nothing
from kohya_ext.presets.findings import Finding
from kohya_ext.presets.launch_command import LaunchCommands
from kohya_ext.presets.release import Release
from kohya_ext.presets.schema import TABS, Tab
from kohya_ext.presets.second_table import FieldRow, Table, called, function_of, lone_function, read_table
from kohya_ext.pysource.arguments import literal
from kohya_ext.pysource.sources import Sources, parse
from kohya_ext.pysource.values import Signal, known, plain
from kohya_ext.spec.flags import BY_KEY, DECAY, ENABLE_EMA
from kohya_ext.spec.second_gui import FAMILY, PACKAGE, TRAINING_TYPE, TRAINING_TYPES

KEEPS_ZERO = ("finetune", "dreambooth")  # tabs whose training gets a number that is 0; the others drop it
OTHER_WAY = "start it with `kohya-ext presets command FILE --script {} --run`: the script reads the file as it is"
LAUNCHER = ("accelerate", "launch")


@dataclass(frozen=True)
class OpenedFile:
    """A file in a tab. values: of every field. replaced: what the file holds of fields that show something else."""

    table: Table
    family: str
    values: Mapping[str, Any]
    replaced: Mapping[str, Any] = field(default_factory=dict)


def tab_of_script(script: str, settings: Mapping[str, Any]) -> Tab:
    """The tab for settings of a training script; of those that share one the tab that the file names."""
    named = next((tab for tab in TABS if settings.get(TRAINING_TYPE) == TRAINING_TYPES[tab]), None)
    if named is not None:
        return named
    if "textual_inversion" in script:
        return "ti"
    return "lora" if script.endswith("_network.py") else "dreambooth" if script == "train_db.py" else "finetune"


def second_table(release: Release, tab: Tab) -> Table:
    """The tab's table in the checkout of a release. Raises UnsupportedError."""
    table = read_table(release.gui, tab, patched=release.patched) if release.gui is not None else None
    if table is None:
        raise UnsupportedError(f"the second GUI of {release.name} has no {tab} tab that could be followed")
    return table


def opened(settings: Mapping[str, Any], table: Table, script: str) -> OpenedFile:
    """What the tab shows once the file is open. Raises UnsupportedError where its code cannot be followed."""
    replaced: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for name, row in table.rows.items():
        values[name] = row.field.default
        if name in settings:
            values[name] = _shown(settings[name], row, table)
            if row.field.component == "Dropdown" and _text(values[name]) != _text(settings[name]):
                replaced[name] = settings[name]
    family = str(settings.get(FAMILY) or table.family_of(script))
    values[FAMILY] = family
    values.update({key: settings[key] for key in BY_KEY if key in settings})
    return OpenedFile(table, family, values, replaced)


def _shown(value: Any, row: FieldRow, table: Table) -> Any:
    """A value as its field takes it; a list without it shows its default."""
    read = value if row.reading is None else _followed(table, row.reading, value)
    if row.field.component == "Checkbox":
        return bool(read)
    if row.field.component == "Textbox":
        return read if read is None else str(read)
    choices = row.field.choices
    if row.field.component != "Dropdown" or choices is None or "choices" in row.field.inexact:
        return read
    alike = [one for one in choices if one == read or _text(one) == _text(read)]
    return alike[0] if alike else row.field.default


def _text(value: Any) -> str:
    """A value for a comparison: 1, 1.0 and true are the same, a list is its words."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(_text, value))
    whole = isinstance(value, bool) or (isinstance(value, float) and value.is_integer())
    return str(int(value) if whole else value)


def run_settings(page: OpenedFile) -> dict[str, Any]:
    """The settings that a training started there reads. Raises UnsupportedError where its code cannot be followed."""
    table = page.table
    derive = function_of(table, f"tabs/{TRAINING_TYPES[table.tab]}_derivations.py", "derive")
    derived = {} if derive is None else _followed(table, derive, dict(page.values), page.family)
    if not isinstance(derived, dict) or not known(list(derived.values())):
        raise UnsupportedError(f"what the {table.tab} tab of {PACKAGE} derives depends on the running GUI")
    values = {**page.values, **derived}
    if values.get(ENABLE_EMA.key) and not values.get(DECAY.key):
        values[DECAY.key] = DECAY.default
    found = {}
    for name, row in table.rows.items():
        if row.gui_only or name not in values or not row.belongs_to(page.family):
            continue
        value = values[name] if row.writing is None else _followed(table, row.writing, values[name])
        if row.kept or not _is_dropped(value, table.tab):
            found[name] = value
    found.update({key: values[key] for key in BY_KEY if not _is_dropped(values.get(key), table.tab)})
    return dict(sorted(found.items()))


def _is_dropped(value: Any, tab: Tab) -> bool:
    if value is None or value is False or value == "":
        return True
    return tab not in KEEPS_ZERO and not isinstance(value, (list, dict)) and value == 0


def _followed(table: Table, function: Any, *arguments: Any) -> Any:
    try:
        return plain(called(table.interpreter, function, *arguments))
    except Signal as place:
        raise UnsupportedError(f"{place}: depends on something that only the running GUI knows") from place


def second_command(page: OpenedFile, sources: Sources, stamp: str) -> LaunchCommands:
    """What the second GUI runs for what it shows, and the TOML file that it writes first. Raises UnsupportedError."""
    settings, table = run_settings(page), page.table
    flags = lone_function(sources, "tab_builder.py", "_accelerate_launch_flags", "shlex")
    words = [] if flags is None else _followed(table, flags, dict(page.values))
    launcher, folder, flag = _backend(sources)
    kind = TRAINING_TYPES[table.tab]
    path = f"{settings.get('output_dir') or '/tmp'}/config_{kind}_v2-{stamp}.toml"  # noqa: S108 - the GUI's own choice
    script = table.scripts.get(page.family) or next(iter(table.scripts.values()))
    ours = [f"--{DECAY.key}", str(settings[DECAY.key])] if settings.get(DECAY.key) else []
    training = [*launcher, *map(str, words), f"{folder}/{script}", *ours, flag, path]
    return LaunchCommands(training=training, toml={path: settings})


def _backend(sources: Sources) -> tuple[list[str], str, str]:
    """How the second GUI starts a training: the words before the script, its folder, the flag of the file."""
    text = sources.read(f"{PACKAGE}/registry.py") or ""
    for node in ast.walk(parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "BackendSpec":
            words = {word.arg: literal(word.value) for word in node.keywords}
            launcher = words.get("launcher")
            if isinstance(launcher, list):
                flag = str(words.get("config_file_flag") or "--config_file")
                return [str(word) for word in launcher], str(words.get("script_root") or "sd-scripts"), flag
    return list(LAUNCHER), "sd-scripts", "--config_file"


def second_findings(settings: Mapping[str, Any], script: str, release: Release) -> list[Finding]:
    """What the second GUI does to settings that a training reads otherwise, if it opens the file and starts it.

    Raises UnsupportedError where its code cannot be followed.
    """
    page = opened(settings, second_table(release, tab_of_script(script, settings)), script)
    trained = run_settings(page)
    findings = []
    arguments = release.arguments_of(script)
    for key, value in settings.items():
        if says_nothing(key, value) or (key not in arguments and key not in BY_KEY):
            continue
        if key in page.replaced:
            effect = f"{PACKAGE} shows {page.values[key]!r} in its place, which its list offers, and trains with that"
            findings.append(Finding("error", "not-offered", key, value, effect, f"choose {value!r} by typing it there"))
        elif key not in trained:
            known_there = key in page.table.rows or key in BY_KEY
            reason = "derives it from a field that it does not have" if known_there else "has no field for it"
            effect = f"lost where {PACKAGE} starts the training: its {page.table.tab} tab {reason}"
            findings.append(Finding("warning", "second-gui-loses", key, value, effect, OTHER_WAY.format(script)))
        elif key in page.table.rows and _text(trained[key]) != _text(value):
            effect = f"{PACKAGE} trains with {trained[key]!r}: its {page.table.tab} tab derives it from others"
            findings.append(Finding("warning", "second-gui-changes", key, value, effect, OTHER_WAY.format(script)))
    return findings
