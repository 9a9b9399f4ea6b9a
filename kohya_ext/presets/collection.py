"""The bundled presets as files for a checkout, fitted to what is there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kohya_ext.core.errors import UnsupportedError
from kohya_ext.presets.document import Preset, bundled, dump_values
from kohya_ext.presets.explained import with_about
from kohya_ext.presets.fit import fit
from kohya_ext.presets.flat_file import file_bytes, to_file
from kohya_ext.presets.release import Release, read_release
from kohya_ext.presets.schema import Tab
from kohya_ext.spec.preset_files import USER_PRESETS

if TYPE_CHECKING:
    from kohya_ext.checkout.checkout import Checkout

# Kept out of git by every release's .gitignore: installing here never makes the work tree dirty.
USER_FOLDER = f"presets/{{tab}}/{USER_PRESETS}/{{name}}{{ending}}"


@dataclass
class FittedPresets:
    """files: path in the checkout -> bytes. refused: preset -> why this release cannot take it."""

    files: dict[str, bytes] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def collect_all(
    checkout: Checkout, presets: Iterable[Preset] | None = None, *, xformers: bool | None = None
) -> FittedPresets:
    """The fitted files of `presets` (all bundled ones by default), and the presets that the release cannot take.

    xformers: whether the environment has the package, None = not known.
    """
    collected = FittedPresets()
    if checkout.gui_root is None:
        return collected
    releases: dict[Tab, Release] = {}
    for preset in bundled() if presets is None else presets:
        tab = preset.tab
        try:
            if tab not in releases:
                releases[tab] = read_release(checkout, tab, patched=True, xformers=xformers)
        except UnsupportedError:
            collected.refused[preset.name] = f"this GUI has no {tab} tab that loads presets"
            continue
        release = releases[tab]
        try:
            fitted = fit(
                preset, release.schema, arguments=release.flags, migration=release.migration, xformers=xformers
            )
        except UnsupportedError as error:
            collected.refused[preset.name] = str(error)
            continue
        collected.files[USER_FOLDER.format(tab=tab, name=preset.name, ending=".json")] = dump_values(
            with_about(preset, fitted.values, release)
        )
        if checkout.second_gui:
            _add_flat(preset, release, collected)
    return collected


def _add_flat(preset: Preset, release: Release, collected: FittedPresets) -> None:
    """The same preset for the second GUI, which has no list of presets: its *Open* takes a file."""
    try:
        content, _ = to_file(preset, release)
    except UnsupportedError as error:
        collected.refused[f"{preset.name} as TOML"] = str(error)
        return
    collected.files[USER_FOLDER.format(tab=preset.tab, name=preset.name, ending=".toml")] = file_bytes(content)
