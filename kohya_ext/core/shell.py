"""Commands to print, quoted for the shell they will be pasted into: a POSIX one, PowerShell, or the old cmd.

Those of ours are complete: they run as they are pasted, from any folder.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path
from typing import Literal

from kohya_ext.core.about import NAME
from kohya_ext.core.bundle import PACKAGE_DIR
from kohya_ext.core.terminal import printable

INSTALLER = "install.ps1" if os.name == "nt" else "install.sh"
Style = Literal["posix", "powershell", "cmd"]

# What neither PowerShell nor cmd takes for more than itself. (In PowerShell a comma makes a list, and a word that
# begins with a dash is cut at its first dot.)
_PLAIN = re.compile(r"(?!-[^.]*\.)[\w.:=+/\\-]+")
_QUOTES = re.compile("['\N{LEFT SINGLE QUOTATION MARK}-\N{SINGLE HIGH-REVERSED-9 QUOTATION MARK}]")  # all quote there


def style() -> Style:
    """The shell that we were started from, as far as that shows: cmd gives its children the variable PROMPT."""
    if os.name != "nt":
        return "posix"
    return "cmd" if "PROMPT" in os.environ else "powershell"


def quoted(word: object, shell: Style | None = None) -> str:
    """`word` as one word of a command line."""
    text, shell = str(word), shell or style()
    if shell == "posix":
        return shlex.quote(text) if printable(text, one_line=True) == text else _ansi_c(text)
    if _PLAIN.fullmatch(text):
        return text
    text = re.sub(r'(\\*)"', r'\1\1\\"', text)  # programs split their command line by themselves, and undo this
    if shell == "powershell":
        text = _QUOTES.sub(lambda quote: quote[0] * 2, text)
        return f"'{text}'"
    text = re.sub(r"(\\+)$", r"\1\1", text)
    return f'"{text}"'


def _ansi_c(text: str) -> str:
    """`text` as bash, zsh and ksh read it in $'...': on one line, with nothing that steers a terminal, and the same."""
    return f"$'{''.join(map(_escaped, text))}'"


def _escaped(character: str) -> str:
    if character not in "\\'" and printable(character, one_line=True) == character:
        return character
    undecodable = "\udc80" <= character <= "\udcff"  # stands for a byte of a name
    return "".join(f"\\{byte:03o}" for byte in character.encode(errors="surrogateescape" if undecodable else "replace"))


def line(*words: object, shell: Style | None = None) -> str:
    """A command of these words, the first its program."""
    shell = shell or style()
    text = " ".join(quoted(word, shell) for word in words)
    return f"& {text}" if shell == "powershell" and text.startswith("'") else text


def in_turn(*lines: str, shell: Style | None = None) -> str:
    """Commands of which each runs when the one before it has succeeded; Windows PowerShell has no word for that."""
    return ("; " if (shell or style()) == "powershell" else " && ").join(lines)


def move(source: object, target: object) -> str:
    """The command that gives a file another name."""
    return line("move" if os.name == "nt" else "mv", source, target)


def copy(source: object, target: object) -> str:
    """The command that copies a file."""
    return line("copy" if os.name == "nt" else "cp", source, target)


def remove(path: object) -> str:
    """The command that removes a file."""
    return line("del" if os.name == "nt" else "rm", path)


def install_again(python: object) -> str:
    """What to run where we are damaged and only the file name of our installer is known."""
    option = "-Python" if os.name == "nt" else "--python"
    return f"run {INSTALLER} of kohya_ext again with {option} {quoted(python)}"


def make_writable(path: object) -> str:
    """The command that lets its owner write a file."""
    return line("attrib", "-r", path) if os.name == "nt" else line("chmod", "u+w", path)


def more_rights() -> str:
    """Who should run a command that this user may not."""
    if os.name == "nt":
        return "run in a terminal that was opened with Run as administrator, or as the user that owns it"
    return "run as the user that owns it, or as root"


def example_python() -> str:
    """Where a virtual environment has its interpreter."""
    return r"venv\Scripts\python.exe" if os.name == "nt" else "venv/bin/python"


def command(verb: str, *words: object) -> str:
    """The command line that runs `verb` of this very copy of kohya_ext.

    From a clone that is its install.sh, which finds a Python by itself, or for other verbs and on Windows its folder
    kohya_ext, which Python can run; where we are installed, the script that pip made for the Python that runs us now,
    since `kohya-ext` alone need not be on PATH.
    """
    clone = PACKAGE_DIR.parent
    in_clone = (clone / INSTALLER).is_file()
    if in_clone and os.name != "nt" and verb in ("install", "uninstall"):
        return line(clone / INSTALLER, *(["--uninstall"] if verb == "uninstall" else []), *words)
    script = None if in_clone else console_script(Path(sys.executable).parent)
    # by its path: `python -m` would take modules from the folder that the user is in
    start = [script] if script is not None else [sys.executable, PACKAGE_DIR]
    return line(*start, verb, *words)


def pip_install(package: str) -> str:
    """The command line that installs `package` into the Python that runs us now."""
    return line(sys.executable, "-m", "pip", "install", package)


def console_script(scripts: Path) -> Path | None:
    """The program that pip has made for us in a folder of scripts."""
    return next((path for path in (scripts / NAME, scripts / f"{NAME}.exe") if path.is_file()), None)
