"""The `presets` commands between the two kinds of preset: JSON of a form, TOML of a script; and the second GUI's."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kohya_ext.cli.common import find_environment, find_gui, training_environments
from kohya_ext.cli.preset_lookup import given_fields, preset_to_fit, release_of, say_steps, write_out
from kohya_ext.core.console import Output
from kohya_ext.core.errors import DONE

if TYPE_CHECKING:
    from kohya_ext.checkout.checkout import Checkout
    from kohya_ext.presets.findings import Finding
    from kohya_ext.presets.fit import Fitted
    from kohya_ext.presets.release import Release
    from kohya_ext.presets.toml_document import TomlDocument

JSON, TOML = ".json", ".toml"


def fit_to_toml(arguments: argparse.Namespace) -> int:
    """A preset as the TOML file that the second GUI and the scripts read."""
    from kohya_ext.presets.flat_file import file_bytes, to_file
    from kohya_ext.spec.preset_files import TABLE

    out = Output("presets fit", arguments.json)
    preset, repairs, release = preset_to_fit(arguments, out)
    content, fitted = to_file(preset, release)
    say_steps(fitted, out)
    count = len(content) - (TABLE in content)
    return _written(arguments, out, file_bytes(content), count, values=content, repairs=repairs, fitted=fitted)


def fit_to_json(arguments: argparse.Namespace, document: TomlDocument, script: str, out: Output) -> int:
    """A TOML file of settings as a preset for the GUI that reads JSON."""
    from kohya_ext.presets.document import Preset, dump_values
    from kohya_ext.presets.explained import with_about
    from kohya_ext.presets.flat_file import table_of, to_form
    from kohya_ext.presets.schema import TABS
    from kohya_ext.presets.script_config import settings_of
    from kohya_ext.presets.second_page import tab_of_script
    from kohya_ext.spec.preset_files import TABLE_ABOUT

    settings, table = settings_of(document.content).values, table_of(document.content)
    tab = next((one for one in TABS if one == arguments.tab), None) or tab_of_script(script, settings)
    release = release_of(find_gui(arguments.checkout, out), tab)
    fitted = to_form(settings, table, script, release)
    about = table.get(TABLE_ABOUT)
    preset = Preset(document.name, tab, fitted.values, about if isinstance(about, Mapping) else {})
    say_steps(fitted, out)
    values = with_about(preset, fitted.values, release)
    return _written(arguments, out, dump_values(values), len(fitted.values), values=fitted.values, fitted=fitted)


def _written(
    arguments: argparse.Namespace, out: Output, data: bytes, count: int, *, fitted: Fitted, **fields: Any
) -> int:
    target = Path(arguments.out)
    if not arguments.dry_run:
        write_out(target, data)
    out.item("would write" if arguments.dry_run else "written", f"{target} ({count} settings)")
    return out.finish(DONE, file=str(target), steps=[step.as_json() for step in fitted.steps], **fields)


def starts(script: str, document: TomlDocument, checkout: Checkout) -> bool:
    """Whether a tab of the second GUI that we know starts the script."""
    from kohya_ext.presets.script_config import settings_of
    from kohya_ext.presets.second_page import tab_of_script
    from kohya_ext.presets.second_table import read_table
    from kohya_ext.pysource.sources import FolderSources

    tab = tab_of_script(script, settings_of(document.content).values)
    table = read_table(FolderSources(checkout.root), tab)
    return table is None or script in table.scripts.values()


def second_gui_findings(document: TomlDocument, script: str, checkout: Checkout) -> list[Finding]:
    """What the second GUI makes of a file, where the checkout has that GUI and its code can be followed."""
    from kohya_ext.core.errors import UnsupportedError
    from kohya_ext.presets.findings import Finding
    from kohya_ext.presets.script_config import settings_of
    from kohya_ext.presets.second_page import second_findings

    if not checkout.second_gui or not starts(script, document, checkout):
        return []
    try:
        return second_findings(settings_of(document.content).values, script, second_release(checkout))
    except UnsupportedError as error:
        return [Finding("note", "second-gui-unread", "", None, str(error), "look at the values in its tab")]


def second_release(checkout: Checkout) -> Release:
    """The checkout as the second GUI sees it: the training code and its own source."""
    from dataclasses import replace

    from kohya_ext.presets.machine import has_xformers
    from kohya_ext.presets.release import read_training
    from kohya_ext.pysource.sources import FolderSources

    release = read_training(checkout, xformers=has_xformers(training_environments(checkout)))
    return replace(release, gui=FolderSources(checkout.root))


def second_gui_command(arguments: argparse.Namespace, document: TomlDocument, checkout: Checkout, script: str) -> int:
    """Print what the second GUI runs for a file, with the folders of a project filled in; or run it."""
    from kohya_ext.presets.command import as_toml, run, shell_line
    from kohya_ext.presets.script_config import settings_of
    from kohya_ext.presets.second_page import opened, second_command, second_table, tab_of_script

    out, quiet = Output("presets command", arguments.json), Output("presets command", as_json=True)
    release = second_release(checkout)
    settings = {**settings_of(document.content).values, **_project(arguments), **_given(arguments.fields)}
    page = opened(settings, second_table(release, tab_of_script(script, settings)), script)
    assert release.gui is not None
    result = second_command(page, release.gui, time.strftime("%Y%m%d-%H%M%S"))
    for finding in second_gui_findings(document, script, checkout):
        if finding.level in ("error", "warning"):
            out.warn(f"{finding.key}: {finding.effect}; {finding.fix}")
    if arguments.run_it:
        python = find_environment(checkout, arguments.python, quiet).python
        return run(result, checkout, python, arguments.output.resolve())
    for values in result.toml.values() if arguments.toml else ():
        out.document(as_toml(values))
    if not arguments.toml and result.training is not None:
        out.document(shell_line(result.training) + "\n")
    return out.finish(DONE, folder=str(checkout.root), preparation=[], training=result.training, toml=result.toml)


def _project(arguments: argparse.Namespace) -> dict[str, str]:
    model = Path(arguments.model)
    return {
        "train_data_dir": str(arguments.data.resolve()),
        "pretrained_model_name_or_path": str(model.resolve()) if model.exists() else arguments.model,
        "output_dir": str(arguments.output.resolve()),
        "output_name": arguments.output_name,
    }


def _given(fields: list[str]) -> dict[str, Any]:
    """The settings of `--set`, as TOML has them. Raises UsageError."""
    return {key: _as_toml(text) for key, text in given_fields(fields).items()}


def _as_toml(text: str) -> Any:
    from kohya_ext.files.regular import toml_loads

    try:
        return toml_loads(f"value = {text}")["value"]
    except ValueError:
        return text


def files_of(checkout: Checkout) -> list[Path]:
    """The presets as TOML in a checkout; none without the second GUI, which alone opens them."""
    folder = checkout.presets_dir if checkout.second_gui else None
    return sorted(folder.rglob(f"*{TOML}")) if folder is not None else []
