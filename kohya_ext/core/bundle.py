"""Where the data that ships with the package lies: `patches/`, `presets/`, and what describes the package.

In a source tree all of it stands at the top level, where people look for it; in a wheel it travels inside the package.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kohya_ext.core.errors import UsageError

PACKAGE_DIR = Path(__file__).resolve().parents[1]
BUNDLED = "bundled"
FOLDERS = ("patches", "presets")
FILES = ("pyproject.toml", "README.md", "LICENSE")  # from which a copy of kohya_ext writes a wheel of itself


def data_dir(name: str) -> Path:
    """The folder `patches` or `presets` of this installation.

    Raises UsageError when the installation is incomplete.
    """
    return _path(name, f"folder {name}/", Path.is_dir)


def data_file(name: str) -> Path:
    """The file `pyproject.toml`, `README.md` or `LICENSE` of this installation. Raises UsageError as `data_dir`."""
    return _path(name, name, Path.is_file)


def _path(name: str, called: str, is_there: Callable[[Path], bool]) -> Path:
    for path in (PACKAGE_DIR / BUNDLED / name, PACKAGE_DIR.parent / name):
        if is_there(path):
            return path
    raise UsageError(f"this copy of kohya_ext has no {called} next to {PACKAGE_DIR}; reinstall it")
