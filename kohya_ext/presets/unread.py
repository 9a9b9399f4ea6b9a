"""Settings of the form that no training sees: the GUI writes them nowhere, or where no script reads them."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

from kohya_ext.presets.convert import shown_at_start
from kohya_ext.presets.findings import Finding
from kohya_ext.presets.keys import DEAD, KEYS_OF_FLAGS
from kohya_ext.presets.launch_command import LaunchCommands
from kohya_ext.presets.release import Release
from kohya_ext.presets.script_run import script_run
from kohya_ext.presets.start import Start, with_numbers
from kohya_ext.pysource.sources import Sources, parse

# Fields that some tabs have for the scripts of other tabs.
OF_OTHERS = ("split_mode", "train_blocks", "stop_text_encoder_training")
# The GUI itself acts on them, before or besides the file.
OF_THE_GUI = frozenset({"epoch", "noise_offset_type", "dynamo_backend", "dynamo_mode", "mixed_precision"})
PROMPTS = "prompts_file"
LECO_TAB, LECO_SCRIPTS = "kohya_gui/leco_gui.py", ("train_leco.py", "sdxl_train_leco.py")
REMOVE = "remove it, or leave it: it changes nothing"


def unread_findings(form: Mapping[str, Any], start: Start) -> Iterator[Finding]:
    """form: what the fields hold when the preset is loaded."""
    numbers = with_numbers(form, start.release)
    result = start.of(numbers)
    if not isinstance(result, LaunchCommands):
        return
    run = script_run(result, start.release)
    if run is None or not run.arguments:
        return
    chosen = {key for key in form if not _as_at_start(key, form[key], start.release)}
    written = {KEYS_OF_FLAGS.get(name, name) for settings in result.toml.values() for name in settings}
    known = {KEYS_OF_FLAGS.get(name, name) for name in run.arguments}
    for key in sorted(chosen & written - known - OF_THE_GUI):
        effect = f"the GUI hands it on in its TOML file, and {run.script} has no such argument: it does nothing"
        yield Finding("note" if key in DEAD else "warning", "unread", key, form[key], effect, REMOVE)
    for key in OF_OTHERS:
        if key in chosen - written and start.same({**numbers, key: _at_start(key, start.release)}, numbers):
            effect = f"the {start.release.schema.tab} tab of this release never hands it on: it does nothing"
            yield Finding("warning", "unread", key, form[key], effect, REMOVE)


def _at_start(key: str, release: Release) -> Any:
    one = release.schema.fields.get(key)
    return shown_at_start(one).value if one is not None else None


def _as_at_start(key: str, value: Any, release: Release) -> bool:
    """Whether the field was left alone, or asks for nothing."""
    return value in (None, "", 0, "0") or value == _at_start(key, release) or str(value) == str(_at_start(key, release))


def leco_findings(values: Mapping[str, Any], release: Release) -> Iterator[Finding]:
    """A preset of the tab LeCo, where that tab cannot start a training whatever is in it."""
    if PROMPTS not in values or release.gui is None or release.training is None:
        return
    wanting = [name for name in LECO_SCRIPTS if _requires(release, name)]
    if wanting and not _on_command_line(release.gui):
        effect = (
            f"the LeCo tab of this release names it in its TOML file alone, and {wanting[0]} wants --{PROMPTS} on the "
            "command line: every training stops before it begins"
        )
        fix = f"`kohya-ext presets command FILE.toml --script {wanting[0]} --run`, for the settings as TOML"
        yield Finding("error", "training-stops", PROMPTS, values[PROMPTS], effect, fix)


def _requires(release: Release, script: str) -> bool:
    argument = release.arguments_of(script).get(PROMPTS)
    return argument is not None and argument.required


def _on_command_line(gui: Sources) -> bool:
    """Whether the tab has the flag as a word; a GUI without such a tab starts no such training either way."""
    text = gui.read(LECO_TAB)
    if text is None:
        return True
    try:
        return any(
            isinstance(node, ast.Constant) and str(node.value).startswith(f"--{PROMPTS}")
            for node in ast.walk(parse(text))
        )
    except SyntaxError:
        return True
