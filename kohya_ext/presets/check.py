"""A preset against the GUI and the training code that are installed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from kohya_ext.presets.convert import FALSE_WORDS, convert, parse_number, shown_at_start
from kohya_ext.presets.document import Preset
from kohya_ext.presets.findings import LEVELS, Finding, Level
from kohya_ext.presets.fit import ADAPTIVE_NOISE, lacking, noise_offset_counts
from kohya_ext.presets.keys import DEAD, EXTRA, KEYS_OF_FLAGS, PRIVATE, RENAMED, flags_in
from kohya_ext.presets.machine import hub_models
from kohya_ext.presets.migration import LoadError
from kohya_ext.presets.privacy import private_findings
from kohya_ext.presets.release import Release
from kohya_ext.presets.rules import DEFECT, contradictions, release_defects
from kohya_ext.presets.schema import Field
from kohya_ext.presets.start import Start, harmless_texts, start_findings, text_defects
from kohya_ext.presets.toml_document import data_set_finding
from kohya_ext.presets.unread import leco_findings, unread_findings

NEUTRAL_WORDS = ("", "0", "0.0", "false", "no", "none")


def check(preset: Preset, release: Release) -> list[Finding]:
    """Everything that is wrong or doubtful about a preset in a release, the worst first."""
    try:
        values = release.migration.apply(preset.values)
    except LoadError as error:
        value = preset.values.get(error.key)
        return [Finding("error", "load-fails", error.key, value, f"nothing is applied: {error}", "give it one value")]
    refused = [*lacking(preset.values, release.schema)]
    if refused:
        return refused
    loaded, form, start = loaded_form(values, release), effective(values, release), Start(release)
    findings = [
        *_unknown({key: value for key, value in values.items() if key in preset.values}, release),
        *private_findings(values, hub_models(release.schema)),
        *_loading(preset.values, values, loaded, start),
        *_typed(values, loaded, start),
        *_missing(preset.values, values, release),
        *release_defects(form, release),
        *text_defects(loaded, values, start),
        *contradictions(form, release),
        *data_set_finding(loaded),
        *leco_findings(preset.values, release),
    ]
    wrong = {finding.key for finding in findings if finding.level == "error"}
    findings += [one for one in start_findings(loaded, start) if one.level != "error" or one.key not in wrong]
    told = {finding.key for finding in findings}
    findings += [one for one in unread_findings(loaded, start) if one.key not in told]
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))


def _unknown(values: Mapping[str, Any], release: Release) -> Iterator[Finding]:
    for key in sorted(set(values) - set(release.schema.fields)):
        successor = RENAMED.get(key)
        if successor in release.schema.fields and successor is not None:
            effect, fix = "lost: this GUI ignores the key", f"rename it to {successor}"
            yield Finding("warning", "renamed-key", key, values[key], effect, fix)
        elif key in DEAD:
            yield Finding("note", "dead-key", key, values[key], "ignored by every release", "remove it")
        elif says_nothing(key, values[key]):
            effect = f"ignored: {release.name} has no such field, and the value asks for nothing"
            yield Finding("note", "neutral-key", key, values[key], effect, "leave it, or remove it")
        else:
            effect = f"ignored: {release.name} has no such field in the {release.schema.tab} tab"
            yield Finding("warning", "unknown-key", key, values[key], effect, "remove it; `kohya-ext presets fit` does")


def says_nothing(key: str, value: Any) -> bool:
    """Switched off, empty, 0; or a heading or remark of the author, which no GUI has a field for."""
    remark = not key.isidentifier() or key.startswith("_")
    if isinstance(value, str):
        return remark or value.strip().casefold() in NEUTRAL_WORDS
    return value is None or value is False or (not isinstance(value, bool) and value in (0, [], {}))


def _loading(
    given: Mapping[str, Any], values: Mapping[str, Any], form: Mapping[str, Any], start: Start
) -> Iterator[Finding]:
    """Values that become others while the GUI loads the preset."""
    release = start.release
    for key, value in given.items():
        if key in release.schema.fields and key in values and isinstance(value, (str, float)) and value != "":
            number, became = parse_number(value), parse_number(values[key])
            if value == values[key] or number == became:
                continue
            effect = f"this release turns it into {values[key]!r} when it loads the preset"
            idle = key == ADAPTIVE_NOISE and not noise_offset_counts(values)
            if idle or start.same({**form, key: value}, form):
                effect = f"{effect}; it does nothing with these settings"
                yield Finding("note", "lost-in-loading", key, value, effect, "remove it, or leave it")
            elif isinstance(value, float):
                fix = "`kohya-ext presets fit` helps, or type it into the field after loading"
                yield Finding("error", DEFECT, key, value, effect, fix)
            else:
                level: Level = "warning" if number is None or values[key] else "error"
                yield Finding(level, "lost-in-loading", key, value, effect, "write the number as the field expects it")
    if release.migration.takes_wandb and given.get("use_wandb") is True:
        effect = "lost: this release looks for the text 'True' when it turns the key into log_with"
        yield Finding("warning", "lost-in-loading", "use_wandb", True, effect, 'write "log_with": "wandb" instead')


def _typed(values: Mapping[str, Any], form: Mapping[str, Any], start: Start) -> Iterator[Finding]:
    release, harmless = start.release, harmless_texts(form, start)
    for key, value in values.items():
        one = release.schema.fields.get(key)
        if one is None or one.component is None:
            continue
        if one.wired_to is not None:
            effect = f"this release writes it into the field of {one.wired_to}"
            yield Finding("error", "crossed-wire", key, value, effect, "omit the key in this release")
        elif value is None:
            yield Finding("warning", "null", key, value, "the field keeps what it showed before", "give it a value")
        elif isinstance(value, (list, dict)):
            yield Finding("error", "wrong-type", key, value, "no field takes a list or an object", "give it one value")
        elif isinstance(value, bool) and one.component in ("Number", "Slider", "Textbox"):
            became = repr(str(value)) if one.component == "Textbox" else int(value)
            effect = f"a switch where a {one.component} belongs: it becomes {became}"
            yield Finding("warning", "wrong-type", key, value, effect, "give it a number or a text")
        elif not (key in harmless and _takes_text(one, release.gradio)):
            yield from _judged(value, one, release)


def _takes_text(one: Field, gradio: int | None) -> bool:
    """Whether a text that is a number passes the field itself; what the GUI makes of it is another question."""
    if one.component == "Slider":
        return gradio is not None and gradio < 6
    return gradio == 3 and one.precision != 0


def _judged(value: Any, one: Field, release: Release) -> Iterator[Finding]:
    if one.component == "Checkbox":
        yield from _checkbox(value, one)
    elif one.component in ("Number", "Slider"):
        yield from _number(value, one, release.gradio)
    elif one.component in ("Dropdown", "Radio"):
        yield from _choice(value, one, release.gradio)


def _checkbox(value: Any, one: Field) -> Iterator[Finding]:
    """Any text that is not empty counts as on in every gradio, so an error only where it says the opposite."""
    if not isinstance(value, str):
        return
    if not value:
        yield Finding(
            "note", "text-for-switch", one.key, value, "an empty text counts as off", "write false, or leave it"
        )
    elif value.strip().casefold() in FALSE_WORDS:
        effect = f"a text that is not empty counts as on, {value!r} too"
        yield Finding("error", "text-for-switch", one.key, value, effect, "write false")
    else:
        effect = "a text that is not empty counts as on"
        yield Finding("warning", "text-for-switch", one.key, value, effect, "write true or false")


def _number(value: Any, one: Field, gradio: int | None) -> Iterator[Finding]:
    number = parse_number(value)
    if isinstance(value, str):
        if one.component == "Slider":
            serious, effect = True, "stays a text in the slider: training fails when it is compared or counted with"
        elif one.precision == 0 or number is None or not value.strip():
            serious, effect = True, "loading fails, nothing of the preset is applied"
        elif (gradio or 5) >= 4 and (one.minimum is not None or one.maximum is not None):
            serious, effect = True, "stays a text: the next click on anything fails"
        else:
            serious, effect = False, "a text where a number belongs; whether it is converted depends on the release"
        yield Finding("error" if serious else "warning", "text-for-number", one.key, value, effect, "no quotes")
    if number is None or (isinstance(value, float) and not math.isfinite(value)):
        if not isinstance(value, str):
            yield Finding("error", "not-finite", one.key, str(value), "not a usable number", "give it a number")
        return
    if one.precision == 0 and not float(number).is_integer():
        effect = f"the field takes whole numbers: it becomes {round(number)}"
        yield Finding("warning", "rounded", one.key, value, effect, "give it a whole number")
    low, high = one.minimum, one.maximum
    if (low is not None and number < low) or (high is not None and number > high):
        fails = one.component == "Number" or (gradio is not None and gradio >= 6)
        effect = "the next click on anything fails" if fails else "accepted, though the slider cannot show it"
        fix = f"keep it between {low} and {high}"
        level: Level = "error" if fails else "note" if gradio is not None else "warning"
        fix = "leave it, where it is meant" if level == "note" else fix
        yield Finding(level, "out-of-range", one.key, value, effect, fix)


def _choice(value: Any, one: Field, gradio: int | None) -> Iterator[Finding]:
    offered = one.choices or ()
    if one.custom or "choices" in one.inexact or any(c == value and type(c) is type(value) for c in offered):
        return
    fails = gradio is None or gradio >= 5
    effect = (
        "the preset applies, but the next click on anything fails until it is corrected by hand"
        if fails
        else "shown with a warning only; training gets the value"
    )
    near = convert(value, one)
    fix = f"use {near.value!r}" if near.usable else f"one of: {', '.join(map(repr, offered))}"
    yield Finding("error" if fails else "warning", "not-offered", one.key, value, effect, fix)


def _missing(given: Mapping[str, Any], values: Mapping[str, Any], release: Release) -> Iterator[Finding]:
    fix = "complete it with `kohya-ext presets fit`"
    for key, one in release.schema.fields.items():
        if key in PRIVATE or one.wired_to is not None or given.get(key) is not None:
            continue
        if key == "learning_rate" and key in release.migration.zeroed:
            effect = "this release sets it to 0 when it is absent: nothing would be trained"
            yield Finding("error", "zeroed", key, None, effect, "give it a learning rate")
        elif key == "optimizer" or key in release.migration.zeroed:
            effect = f"this release sets it to {values[key]!r} when it is absent, whatever the field shows"
            yield Finding("warning", "zeroed", key, None, effect, fix)
        elif key not in values:
            effect = "the field keeps what it showed before: a preset chosen earlier leaks through"
            yield Finding("warning", "missing-key", key, None, effect, fix)


def loaded_form(values: Mapping[str, Any], release: Release) -> dict[str, Any]:
    """What the fields of a fresh GUI hold after the preset is loaded."""
    result: dict[str, Any] = {}
    for key, one in release.schema.fields.items():
        value = values.get(key)
        if value is None:
            start = shown_at_start(one)
            value = start.value if start.usable else None
        result[key] = value
    return result


def effective(values: Mapping[str, Any], release: Release) -> dict[str, Any]:
    """What training gets after the preset is loaded into a fresh GUI; "additional parameters" have the last word."""
    result = loaded_form(values, release)
    for name, value in flags_in(result.get(EXTRA)).items():
        key = KEYS_OF_FLAGS.get(name, name)
        if key in result:
            result[key] = value
    return result
