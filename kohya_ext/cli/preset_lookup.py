"""What the `presets` commands share: presets by name or file, the release that judges them, what fitting says."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kohya_ext.cli.common import find_gui, training_environments
from kohya_ext.core.console import Output
from kohya_ext.core.errors import UsageError

if TYPE_CHECKING:
    from kohya_ext.checkout.checkout import Checkout
    from kohya_ext.checkout.environment import Environment
    from kohya_ext.presets.document import Preset
    from kohya_ext.presets.findings import Finding
    from kohya_ext.presets.fit import Fitted
    from kohya_ext.presets.release import Release

TABS = ("finetune", "lora", "dreambooth", "ti")
UNREADABLE_FIX = "repair or remove the file"
NAME_HELP = "a bundled preset, a preset file, or a TOML file of sd-scripts"


def written(value: Any) -> str:
    """A value as it is in a preset file; `...` is an absent one."""
    return "(absent)" if value is ... else json.dumps(value, ensure_ascii=False)


def is_toml(name: str) -> bool:
    """Whether an argument names a TOML file of sd-scripts, not a preset."""
    return Path(name).suffix.lower() == ".toml" and not Path(name).is_dir()


def release_of(
    checkout: Checkout, tab: Any, gradio: int | None = None, environments: Sequence[Environment] | None = None
) -> Release:
    """One tab of the checkout. gradio: the version to judge by; None = the one that is installed, else the pinned.

    environments: those that train; None = look for them.
    """
    from kohya_ext.install.gui_gradio import installed_version
    from kohya_ext.install.requirements import numbers
    from kohya_ext.presets.machine import has_xformers
    from kohya_ext.presets.release import read_release

    if gradio is None and (version := installed_version(checkout)) is not None:
        gradio = (numbers(version) or (None,))[0]
    return read_release(
        checkout,
        tab,
        gradio=gradio,
        xformers=has_xformers(training_environments(checkout) if environments is None else environments),
    )


def release_to_train(checkout: Checkout, tab: Any, environment: Environment) -> Release:
    """The same for a training, which bare sd-scripts can do as well."""
    from kohya_ext.presets.machine import has_xformers
    from kohya_ext.presets.release import read_training

    if checkout.gui_root is None:
        return read_training(checkout, tab=tab, xformers=has_xformers([environment]))
    return release_of(checkout, tab, environments=[environment])


def preset_named(name: str, tab: str | None, repairs: list[str] | None = None) -> Preset:
    """One of ours by name, or a file. repairs: see `read_values`. Raises UsageError."""
    from kohya_ext.presets.document import as_preset, find_bundled, other_kind, read_values, tab_of

    path = Path(name)
    if (path.exists() and not path.is_dir()) or (path.suffix.lower() == ".json" and path.parent != Path()):
        values = read_values(path, repairs)
        if kind := other_kind(values):
            raise UsageError(f"{path}: not a preset: none of its keys is a setting ({kind})")
        return as_preset(values, path.stem, tab_of(values, path, tab))
    return find_bundled(name)


def preset_to_fit(arguments: argparse.Namespace, out: Output) -> tuple[Preset, list[str], Release]:
    """The preset of a command line, what was repaired in its file, and the release to fit it to. Raises UsageError."""
    repairs: list[str] = []
    preset = preset_named(arguments.name, arguments.tab, repairs)
    for repair in repairs:
        out.item("repaired", repair)
    return preset, repairs, release_of(find_gui(arguments.checkout, out), preset.tab)


def say_steps(fitted: Fitted, out: Output) -> None:
    """What fitting has changed; keys that it only filled in are not among them."""
    for step in fitted.steps:
        if step.action != "filled":
            after = "" if step.action == "dropped" else f" -> {written(step.after)}"
            out.item(step.action, f"{step.key}: {written(step.before)}{after} ({step.reason})")


def write_out(target: Path, data: bytes) -> None:
    """Write a file that the user has named. Raises UsageError."""
    from kohya_ext.files.atomic import write_atomic

    try:
        write_atomic(target, data)
    except OSError as error:
        raise UsageError(f"{target}: cannot be written: {error.strerror or error}") from error


def given_fields(given: Sequence[str]) -> dict[str, str]:
    """The fields of `--set`. Raises UsageError."""
    wrong = [text for text in given if "=" not in text]
    if wrong:
        raise UsageError(f"--set {wrong[0]}: write KEY=VALUE")
    return {key.strip(): value for key, _, value in (text.partition("=") for text in given)}


def presets_of(checkout: Checkout) -> list[Preset | Finding]:
    """Every preset file under the checkout's presets folder; a finding for each that cannot be read."""
    folder = checkout.presets_dir
    return [_read(path) for path in (sorted(folder.rglob("*.json")) if folder is not None else [])]


def _read(path: Path) -> Preset | Finding:
    from kohya_ext.presets.document import as_preset, read_values, tab_of
    from kohya_ext.presets.findings import Finding

    try:
        values = read_values(path)
    except UsageError as error:
        return Finding("error", "unreadable", path.name, None, f"choosing it fails: {error}", UNREADABLE_FIX)
    return as_preset(values, path.stem, tab_of(values, path, None))
