"""What runs with a preset's settings, or a file's, have measured in the checkout: a line of `presets show`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kohya_ext.cli.common import find_gui
from kohya_ext.cli.preset_lookup import release_of
from kohya_ext.core.console import Output

if TYPE_CHECKING:
    from kohya_ext.checkout.checkout import Checkout
    from kohya_ext.presets.document import Preset
    from kohya_ext.presets.toml_document import TomlDocument


def say_measured(source: Preset | TomlDocument, argument: str | None, out: Output) -> dict[str, Any] | None:
    """Say it, where there is a measurement.

    Args:
        source: the settings.
        argument: the checkout that was named; None: the one around the current folder, if that is in one.
        out: gets the line.

    Returns:
        The measurement for `--json`, None where there is none.
    """
    from kohya_ext.checkout.discovery import around
    from kohya_ext.preflight.measured import measured_here
    from kohya_ext.presets.document import Preset

    checkout = around(Path.cwd()) if argument is None else find_gui(argument, out)
    if checkout is None:
        return None
    digest = _of_preset(source, checkout) if isinstance(source, Preset) else _of_file(source, checkout)
    measured = None if digest is None else measured_here(checkout.root, digest)
    if measured is not None:
        out.item("measured", f"{measured} (in {checkout.root})")
    elif argument is not None:
        out.item("measured", f"nothing yet by a run with these settings in {checkout.root}")
    return None if measured is None else measured.as_json()


def _of_preset(preset: Preset, checkout: Checkout) -> str | None:
    from kohya_ext.core.errors import UnsupportedError
    from kohya_ext.presets.explained import measured_as
    from kohya_ext.presets.fit import fit_to_release

    try:
        release = release_of(checkout, preset.tab)
        return measured_as(fit_to_release(preset, release).values, release)
    except UnsupportedError:
        return None


def _of_file(document: TomlDocument, checkout: Checkout) -> str | None:
    from kohya_ext.core.errors import UsageError
    from kohya_ext.preflight.arguments import ScriptCommand
    from kohya_ext.preflight.commands import digest_of
    from kohya_ext.presets.release import read_training
    from kohya_ext.presets.script_choice import script_of
    from kohya_ext.presets.script_config import settings_of

    release = read_training(checkout)
    try:
        settings = dict(settings_of(document.content).values)
        return digest_of(ScriptCommand(script_of(document, settings, release), [], settings), release)
    except UsageError:  # it does not tell its script, or is a data set configuration
        return None
