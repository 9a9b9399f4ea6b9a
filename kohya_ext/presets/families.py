"""What a preset is for and an older release has no training for: its model family, its kind of network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kohya_ext.presets.findings import Finding
from kohya_ext.presets.release import FAMILIES
from kohya_ext.presets.schema import Schema

NETWORK = "LoRA_type"
OLD_NAMES = {"LoCon": "LyCORIS/LoCon"}  # renamed in 2023
NAMES = {"flux1": "Flux", "sd3": "SD3", "anima": "Anima", "lumina": "Lumina", "hunyuan_image": "HunyuanImage"}


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
