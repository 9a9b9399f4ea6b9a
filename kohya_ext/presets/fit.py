"""A preset made complete and valid for the GUI that is installed.

Complete, because a GUI that loads a preset leaves every absent field as it was before (or, up to v23.1.3, sets some to
0): two presets chosen one after the other would mix. Never a path, a secret or anything that belongs to one machine.
A preset is refused where the release has no training for what it is for: its model family, its kind of network.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from kohya_ext.core.errors import UnsupportedError
from kohya_ext.presets.convert import convert, parse_number, shown_at_start
from kohya_ext.presets.document import Preset
from kohya_ext.presets.findings import Finding
from kohya_ext.presets.keys import EXTRA, FLAGS, OPTIMIZER_WHEN_ABSENT, PRIVATE, RENAMED, SECRETS, ZERO_IS_UNSET
from kohya_ext.presets.machine import IN_LIST, WITHOUT, base_model, hub_models, without_xformers
from kohya_ext.presets.migration import Migration
from kohya_ext.presets.privacy import without_paths, without_secrets
from kohya_ext.presets.release import FAMILIES, Release
from kohya_ext.presets.schema import Field, Schema, offering_ours

ADAPTIVE_NOISE = "adaptive_noise_scale"
CAPTIONS = "caption_extension"
TEXTS_REFUSED = 5  # gradio's major version from which a list refuses what it does not offer

Action = Literal["dropped", "renamed", "converted", "changed", "filled", "moved"]

NETWORK = "LoRA_type"
OLD_NAMES = {"LoCon": "LyCORIS/LoCon"}  # renamed in 2023
NAMES = {"flux1": "Flux", "sd3": "SD3", "anima": "Anima", "lumina": "Lumina", "hunyuan_image": "HunyuanImage"}


@dataclass(frozen=True)
class Step:
    """One thing that fitting did to a preset."""

    action: Action
    key: str
    before: Any
    after: Any
    reason: str

    def as_json(self) -> dict[str, Any]:
        """The step as `--json` prints it."""
        return {
            "action": self.action,
            "key": self.key,
            "before": self.before,
            "after": self.after,
            "reason": self.reason,
        }


@dataclass
class Fitted:
    """The fitted settings, and everything that was done to get them."""

    values: dict[str, Any] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    def note(self, action: Action, key: str, before: Any, after: Any, reason: str) -> None:
        """Record what was done to a key, and why."""
        self.steps.append(Step(action, key, before, after, reason))


def fit_to_release(preset: Preset, release: Release, *, loaded: bool = True, keep_personal: bool = False) -> Fitted:
    """`fit` for a tab of an installed release that offers what is ours.

    loaded: the GUI is going to load the result from a file; else its values go into the form as they are.
    """
    return fit(
        preset,
        offering_ours(release.schema),
        arguments=release.flags,
        migration=release.migration if loaded else Migration(zeroed=release.migration.zeroed),
        keep_personal=keep_personal,
        gradio=release.gradio,
        xformers=release.xformers,
    )


def fit(
    preset: Preset,
    schema: Schema,
    *,
    arguments: Collection[str] | None = None,
    migration: Migration | None = None,
    keep_personal: bool = False,
    gradio: int | None = None,
    xformers: bool | None = None,
) -> Fitted:
    """The preset for the tab that `schema` describes.

    gradio: its major version; up to 5 sliders take values outside their limits, up to 4 lists take texts that they do
    not offer, and those stay. None = not known.
    xformers: whether the environment has the package; without it torch's own attention is chosen. None = not known.

    keep_personal: leave paths and what belongs to one machine as they are, where the field takes them; secrets never.
    migration: what the release does to values while it loads them, None when the preset is not going to be loaded.
    arguments: the flags that the installed training script takes, None when they are not known; a setting the GUI has
    no field for yet can go through "additional parameters" if the script knows its flag.
    Raises UnsupportedError when the preset requires something that this release lacks, its optimizer included.
    """
    for refused in lacking(preset.values, schema):
        raise UnsupportedError(f"preset {preset.name}: {refused.key} = {refused.value!r}: {refused.effect}")
    fitted = Fitted()
    given = _renamed(preset.values, schema, fitted)
    _pass_flags(preset, given, schema, arguments, fitted)
    _drop(given, schema, fitted, SECRETS if keep_personal else PRIVATE)
    _clean(given, fitted, keep_personal=keep_personal)
    if not keep_personal:
        _base_model(given, schema, fitted)
    if xformers is False:
        _other_attention(given, schema, arguments, fitted)
    _spaced(given, fitted)
    _zeroed(given, schema, migration, fitted)
    fields = dict(schema.fields)
    if gradio is not None and gradio < TEXTS_REFUSED and CAPTIONS in fields:
        fields[CAPTIONS] = replace(fields[CAPTIONS], custom=True)
    else:
        _caption_files(given, schema, arguments, fitted)
    for key, value in tuple(given.items()):
        number, one = parse_number(value), fields[key]
        if one.component != "Slider" or number is None or isinstance(value, bool) or value == "":
            continue
        if gradio is not None and gradio < 6:
            fields[key] = replace(one, minimum=None, maximum=None)
        elif convert(value, one).problem and _as_flag(key, value, given, schema, arguments):
            fitted.note("moved", key, value, given[EXTRA], f"the slider refuses it; --{key} in {EXTRA} does the same")
    for key, one in fields.items():
        if one.wired_to is None and (key not in PRIVATE or key in given):
            _put(given.get(key), one, preset.name, fitted)
    _survive_loading(migration or Migration(), fitted)
    return fitted


def _put(value: Any, one: Field, preset: str, fitted: Fitted) -> None:
    """One field's value, as the field takes it; what it shows at first where that is not possible."""
    key = one.key
    converted = convert(value, one)
    if one.component is None:  # wiring unknown: nothing to convert by
        if converted.usable:
            fitted.values[key] = converted.value
        return
    if value == "" and one.component in ("Number", "Slider") and key not in ZERO_IS_UNSET:
        value = None  # a text box of an older release, left to its default
    if value is not None and converted.usable:
        fitted.values[key] = converted.value
        if converted.problem:
            fitted.note("changed", key, value, converted.value, converted.problem)
        elif converted.value != value or type(converted.value) is not type(value):
            fitted.note("converted", key, value, converted.value, f"the field is a {one.component}")
        return
    if key == "optimizer" and value is not None:  # another one would need another learning rate
        raise UnsupportedError(f"preset {preset}: {converted.problem}")
    start = shown_at_start(one)
    if start.usable:
        fitted.values[key] = start.value
        if value is None:
            fitted.note("filled", key, value, start.value, "absent; the GUI's own default")
        else:
            fitted.note("changed", key, value, start.value, converted.problem)
    elif value is not None:
        fitted.note("dropped", key, value, None, converted.problem)


