"""Where the data that ships with the package lies: `patches/` and `presets/`.

In a source tree they stand at the top level, where people look for them; in a wheel they travel inside the package.
"""

from __future__ import annotations

from pathlib import Path

from kohya_ext.core.errors import UsageError

PACKAGE_DIR = Path(__file__).resolve().parents[1]
DATA = ("patches", "presets")


def data_dir(name: str) -> Path:
    """The folder `patches` or `presets` of this installation.

    Raises UsageError when the installation is incomplete.
    """
    for folder in (PACKAGE_DIR / "bundled" / name, PACKAGE_DIR.parent / name):
        if folder.is_dir():
            return folder
    raise UsageError(f"this copy of kohya_ext has no {name}/ folder next to {PACKAGE_DIR}; install it again")
