"""A preset as a flat TOML file, whose keys are the arguments of the training script, and back.

What a form gives the script is found out by following the GUI's own code, in both directions: a form made from a file
is only as good as what the GUI makes of it again. Where a field cannot give an argument, "additional parameters" do.
What a form has besides (captions to be made, the epochs that it counts itself) has a table of its own in the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from kohya_ext.core.errors import UnsupportedError, UsageError
from kohya_ext.presets.check import loaded_form
from kohya_ext.presets.convert import convert, shown_at_start
from kohya_ext.presets.document import Preset
from kohya_ext.presets.explained import with_about
from kohya_ext.presets.fit import Fitted, fit_to_release
from kohya_ext.presets.keys import EXTRA, KEYS_OF_FLAGS, PATHS, PERSONAL, PRIVATE, SECRETS, flags_in
from kohya_ext.presets.launch_command import GuiRefusesError, commands_of_form
from kohya_ext.presets.machine import MODEL, SDPA, XFORMERS, hub_models
from kohya_ext.presets.release import SDXL, Release
from kohya_ext.presets.schema import Schema, offering_ours
from kohya_ext.presets.script_run import script_run
from kohya_ext.presets.toml_document import dump_toml
from kohya_ext.presets.warm_up import drop_refused_warm_up
from kohya_ext.spec.flags import BY_KEY
from kohya_ext.spec.preset_files import ABOUT, TABLE, TABLE_ABOUT, TABLE_FORM
from kohya_ext.spec.second_gui import FAMILY, TRAINING_TYPE, TRAINING_TYPES

LENGTH, EPOCHS, COUNTED = "max_train_steps", "max_train_epochs", "epoch"
WARMUP, WARMUP_SHARE = "lr_warmup_steps", "lr_warmup"
# Arguments that the GUI makes of the images or of its own folders.
OF_A_PROJECT = frozenset({"in_json", "config_file", "stop_text_encoder_training"})
FAMILIES = {"sdxl": "sdxl", "flux": "flux1", "sd3": "sd3", "anima": "anima", "lumina": "lumina",
            "hunyuan": "hunyuan_image"}  # fmt: skip
PLAIN = {"finetune": "base", "ti": "sd_v1v2"}
ROUNDS = 2  # the second for what the first has changed
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
ENDINGS = ("_dir", "_path", "_file", "_config")


def start_form(schema: Schema) -> dict[str, Any]:
    """What the fields of a fresh GUI show, without what belongs to one machine."""
    starts = {key: shown_at_start(one) for key, one in schema.fields.items() if one.wired_to is None}
    return {key: start.value for key, start in starts.items() if start.usable and key not in PRIVATE}


def arguments_of_form(form: Mapping[str, Any], release: Release) -> tuple[str, dict[str, Any]]:
    """The script that a form runs, and its arguments by name, without those of a project.

    Raises UnsupportedError where the GUI's code cannot be followed or where the GUI refuses the form.
    """
    result = commands_of_form(loaded_form(form, release), release)
    run = None if result is None else script_run(result, release)
    if run is None or not run.arguments:
        raise UnsupportedError(f"what the GUI of {release.name} makes of a preset cannot be determined")
    given = {name: value for name, value in run.given.items() if not _of_a_project(name, value)}
    given.update({name: bool(given[name]) for name in given if run.arguments[name].type == "bool"})
    given.update(_ours(" ".join(run.strays)))
    model = form.get(MODEL)
    if model in hub_models(release.schema):
        given[MODEL] = model
    if not form.get(LENGTH) or str(form.get(LENGTH)) == "0":
        given.pop(LENGTH, None)
        epochs = _number(form.get(COUNTED))
        if not given.get(EPOCHS) and epochs:
            given[EPOCHS] = epochs
    share = _number(form.get(WARMUP_SHARE))
    given.pop(WARMUP, None)
    if steps := _number(form.get(WARMUP)):
        given[WARMUP] = steps
    elif share:
        given[WARMUP] = share / 100
    return run.script, dict(sorted(given.items()))


def _of_a_project(name: str, value: Any) -> bool:
    if value is None or value == "" or name in OF_A_PROJECT:
        return True
    return name in PATHS or name in PERSONAL or name in SECRETS or name.endswith(ENDINGS)


def _ours(words: str) -> dict[str, Any]:
    """Our flags on a command line, in the types that a TOML file has."""
    found: dict[str, Any] = {}
    for name, text in flags_in(words).items():
        flag = BY_KEY.get(name)
        if flag is None:
            continue
        try:
            value = flag.kind.convert(text)
        except ValueError:
            value = text
        found[name] = list(value) if isinstance(value, tuple) else value
    return found


def _number(value: Any) -> float | int | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() else number


def family_of(script: str, preset: Preset) -> str:
    """What the second GUI calls the family of models that a script is for."""
    found = next((family for begin, family in FAMILIES.items() if script.startswith(begin)), None)
    return found or PLAIN.get(preset.tab, "sd2" if preset.values.get("v2") is True else "sd15")


def to_file(preset: Preset, release: Release) -> tuple[dict[str, Any], Fitted]:
    """The content of the TOML file for a preset, and what fitting did to it.

    A preset of ours says what it is in it, as its JSON file does.

    Raises UnsupportedError where the release cannot take the preset or has no GUI that reads presets.
    """
    schema = offering_ours(release.schema)
    fitted = fit_to_release(preset, release, loaded=False)
    drop_refused_warm_up(fitted, release)
    start = start_form(schema)
    script, flat = arguments_of_form({**start, **fitted.values}, release)
    content: dict[str, Any] = {**flat, TRAINING_TYPE: TRAINING_TYPES[preset.tab], FAMILY: family_of(script, preset)}
    back = _form_of(flat, {}, script, release)
    form = {key: value for key, value in fitted.values.items() if not _same(back.get(key), value)}
    about = with_about(preset, fitted.values, release).get(ABOUT, {})
    tables = {name: table for name, table in ((TABLE_ABOUT, about), (TABLE_FORM, form)) if table}
    return {**content, **({TABLE: tables} if tables else {})}, fitted


def _same(first: Any, second: Any) -> bool:
    return first == second and isinstance(first, bool) is isinstance(second, bool)


def file_bytes(content: Mapping[str, Any]) -> bytes:
    """The bytes of the file: ASCII, so that any encoding reads them."""
    return _NOT_ASCII.sub(_escaped, dump_toml(_writable(content))).encode("ascii")


def _escaped(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"


def _writable(value: Any) -> Any:
    """Without what TOML cannot hold."""
    if isinstance(value, Mapping):
        return {str(key): _writable(item) for key, item in value.items() if item is not None}
    return [_writable(item) for item in value if item is not None] if isinstance(value, list) else value


def to_form(settings: Mapping[str, Any], table: Mapping[str, Any], script: str, release: Release) -> Fitted:
    """The form that gives a script these settings. table: the file's table of ours, {} without one.

    Raises UsageError for settings of a script that the tab does not run; UnsupportedError where the GUI's code cannot
    be followed.
    """
    kept = table.get(TABLE_FORM)
    form = {key: value for key, value in kept.items() if key not in PRIVATE} if isinstance(kept, Mapping) else {}
    fitted = Fitted()
    wanted = {name: value for name, value in settings.items() if not _is_omitted(name, value, release)}
    for name in sorted(set(settings) - set(wanted) - {FAMILY, TRAINING_TYPE}):
        fitted.note("dropped", name, settings[name], None, "belongs to one machine or person")
    fitted.values = _form_of(wanted, form, script, release)
    _, given = _arguments(fitted.values, release)
    for name in sorted(set(wanted) | set(given)):
        if not _same(wanted.get(name), given.get(name)):
            reason = "no field of this GUI gives the script exactly this"
            fitted.note("changed", name, wanted.get(name), given.get(name), reason)
    return fitted


def table_of(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The table of ours in a TOML file; empty where it has none."""
    table = content.get(TABLE)
    return table if isinstance(table, Mapping) else {}