def _as_flag(key: str, value: Any, given: dict[str, Any], schema: Schema, arguments: Collection[str] | None) -> bool:
    """Writes a value that its field refuses into "additional parameters"; False where the script has no such flag."""
    if EXTRA not in schema.fields or f"--{key}" not in (arguments or ()):
        return False
    before = str(given.get(EXTRA) or "")
    if f"--{key}" not in before:
        given[EXTRA] = f"{before} --{key}={value}".strip()
    return True


def _spaced(given: dict[str, Any], fitted: Fitted) -> None:
    """From v24 on the GUI wants single spaces between arguments of optimizers, and none around them."""
    for key in ("optimizer_args", "lr_scheduler_args"):
        text = given.get(key)
        if isinstance(text, str) and " ".join(text.split()) != text:
            given[key] = " ".join(text.split())
            fitted.note("changed", key, text, given[key], "the GUI wants single spaces between arguments")


def _zeroed(given: dict[str, Any], schema: Schema, migration: Migration | None, fitted: Fitted) -> None:
    """What the release sets to 0 when a preset does not have it: the GUI's default would be another training.

    Not the learning rate, without which nothing would be trained.
    """
    for key in sorted(migration.zeroed if migration else ()):
        one = schema.fields.get(key)
        if one is not None and one.wired_to is None and key != "learning_rate" and not given.get(key):
            if given.get(key) is None:
                fitted.note("filled", key, None, 0, "absent; this release sets it to 0")
            given[key] = 0


