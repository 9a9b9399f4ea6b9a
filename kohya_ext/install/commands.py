"""Commands of ours to print: complete, so that they run as they are pasted, from any folder and in any shell."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from kohya_ext.about import CONSOLE_SCRIPTS
from kohya_ext.bundle import PACKAGE_DIR

INSTALLER = "install.sh"


def command(verb: str, *words: object) -> str:
    """The command line that runs `verb` of this very copy of kohya_ext.

    From a clone that is its install.sh, which finds a Python by itself; where we are installed, the script that pip
    made for the Python that runs us now, since `kohya-ext` alone need not be on PATH.
    """
    given = [str(word) for word in words]
    clone = PACKAGE_DIR.parent
    if (clone / INSTALLER).is_file():
        if verb in ("install", "uninstall"):
            return shlex.join([str(clone / INSTALLER), *(["--uninstall"] if verb == "uninstall" else []), *given])
        return shlex.join(["env", f"PYTHONPATH={clone}", sys.executable, "-m", PACKAGE_DIR.name, verb, *given])
    script = Path(sys.executable).with_name(next(iter(CONSOLE_SCRIPTS)))
    start = [str(script)] if script.is_file() else [sys.executable, "-m", PACKAGE_DIR.name]
    return shlex.join([*start, verb, *given])