def _is_omitted(name: str, value: Any, release: Release) -> bool:
    if name == MODEL and value in hub_models(release.schema):
        return False
    return name in (FAMILY, TRAINING_TYPE) or _of_a_project(name, value)


def _form_of(wanted: Mapping[str, Any], kept: Mapping[str, Any], script: str, release: Release) -> dict[str, Any]:
    """The fields, by name first; what the GUI makes of them decides what goes through "additional parameters".

    kept: fields that no argument tells, which hold where they do not contradict one.
    """
    schema = offering_ours(release.schema)
    form = start_form(schema)
    _set_fields(form, wanted, script, schema)
    form.update({key: value for key, value in kept.items() if key in schema.fields})
    for _ in range(ROUNDS):
        now, given = _arguments(form, release)
        if now and now != script:
            raise UsageError(f"the {release.schema.tab} tab runs {now} for these settings, not {script}: give --tab")
        if given == wanted:
            break
        _remove(form, [name for name in given if name not in wanted], schema)
        different = {name: value for name, value in wanted.items() if not _same(given.get(name), value)}
        _set_fields(form, different, script, schema)
        _, given = _arguments(form, release)
        for name, value in different.items():
            if not _same(given.get(name), value):
                _as_flag(form, name, value, release)
    return form


def _arguments(form: Mapping[str, Any], release: Release) -> tuple[str, dict[str, Any]]:
    try:
        return arguments_of_form(form, release)
    except GuiRefusesError:
        return "", {}


