"""What "Start training" would do with a preset in the installed release: refused, stopped, or other than meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kohya_ext.presets.convert import parse_number
from kohya_ext.presets.findings import Finding
from kohya_ext.presets.launch_command import GuiRefusesError, LaunchCommands, commands_of_form
from kohya_ext.presets.release import Release
from kohya_ext.presets.rules import DEFECT
from kohya_ext.presets.script_run import script_run
from kohya_ext.presets.training_rules import training_findings

NUMBERS = ("Number", "Slider")
WORDS = ("optimizer_args", "lr_scheduler_args")


class Start:
    """Starts of one release, each followed once."""

    def __init__(self, release: Release) -> None:
        self.release = release
        self._seen: dict[str, LaunchCommands | GuiRefusesError | None] = {}

    def of(self, form: Mapping[str, Any]) -> LaunchCommands | GuiRefusesError | None:
        """What the GUI runs for a form, how it refuses it, or None where its code cannot be followed."""
        key = repr(sorted(form.items()))
        if key not in self._seen:
            try:
                self._seen[key] = commands_of_form(form, self.release)
            except GuiRefusesError as refused:
                self._seen[key] = refused
        return self._seen[key]

    def same(self, first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
        """Whether it is seen to run the very same command for two forms."""
        one, other = self.of(first), self.of(second)
        seen = isinstance(one, LaunchCommands) and isinstance(other, LaunchCommands)
        return seen and (one.training, one.toml) == (other.training, other.toml)  # type: ignore[union-attr]


def start_findings(form: Mapping[str, Any], start: Start) -> Iterator[Finding]:
    """form: what the fields hold when the preset is loaded, texts where the GUI leaves texts."""
    numbers = with_numbers(form, start.release)
    result = start.of(numbers)
    if isinstance(result, GuiRefusesError):
        for complaint in result.complaints:
            yield _refused(complaint, form)
        if not result.complaints:  # a fork may start trainings in a way that is not known here
            effect = "Start training seems to run nothing with these settings, without a message"
            yield Finding("warning", "gui-refuses", "", None, effect, "see what Print training command shows")
        return
    training = None if result is None else script_run(result, start.release)
    if training is not None:
        yield from training_findings(training, numbers, start.release)


def with_numbers(form: Mapping[str, Any], release: Release) -> dict[str, Any]:
    """The form with numbers in its number fields, where texts are numbers."""
    result = dict(form)
    for key, value in form.items():
        one = release.schema.fields.get(key)
        if isinstance(value, str) and one is not None and one.component in NUMBERS:
            number = parse_number(value)
            result[key] = value if number is None else number
    return result


def harmless_texts(form: Mapping[str, Any], start: Start) -> frozenset[str]:
    """The number fields that hold a text with which this release runs the very same command as with the number."""
    numbers = with_numbers(form, start.release)
    texts = [key for key, value in form.items() if value is not numbers[key]]
    if not texts:
        return frozenset()
    if start.same(form, numbers):
        return frozenset(texts)
    return frozenset(key for key in texts if start.same({**numbers, key: form[key]}, numbers))


def _refused(complaint: str, form: Mapping[str, Any]) -> Finding:
    key = next((one for one in WORDS if form.get(one) and repr(form[one]) in complaint), "")
    if key:
        effect = f"Start training does nothing: {complaint}"
        return Finding("error", "gui-refuses", key, form[key], effect, "`kohya-ext presets fit` sets single spaces")
    lowered = complaint.casefold()
    key = "LoRA_type" if "lora type" in lowered else _mentioned(lowered, form)
    fix = "change it as the GUI says"
    return Finding("error", "gui-refuses", key, form.get(key), f"Start training does nothing: {complaint}", fix)


def _mentioned(lowered: str, form: Mapping[str, Any]) -> str:
    """The key that a complaint names, in its own or in the GUI's words; of several the longest."""
    named = [key for key in form if key.casefold() in lowered or key.replace("_", " ").casefold() in lowered]
    return max(named, key=len, default="learning_rate" if "learning rate" in lowered else "")


def text_defects(form: Mapping[str, Any], given: Mapping[str, Any], start: Start) -> Iterator[Finding]:
    """Sliders that a fresh GUI fills with a text: where training breaks on it, an absent key is an error."""
    starting = {}
    for key, one in start.release.schema.fields.items():
        text = one.default if given.get(key) is None and one.component == "Slider" else None
        if isinstance(text, str) and text.strip() and "default" not in one.inexact and parse_number(text) is not None:
            starting[key] = text
    numbers = with_numbers(form, start.release)
    if not starting or not isinstance(start.of(numbers), LaunchCommands):
        return
    for key in sorted(set(starting) - harmless_texts({**numbers, **starting}, start)):
        effect = f"a fresh GUI holds the text {starting[key]!r} in this field, and Start training fails on it"
        fix = f'write "{key}": {parse_number(starting[key])}; `kohya-ext presets fit` does'
        yield Finding("error", DEFECT, key, None, effect, fix)
