"""What a GUI finds in the folders of its checkout: its presets, models, earlier outputs, and its `config.toml`.

The GUI fills some lists from folders when it starts. These functions answer as its own do, from the same folders
(`list_dirs`, `list_files`: the same in every release that has them). How presets are listed differs, so the release's
own code is followed, with what this gives it of the file system. A folder that is not there yet is left unknown: GUIs
make some of them themselves, and list something else where they do not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from kohya_ext.files.regular import toml_loads
from kohya_ext.pysource.sources import Sources
from kohya_ext.pysource.values import Setting, StandIn, Unknown, Value, known

FOLLOWED = frozenset({"list_presets"})
MAX_ENTRIES = 10_000  # a larger folder is left unknown
HIDDEN = ("__pycache__",)
MOST_PARTS = 20  # of a key with dots
CONFIG = "config.toml"  # in the folder that the GUI runs in; its option `--config` can name another, unseen from here


def listings(root: Path) -> dict[str, StandIn]:
    """The functions that look into folders, for a GUI that runs in `root`."""
    base = os.path.abspath(root)  # noqa: PTH100 - as the GUI computes its own folder: symlinks stay

    def names(given: list[Any], _: dict[str, Any]) -> Any:
        place = Path(base, str(given[0]))
        return _names(place) if place.is_dir() else Unknown("a folder that is not there")

    def folders(given: list[Any], _: dict[str, Any]) -> Any:
        return _listed(base, given[0], lambda path: Path(path).is_dir())

    def files(given: list[Any], named: dict[str, Any]) -> Any:
        extensions = named.get("exts", given[1] if len(given) > 1 else None)
        everything = bool(named.get("all", given[2] if len(given) > 2 else False))
        found = _listed(base, given[0], lambda path: everything or Path(path).is_file())
        return found if isinstance(found, Unknown) or extensions is None else _chosen(base, found, extensions)

    return {
        "list_dirs": folders,
        "list_files": files,
        "os.listdir": names,
        "os.path.isdir": lambda given, _: Path(base, str(given[0])).is_dir(),
        "os.path.splitext": lambda given, _: list(os.path.splitext(given[0])),  # noqa: PTH122
        "os.path.join": lambda given, _: os.path.join(*given),  # noqa: PTH118 - what the GUI calls
    }


def _names(place: Path) -> Any:
    """The names in a folder, in the order that the file system gives."""
    with os.scandir(place) as entries:  # in the order of `os.listdir`, which the GUI calls
        found = [entry.name for entry in islice(entries, MAX_ENTRIES + 1)]
    return found if len(found) <= MAX_ENTRIES else Unknown("a very large folder")


def _listed(base: str, folder: Any, wanted: Any) -> Any:
    """The folder above, the folder itself, and what is in it, in natural order."""
    if folder in (None, "None", ""):
        return []
    place = Path(base, str(folder))
    if not place.is_dir():
        return Unknown("a folder that is not there")
    names = _names(place)
    if isinstance(names, Unknown):
        return names
    inside = [os.path.join(str(folder), name) for name in names if wanted(place / name)]  # noqa: PTH118
    shown = [path for path in inside if not os.path.basename(path).startswith(".")]  # noqa: PTH119
    shown = sorted((path for path in shown if os.path.basename(path) not in HIDDEN), key=_natural)  # noqa: PTH119
    above = os.path.dirname(str(folder))  # noqa: PTH120
    found = [*([above] if above else []), str(folder), *shown]
    return [path.replace("\\", "/") for path in found] if os.sep == "\\" else found


def _chosen(base: str, paths: Collection[str], extensions: Collection[str]) -> list[str]:
    """Folders, and what has one of the extensions; a folder whose name ends like a file comes twice."""
    found = []
    for path in paths:
        found += [path] if Path(base, path).is_dir() else []
        found += [path] if os.path.splitext(path)[1].lower() in extensions else []  # noqa: PTH122
    return found


def _natural(path: str) -> list[int | str]:
    return [int(part) if re.fullmatch("[0-9]+", part) else part.lower() for part in re.split("([0-9]+)", path)]


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
