"""A preset against the GUI and the training code that are installed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from kohya_ext.presets.contradictions import contradictions
from kohya_ext.presets.convert import convert, parse_number, shown_at_start
from kohya_ext.presets.document import Preset
from kohya_ext.presets.findings import LEVELS, Finding
from kohya_ext.presets.keys import DEAD, PATHS, PERSONAL, PRIVATE, RENAMED, SECRETS
from kohya_ext.presets.migration import LoadError
from kohya_ext.presets.release import Release
from kohya_ext.presets.schema import Field


def check(preset: Preset, release: Release) -> list[Finding]:
    """Everything that is wrong or doubtful about a preset in a release, the worst first."""
    try:
        values = release.migration.apply(preset.values)
    except LoadError as error:
        value = preset.values.get(error.key)
        return [Finding("error", "load-fails", error.key, value, f"nothing is applied: {error}", "give it one value")]
    findings = [
        *_unknown({key: value for key, value in values.items() if key in preset.values}, release),
        *_private(values),
        *_typed(values, release),
        *_missing(values, release),
        *_release_defects(values, release),
        *contradictions(_effective(values, release), release),
    ]
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))


def _unknown(values: Mapping[str, Any], release: Release) -> Iterator[Finding]:
    for key in sorted(set(values) - set(release.schema.fields)):
        successor = RENAMED.get(key)
        if successor in release.schema.fields and successor is not None:
            effect, cure = "lost: this GUI ignores the key", f"rename it to {successor}"
            yield Finding("warning", "renamed-key", key, values[key], effect, cure)
        elif key in DEAD:
            yield Finding("note", "dead-key", key, values[key], "ignored by every release", "remove it")
        else:
            effect = f"ignored: {release.name} has no such field in the {release.schema.tab} tab"
            yield Finding("warning", "unknown-key", key, values[key], effect, "remove it, or fit the preset")


def _private(values: Mapping[str, Any]) -> Iterator[Finding]:
    for key in sorted(set(values) & PRIVATE):
        value = values[key]
        if not isinstance(value, str) or not value:
            continue
        if key in SECRETS:
            yield Finding(
                "error", "secret", key, "...", "whoever gets the file gets the secret", "remove it, revoke it"
            )
        elif key in PATHS:
            yield Finding("warning", "path", key, value, "a path of the machine it was made on", "remove it")
        elif key in PERSONAL and key not in ("model_list", "training_preset"):
            yield Finding(
                "note", "personal", key, value, "belongs to one machine, account or run", "remove it to share"
            )


def _typed(values: Mapping[str, Any], release: Release) -> Iterator[Finding]:
    for key, value in values.items():
        one = release.schema.fields.get(key)
        if one is None or one.component is None:
            continue
        if one.wired_to is not None:
            effect = f"this release writes it into the field of {one.wired_to}"
            yield Finding("error", "crossed-wire", key, value, effect, "leave the key out in this release")
        elif value is None:
            yield Finding("warning", "null", key, value, "the field keeps what it showed before", "give it a value")
        elif isinstance(value, (list, dict)):
            yield Finding("error", "wrong-type", key, value, "no field takes a list or an object", "give it one value")
        else:
            yield from _judged(value, one, release)


def _judged(value: Any, one: Field, release: Release) -> Iterator[Finding]:
    if one.component == "Checkbox":
        yield from _checkbox(value, one)
    elif one.component in ("Number", "Slider"):
        yield from _number(value, one, release.gradio)
    elif one.component in ("Dropdown", "Radio"):
        yield from _choice(value, one, release.gradio)


def _checkbox(value: Any, one: Field) -> Iterator[Finding]:
    if isinstance(value, str):
        effect = f"a text that is not empty counts as on, {value!r} too" if value else "an empty text counts as off"
        yield Finding("error", "text-for-switch", one.key, value, effect, "write true or false")


def _number(value: Any, one: Field, gradio: int | None) -> Iterator[Finding]:
    number = parse_number(value)
    if isinstance(value, str):
        if one.component == "Slider":
            level, effect = "error", "stays a text in the slider: training fails when it is compared or counted with"
        elif one.precision == 0 or number is None or not value.strip():
            level, effect = "error", "loading fails, nothing of the preset is applied"
        elif (gradio or 5) >= 4 and (one.minimum is not None or one.maximum is not None):
            level, effect = "error", "stays a text: the next click of anything fails"
        else:
            level, effect = "warning", "a text where a number belongs; whether it is converted depends on the release"
        yield Finding(
            "error" if level == "error" else "warning", "text-for-number", one.key, value, effect, "no quotes"
        )
    if number is None or (isinstance(value, float) and not math.isfinite(value)):
        if not isinstance(value, str):
            yield Finding("error", "not-finite", one.key, str(value), "no number to train with", "give it a number")
        return
    low, high = one.minimum, one.maximum
    if (low is not None and number < low) or (high is not None and number > high):
        fails = one.component == "Number" or (gradio is not None and gradio >= 6)
        effect = "the next click of anything fails" if fails else "accepted, though the slider cannot show it"
        cure = f"keep it between {low} and {high}"
        yield Finding("error" if fails else "warning", "out-of-range", one.key, value, effect, cure)


def _choice(value: Any, one: Field, gradio: int | None) -> Iterator[Finding]:
    offered = one.choices or ()
    if one.custom or "choices" in one.inexact or any(c == value and type(c) is type(value) for c in offered):
        return
    fails = gradio is None or gradio >= 5
    effect = (
        "the preset applies, but the next click of anything fails until it is corrected by hand"
        if fails
        else "shown with a warning only; training gets the value"
    )
    near = convert(value, one)
    cure = f"use {near.value!r}" if near.usable else f"one of: {', '.join(map(repr, offered))}"
    yield Finding("error" if fails else "warning", "not-offered", one.key, value, effect, cure)


def _missing(values: Mapping[str, Any], release: Release) -> Iterator[Finding]:
    for key, one in release.schema.fields.items():
        if key in PRIVATE or one.wired_to is not None or key in values:
            continue
        effect = "the field keeps what it showed before: a preset chosen earlier leaks through"
        yield Finding("warning", "missing-key", key, None, effect, "fit the preset: it is completed")
    if release.migration.zeroed and not values.get("learning_rate") and "learning_rate" in release.schema.fields:
        effect = "set to 0 when absent or no number: nothing would be trained"
        yield Finding(
            "error", "zeroed", "learning_rate", values.get("learning_rate"), effect, "give it a learning rate"
        )


def _release_defects(values: Mapping[str, Any], release: Release) -> Iterator[Finding]:
    cached = values.get("cache_latents") is True or bool(values.get("dataset_config"))
    if release.wants_cached_latents and release.schema.tab == "finetune" and not cached:
        effect = (
            "the training script stops with AttributeError: this sd-scripts needs cached latents with metadata files"
        )
        cure = "switch cache_latents on and random_crop off, or use another sd-scripts"
        yield Finding("error", "release-defect", "cache_latents", values.get("cache_latents"), effect, cure)
    warmup = release.schema.fields.get("lr_warmup")
    if warmup is None or warmup.component != "Slider" or not isinstance(warmup.default, str):
        return
    if release.gradio is not None and release.gradio >= 6:
        effect = "the slider starts as a text, which gradio 6 refuses: every click in the tab fails"
        cure = "put `lr_warmup = 0` under [basic] in config.toml beside the GUI"
        yield Finding("error", "release-defect", "lr_warmup", warmup.default, effect, cure)


def _effective(values: Mapping[str, Any], release: Release) -> dict[str, Any]:
    """What the form holds after the preset is loaded into a fresh GUI."""
    result = {}
    for key, one in release.schema.fields.items():
        value = values.get(key)
        if value is None:
            start = shown_at_start(one)
            value = start.value if start.usable else None
        result[key] = value
    return result
