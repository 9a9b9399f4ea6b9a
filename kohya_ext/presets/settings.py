"""The settings of presets by section, and what each does."""

from __future__ import annotations

from kohya_ext.presets.family_texts import FAMILIES
from kohya_ext.presets.texts import COMMON

SECTIONS: dict[str, dict[str, str]] = {**COMMON, **FAMILIES}
OTHER = "Other"


def grouped(keys: list[str]) -> dict[str, list[str]]:
    """The keys by section, in the order of the GUI; what has no section comes last."""
    left = set(keys)
    groups = {}
    for section, texts in SECTIONS.items():
        if members := [key for key in texts if key in left]:
            groups[section] = members
            left -= set(members)
    if left:
        groups[OTHER] = sorted(left)
    return groups


def described(key: str) -> str:
    """What a setting does, "" where we have no text for it."""
    return next((texts[key] for texts in SECTIONS.values() if key in texts), "")