def _caption_files(given: dict[str, Any], schema: Schema, arguments: Collection[str] | None, fitted: Fitted) -> None:
    """A kind of caption file that the list does not offer: never another kind, whose files may lie there."""
    key = CAPTIONS
    one, value = schema.fields.get(key), given.get(key)
    if one is None or not isinstance(value, str) or not value or not one.choices or one.custom:
        return
    if value in one.choices or "choices" in one.inexact or any(c in value for c in " \"'\t\n"):
        return
    if not value.startswith(".none") and _as_flag(key, value, given, schema, arguments):
        fitted.note("moved", key, value, given[EXTRA], f"not offered; --{key} in {EXTRA} does the same")
    given[key] = "" if "" in one.choices else ".caption" if ".caption" in one.choices else value
    if value.startswith(".none") and given[key] != value:
        reason = "not offered; so .txt files stay unread as before, only .caption files would be found"
        fitted.note("changed", key, value, given[key], reason)


def _survive_loading(migration: Migration, fitted: Fitted) -> None:
    """Fractions that the release would cut off while it loads the preset."""
    values = fitted.values
    for key in migration.whole:
        value = values.get(key)
        if not isinstance(value, float) or value.is_integer():
            continue
        values[key] = int(value)
        noisy = noise_offset_counts(values)
        if key != ADAPTIVE_NOISE or EXTRA not in values:
            fitted.note("changed", key, value, values[key], "this release cuts the fraction off when it loads a preset")
        elif noisy:  # the flag has the last word over the field
            values[EXTRA] = f"{values[EXTRA]} --{key}={value}".strip()
            reason = f"this release cuts the fraction off when it loads a preset; --{key} in {EXTRA} does the same"
            fitted.note("moved", key, value, values[EXTRA], reason)
        else:
            fitted.note("changed", key, value, values[key], "it does nothing without a noise offset")


def noise_offset_counts(values: Mapping[str, Any]) -> bool:
    """Whether training adds an offset to the noise, without which adaptive noise does nothing."""
    original = (values.get("noise_offset_type") or "Original") == "Original"
    return original and bool(parse_number(values.get("noise_offset") or 0))


def _renamed(values: Mapping[str, Any], schema: Schema, fitted: Fitted) -> dict[str, Any]:
    """The given settings under the names of the installed release."""
    given = dict(values)
    for old, new in RENAMED.items():
        for source, target in ((old, new), (new, old)):
            if source in given and source not in schema.fields and target in schema.fields and target not in given:
                before = given.pop(source)
                given[target] = _translated(target, before)
                if target == "log_with" and before in (True, "true"):
                    reason = (
                        f"every release loses it in loading; choose wandb under {target} once you are logged in there"
                    )
                    fitted.note("dropped", source, before, None, reason)
                else:
                    fitted.note("renamed", source, before, given[target], f"this release calls it {target}")
    if not given.get("optimizer") and "optimizer" in schema.fields:
        given["optimizer"] = "AdamW8bit" if given.get("use_8bit_adam") is True else OPTIMIZER_WHEN_ABSENT
        fitted.note("filled", "optimizer", None, given["optimizer"], "what every release takes when it is absent")
    if given.get("LoRA_type") == "LoCon":
        given["LoRA_type"] = "LyCORIS/LoCon"
        fitted.note("renamed", "LoRA_type", "LoCon", "LyCORIS/LoCon", "its name since 2023")
    return given


def _translated(target: str, value: Any) -> Any:
    if target == "log_with":
        return "wandb" if value == "True" else ""  # the releases look for this text
    if target == "use_wandb":
        return value == "wandb"
    return value


