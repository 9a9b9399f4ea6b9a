"""The user to start another program as. Root does not touch another user's files with root's rights.

A program that reads somebody's settings, or runs somebody's Python, runs code of theirs. So where a tree or an
environment belongs to another user and we are root, the program runs as that user: with their rights and their HOME,
without our variables, and in a session of its own, so that it cannot type into our terminal.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# of our environment variables, what another user's program may see; and what we tell pip and uv
_TOOLS = ("PIP_", "UV_")
_HARMLESS = ("PATH", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LC_ALL", "LC_CTYPE", "LC_MESSAGES", "SYSTEMROOT")


CAUSE_LENGTH = 200
_ERROR = re.compile(r"[\w.]*(Error|Exception|Exit|Interrupt)\b|Fatal Python error")


@dataclass(frozen=True)
class Identity:
    """A user that a program is to run as. home: their HOME."""

    uid: int
    gid: int
    home: str

    def arguments(self) -> dict[str, Any]:
        """What `subprocess.run` is to be given for it."""
        return {"user": self.uid, "group": self.gid, "extra_groups": (), "start_new_session": True}

    def environ(self, ours: Mapping[str, str], also: Iterable[str] = ()) -> dict[str, str]:
        """Of `ours`, what this user's program gets: no secrets of ours. also: further names."""
        kept = {*_HARMLESS, *also}
        shown = {name: value for name, value in ours.items() if name in kept or name.startswith(_TOOLS)}
        return {**shown, "HOME": self.home}


def is_root() -> bool:
    """Whether this process may do everything."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def of_owner(uid: int, gid: int) -> Identity | None:
    """The identity to take for what belongs to `uid`; None where that is ours, or none can be taken."""
    return Identity(uid, gid, _home(uid)) if is_root() and uid != 0 else None


def of_interpreter(python: Path) -> Identity | None:
    """The user whose code runs when `python` is started, None where that is root's or ours.

    That is whoever may change it: the owner of the interpreter, of the environment around it, and of the folders
    between. Where several users may, the first that is not root.
    """
    if not is_root():
        return None
    prefix = python.parent.parent
    for path in (python, python.parent, prefix, prefix / "pyvenv.cfg", prefix / "lib", python.resolve()):
        try:
            found = path.lstat()
        except OSError:
            continue
        identity = of_owner(found.st_uid, found.st_gid)
        if identity is not None:
            return identity
    return None


def _running(python: Path, environ: Mapping[str, str], home: str | None = None) -> dict[str, Any]:
    """What `subprocess.run` is to be given to start `python`: variables, and as root the user whose code that runs.

    environ: the variables for ourselves. home: the HOME whose site-packages are to be seen, where it is not ours.
    """
    who = of_interpreter(python)
    if who is None and home is not None and is_root() and os.path.isdir(home):  # noqa: PTH112 - may be any text
        found = Path(home).stat()
        who = of_owner(found.st_uid, found.st_gid)
    if who is None:
        return {"env": dict(environ)}
    theirs = who.environ(environ)
    return {"env": theirs if home is None else {**theirs, "HOME": home}, **who.arguments()}


def run(
    python: Path,
    command: Sequence[str],
    environ: Mapping[str, str],
    *,
    home: str | None,
    seconds: float,
    **more: Any,
) -> subprocess.CompletedProcess[str]:
    """Run `command`, which starts `python`, from the root folder and without input, as `of_interpreter` says.

    more: for `subprocess.run`. Raises OSError and subprocess.SubprocessError as that does, TimeoutExpired among them.
    """
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds,
        stdin=subprocess.DEVNULL,
        cwd=os.sep,
        check=False,
        **more,
        **_running(python, environ, home),
    )


def cause(said: str) -> str | None:
    """The line of an error that tells the cause, None where nothing was said.

    A traceback ends with it; other programs begin with it, and may add advice.
    """
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    error = next((line for line in reversed(lines) if _ERROR.match(line)), None)
    found = error or next(iter(lines), None)
    return None if found is None else found[:CAUSE_LENGTH]


def _home(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_dir
    except KeyError:  # a container may run as a user that nobody has named
        return os.sep
