"""What a preset depends on besides the release: a package of the environment, and the base model of the GUI's own list.

Everything that judges or makes presets asks here: `check`, `command`, `fit`, the installer, `status` and `doctor`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kohya_ext.core.errors import UsageError
from kohya_ext.presets.document import read_values
from kohya_ext.presets.keys import EXTRA
from kohya_ext.presets.release import SDXL
from kohya_ext.presets.schema import Schema

if TYPE_CHECKING:
    from kohya_ext.checkout.environment import Environment

XFORMERS = "xformers"  # the package, the field, and the choice in it
SDPA = "sdpa"  # torch's own attention
OWN_ATTENTION = "mem_eff_attn"  # that of sd-scripts, slower
WITHOUT = "the environment has no xformers, without which this setting stops training"

MODEL = "pretrained_model_name_or_path"
MODEL_LIST = "model_list"  # up to v22 a list of its own, whose choice decides what the field above shows
SDXL_BASE = "stabilityai/stable-diffusion-xl-base-1.0"
IN_LIST = "the base model that this GUI's own list offers"
_HUB = re.compile(r"[\w-]+/[\w.-]+(/blob/[\w./-]+)?")
_FILE = re.compile(r"\.(safetensors|ckpt|pt|pth|bin|txt)$", re.IGNORECASE)


def has_xformers(environments: Iterable[Environment]) -> bool | None:
    """Whether every environment that can train has the package; None where there is none to ask."""
    found = [bool(one.modules.get(XFORMERS)) for one in environments if one.runs_kohya]
    return all(found) if found else None


def chooses_xformers(value: Any) -> bool:
    """Whether a value of the field asks for the package; up to v21.8.5 it is a check box."""
    return value is True or str(value).casefold() in (XFORMERS, "true")


def names_xformers(path: Path) -> bool:
    """Whether a preset file asks for the package; False of one that cannot be read."""
    try:
        return chooses_xformers(read_values(path).get(XFORMERS))
    except UsageError:
        return False


def without_xformers(values: Mapping[str, Any], schema: Schema, arguments: Collection[str] | None) -> dict[str, Any]:
    """The settings to change for an environment without the package; empty where nothing asks for it.

    torch's own attention where the release has it, as a choice of the field or as a flag; else that of sd-scripts.
    """
    one = schema.fields.get(XFORMERS)
    if one is None or not chooses_xformers(one.default if values.get(XFORMERS) is None else values[XFORMERS]):
        return {}
    if SDPA in (one.choices or ()) or one.component is None:
        return {XFORMERS: SDPA}
    off = "none" if "none" in (one.choices or ()) else False
    before = str(values.get(EXTRA) or "")
    if EXTRA in schema.fields and f"--{SDPA}" in (arguments or ()):
        return {XFORMERS: off, EXTRA: before if f"--{SDPA}" in before.split() else f"{before} --{SDPA}".strip()}
    return {XFORMERS: off, **({OWN_ATTENTION: True} if OWN_ATTENTION in schema.fields else {})}


def hub_models(schema: Schema) -> frozenset[str]:
    """The names on the hub that the GUI's list of base models offers: they are the same on every machine."""
    offered = [one.choices or () for key in (MODEL, MODEL_LIST) if (one := schema.fields.get(key)) is not None]
    texts = (str(choice) for choices in offered for choice in choices)
    return frozenset(text for text in texts if _HUB.fullmatch(text) and ("/blob/" in text or not _FILE.search(text)))


def base_model(values: Mapping[str, Any], schema: Schema) -> dict[str, str]:
    """The fields of the base model for settings of SDXL that name none; empty where the list does not offer it."""
    named = values.get(MODEL) or SDXL_BASE
    is_sdxl = any(values.get(key) in (True, "true", "True") for key in SDXL)
    if named not in hub_models(schema) or not (values.get(MODEL) or is_sdxl):
        return {}
    listed = schema.fields.get(MODEL_LIST)
    found = {MODEL: named} if MODEL in schema.fields else {}
    return {**found, **({MODEL_LIST: named} if listed is not None and named in (listed.choices or ()) else {})}
