"""Commands of ours to print: complete, so that they run as they are pasted, from any folder and in any shell."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from kohya_ext.core import shell
from kohya_ext.core.about import NAME
from kohya_ext.core.bundle import PACKAGE_DIR

INSTALLER = "install.ps1" if os.name == "nt" else "install.sh"


def command(verb: str, *words: object) -> str:
    """The command line that runs `verb` of this very copy of kohya_ext.

    From a clone that is its install.sh, which finds a Python by itself, or for other verbs and on Windows its folder
    kohya_ext, which Python can run; where we are installed, the script that pip made for the Python that runs us now,
    since `kohya-ext` alone need not be on PATH.
    """
    clone = PACKAGE_DIR.parent
    in_clone = (clone / INSTALLER).is_file()
    if in_clone and os.name != "nt" and verb in ("install", "uninstall"):
        return shell.line(clone / INSTALLER, *(["--uninstall"] if verb == "uninstall" else []), *words)
    script = None if in_clone else console_script(Path(sys.executable).parent)
    # by its path: `python -m` would take modules from the folder that the user stands in
    start = [script] if script is not None else [sys.executable, PACKAGE_DIR]
    return shell.line(*start, verb, *words)


def pip_install(package: str) -> str:
    """The command line that installs `package` into the Python that runs us now."""
    return shell.line(sys.executable, "-m", "pip", "install", package)


def console_script(scripts: Path) -> Path | None:
    """The program that pip has made for us in a folder of scripts."""
    return next((path for path in (scripts / NAME, scripts / f"{NAME}.exe") if path.is_file()), None)
