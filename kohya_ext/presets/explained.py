"""What an installed preset says about itself, for the GUI: the bundled words, in the names of the fields of the GUI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kohya_ext.core.errors import UnsupportedError
from kohya_ext.presets.check import effective
from kohya_ext.presets.document import Preset
from kohya_ext.presets.launch_command import commands_of_form
from kohya_ext.presets.machine import MODEL
from kohya_ext.presets.release import Release
from kohya_ext.presets.schema import Schema
from kohya_ext.presets.script_run import script_run
from kohya_ext.spec.preset_files import ABOUT, BASE_MODEL, FILL_IN, FITTED_TO, KEPT, MEASURED_AS


def with_about(preset: Preset, values: Mapping[str, Any], release: Release) -> dict[str, Any]:
    """The fitted settings with what is known about the preset; without a word of it, the settings alone."""
    if not preset.about:
        return dict(values)
    about = {key: preset.about[key] for key in KEPT if preset.about.get(key)}
    given = preset.about.get(FILL_IN)
    keys = [str(key) for key in given if not values.get(key)] if isinstance(given, list) else []
    about[FILL_IN] = [_label(key, release.schema) for key in keys]
    if values.get(MODEL):
        about[BASE_MODEL] = values[MODEL]
    settings = measured_as(values, release)
    if settings is not None:
        about[MEASURED_AS] = settings
    return {ABOUT: {**about, FITTED_TO: release.name}, **values}


def measured_as(values: Mapping[str, Any], release: Release) -> str | None:
    """The digest under which a run with these settings of a form leaves what it measures; None: cannot be told."""
    try:
        launch = commands_of_form(effective(values, release), release)
    except UnsupportedError:
        return None
    run = None if launch is None else script_run(launch, release)
    return None if run is None else run.settings()


def _label(key: str, schema: Schema) -> str:
    """What the GUI calls a field, without its remark in brackets."""
    one = schema.fields.get(key)
    label = one.label.partition("(")[0].strip() if one is not None else ""
    return label or key