def _pass_flags(
    preset: Preset, given: dict[str, Any], schema: Schema, arguments: Collection[str] | None, fitted: Fitted
) -> None:
    """Settings without a field go through "additional parameters", or stop the preset if it cannot do without."""
    for key, flag in FLAGS.items():
        if key in schema.fields or key not in given:
            continue
        wanted = given.pop(key)
        if wanted is not True:
            continue
        if EXTRA in schema.fields and arguments is not None and flag in arguments:
            before = str(given.get(EXTRA) or "")
            if flag not in before.split():
                given[EXTRA] = f"{before} {flag}".strip()
            fitted.note(
                "moved", key, wanted, given[EXTRA], f"no field of this release; {flag} in {EXTRA} does the same"
            )
        elif key in preset.requires:
            raise UnsupportedError(
                f"preset {preset.name} needs {flag}, which the training code of this release does not have "
                "(sd-scripts has it from v0.9.0, kohya_ss from v24.1.5)"
            )
        else:
            fitted.note("dropped", key, wanted, None, f"this release has neither a field for it nor {flag}")


def _clean(given: dict[str, Any], fitted: Fitted, *, keep_personal: bool) -> None:
    """Takes secrets and paths out of texts that may hold them among other things."""
    for key, value in given.items():
        cleaned = without_secrets(key, value)
        if cleaned != value:
            fitted.note("dropped", key, "...", cleaned, "a secret")
        public = cleaned if keep_personal else without_paths(key, cleaned)
        if public != cleaned:
            fitted.note("dropped", key, cleaned, public, "a path of one machine")
        given[key] = public


def _drop(given: dict[str, Any], schema: Schema, fitted: Fitted, private: Collection[str]) -> None:
    shared = hub_models(schema)
    for key in sorted(given):
        one = schema.fields.get(key)
        if one is None:
            reason = "this release has no such setting"
        elif key in private and str(given[key]) not in shared:
            reason = "belongs to one machine or person"
        elif one.wired_to is not None:
            reason = f"this release writes it into the field of {one.wired_to}"
        else:
            continue
        if given[key] not in ("", None) or one is None:
            fitted.note("dropped", key, given[key], None, reason)
        del given[key]


def _base_model(given: dict[str, Any], schema: Schema, fitted: Fitted) -> None:
    """Named in the preset: the field would keep what it showed before, in a fresh GUI a model of another family."""
    for key, value in base_model(given, schema).items():
        if given.get(key) != value:
            fitted.note("filled", key, given.get(key), value, IN_LIST)
            given[key] = value


def _other_attention(given: dict[str, Any], schema: Schema, arguments: Collection[str] | None, fitted: Fitted) -> None:
    for key, value in without_xformers(given, schema, arguments).items():
        if given.get(key) != value:
            fitted.note("changed", key, given.get(key), value, WITHOUT)
            given[key] = value


def lacking(values: Mapping[str, Any], schema: Schema) -> Iterator[Finding]:
    """A finding for each; without it the settings would train another kind of model on the file."""
    for key in FAMILIES:
        if key not in schema.fields and values.get(key) in (True, "true", "True", 1):
            name = NAMES.get(key.removesuffix("_checkbox"), key)
            effect = f"this release cannot train {name}: its {schema.tab} tab would run another model's script"
            yield Finding("error", "refused", key, values[key], effect, f"use a release of kohya_ss that has {name}")
    kind, one = values.get(NETWORK), schema.fields.get(NETWORK)
    if one is None or not isinstance(kind, str) or not kind or one.custom or "choices" in one.inexact:
        return
    offered = one.choices or ()
    if offered and OLD_NAMES.get(kind, kind).casefold() not in (str(choice).casefold() for choice in offered):
        effect = f"this release has no such network: {', '.join(map(str, offered))}"
        yield Finding("error", "refused", NETWORK, kind, effect, "choose one of these, or use a newer release")
