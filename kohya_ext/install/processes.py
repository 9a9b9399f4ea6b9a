"""The running Kohya GUI, read from /proc: which checkout it serves and which Python it runs in.

Other people's processes cannot be read, on other systems there is no /proc, and a process may end while we look: all
of that simply means that nothing is found.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kohya_ext.install.places import GUI_SCRIPT


def processes_of(prefix: Path) -> Path:
    """The folder of processes of the machine below `prefix`."""
    return prefix / "proc"


@dataclass(frozen=True)
class GuiProcess:
    """A process that runs kohya_gui.py. root: the folder of that script. python: its interpreter, unresolved, so that
    a virtual environment is still recognisable by its path. environ: what the process was started with."""

    pid: int
    root: Path
    python: Path | None
    environ: Mapping[str, str]


def running_guis(proc_root: Path) -> Iterator[GuiProcess]:
    """Every running GUI that we may look at, oldest process first."""
    try:
        pids = sorted(int(entry.name) for entry in proc_root.iterdir() if entry.name.isdecimal())
    except OSError:
        return
    for pid in pids:
        process = _read(proc_root / str(pid), pid)
        if process is not None:
            yield process


def _read(folder: Path, pid: int) -> GuiProcess | None:
    arguments = _strings(folder / "cmdline")
    script = next((word for word in arguments[1:] if Path(word).name == GUI_SCRIPT), None)
    if script is None:
        return None
    try:
        cwd = (folder / "cwd").readlink()
    except OSError:
        return None
    environ = dict(entry.split("=", 1) for entry in _strings(folder / "environ") if "=" in entry)
    return GuiProcess(pid, (cwd / script).parent, _interpreter(folder, arguments[0], cwd, environ), environ)


def _interpreter(folder: Path, argv0: str, cwd: Path, environ: Mapping[str, str]) -> Path | None:
    """The path the interpreter was started by; `exe` alone would name the base Python behind a virtual environment.

    `uv run` and shell wrappers carry kohya_gui.py in their command line too: those have no Python of their own.
    """
    if not Path(argv0).name.lower().startswith("python"):
        return None
    if "/" in argv0:
        candidates = [cwd / argv0]
    else:
        candidates = [cwd / entry / argv0 for entry in environ.get("PATH", "").split(":") if entry]
        if environ.get("VIRTUAL_ENV"):
            candidates.append(cwd / environ["VIRTUAL_ENV"] / "bin" / "python")
    candidates = [path for path in candidates if os.access(path, os.X_OK)]
    in_a_venv = [path for path in candidates if (path.parent.parent / "pyvenv.cfg").is_file()]
    if in_a_venv or candidates:
        return Path(os.path.normpath((in_a_venv or candidates)[0]))
    try:
        return (folder / "exe").readlink()
    except OSError:
        return None


def _strings(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape").rstrip("\0").split("\0")
    except OSError:
        return []
