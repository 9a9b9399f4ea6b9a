"""The GUI's `config.toml`: values of the user's own that fields start with instead of the release's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kohya_ext.files.regular import toml_loads
from kohya_ext.pysource.sources import Sources
from kohya_ext.pysource.values import Setting, Unknown, Value, known

MOST_PARTS = 20  # of a key with dots
CONFIG = "config.toml"  # in the folder that the GUI runs in; its option `--config` can name another, unseen from here


def read_config(sources: Sources) -> tuple[dict[str, Any], str]:
    """The values, and what is wrong with the file ("" for nothing, a missing file included)."""
    text = sources.read(CONFIG)
    if text is None:
        return {}, ""
    try:
        return toml_loads(text), ""
    except Exception as error:  # readers of TOML raise what they like: `toml` has IndexErrors, the others recurse
        return {}, f"{CONFIG} cannot be read, the GUI will not start with it: {error}"


def setting(values: Mapping[str, Any], key: str, default: Value) -> Value:
    """What the GUI finds under a key with dots: the file's value, else the default of the source."""
    found: Any = values
    for part in key.split(".", MOST_PARTS):
        if not isinstance(found, Mapping) or part not in found:
            return Setting(key, default)
        found = found[part]
    return Setting(key, found if known(found) else Unknown(f"{key} in {CONFIG}"))