def _set_fields(form: dict[str, Any], wanted: Mapping[str, Any], script: str, schema: Schema) -> None:
    for key in SDXL:
        if key in schema.fields:
            form[key] = script.startswith("sdxl")
    attention = next((name for name in (XFORMERS, SDPA) if wanted.get(name) is True), None)
    if attention is not None and XFORMERS in schema.fields:
        form[XFORMERS] = convert(attention, schema.fields[XFORMERS]).value
    for name, value in wanted.items():
        key = KEYS_OF_FLAGS.get(name, name)
        one = schema.fields.get(key)
        if one is None or one.component is None or one.wired_to is not None or name in (XFORMERS, SDPA):
            continue
        plain = " ".join(map(str, value)) if isinstance(value, list) and name.endswith("_args") else value
        plain = plain[0] if isinstance(plain, list) and plain else plain
        converted = convert(plain, one)
        if converted.usable and not converted.problem:
            form[key] = converted.value


def _remove(form: dict[str, Any], names: Iterable[str], schema: Schema) -> None:
    """Takes arguments away that the form gives: the flag, and the tick or the choice."""
    for name in names:
        key = KEYS_OF_FLAGS.get(name, name)
        form[EXTRA] = _without_flag(str(form.get(EXTRA) or ""), name)
        if isinstance(form.get(key), bool):
            form[key] = False
        elif name in (XFORMERS, SDPA) and XFORMERS in schema.fields:
            form[XFORMERS] = "none" if "none" in (schema.fields[XFORMERS].choices or ()) else False
        elif name.endswith("_args"):
            form[key] = ""


def _without_flag(text: str, name: str) -> str:
    """Additional parameters without one flag and its values."""
    kept: list[str] = []
    inside = False
    for word in text.split():
        if word.startswith("--"):
            inside = word.partition("=")[0] == f"--{name}"
        if not inside:
            kept.append(word)
    return " ".join(kept)


def _as_flag(form: dict[str, Any], name: str, value: Any, release: Release) -> None:
    """Puts an argument into "additional parameters"."""
    known = name in BY_KEY or name in release.arguments_for(form)
    if EXTRA not in release.schema.fields or not known or value is False or value is None:
        return
    kept = _without_flag(str(form.get(EXTRA) or ""), name).split()
    items = [str(item) for item in value] if isinstance(value, list) else [str(value)]
    new = [f"--{name}"] if value is True else [f"--{name}={items[0]}"] if len(items) == 1 else [f"--{name}", *items]
    form[EXTRA] = " ".join([*kept, *new])
