"""Running GUIs and trainings: which checkout each serves, and which Python it runs in.

Read from /proc, on Windows by the system's calls (windows.py); macOS has neither. Other people's processes show their
command line and hardly more, and a process may end while we look: what cannot be read is taken as unknown, never as an
error.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kohya_ext.checkout.known_locations import GUI_SCRIPT, ROOT
from kohya_ext.spec.second_gui import START

# train_network.py, sdxl_train.py, flux_train_control_net.py, fine_tune.py: every training script of every release
TRAINING_SCRIPT = re.compile(r"^(?:(?:\w+_)?train(?:_\w+)?|fine_tune)\.py$", re.IGNORECASE)
TRAINING_FOLDER = "sd-scripts"  # within a kohya_ss
LAUNCHERS = ("python", "pypy", "accelerate", "torchrun", "uv")


@dataclass(frozen=True)
class Process:
    """A process that we may look at.

    cwd: None where it is unknown. python: its interpreter, unresolved, so that a virtual environment is still
    recognisable by its path; None for what is not Python. environ: what it was started with, empty where unknown.
    real_cwd: a path that leads to its folder even where the process has another root than we do. foreign_root: it has
    one, in a container or a chroot: its paths mean other folders than ours.
    """

    pid: int
    parent: int
    arguments: tuple[str, ...]
    cwd: Path | None
    python: Path | None
    environ: Mapping[str, str] = field(repr=False)
    real_cwd: Path | None = None
    foreign_root: bool = False


@dataclass(frozen=True)
class GuiProcess:
    """A process that runs one of the GUIs. root: the folder of its script; the others as in Process."""

    pid: int
    root: Path
    python: Path | None
    environ: Mapping[str, str]


@dataclass(frozen=True)
class Training:
    """A running training. script: as its command line has it."""

    pid: int
    script: str

    def __str__(self) -> str:
        return f"{Path(self.script).name} (process {self.pid})"


def processes_of(prefix: Path) -> Path:
    """The folder of processes of the machine below `prefix`."""
    return prefix / "proc"


def processes(proc_root: Path) -> Iterator[Process]:
    """Every process that we may look at, oldest first; on Windows only those of Python and what starts it."""
    if sys.platform == "win32" and proc_root == processes_of(ROOT):
        yield from _on_windows()
        return
    try:
        pids = sorted(int(entry.name) for entry in proc_root.iterdir() if entry.name.isdecimal())
    except OSError:
        return
    ours = _identity(proc_root / "self" / "root")
    for pid in pids:
        process = _read(proc_root / str(pid), pid, ours)
        if process is not None:
            yield process


def running_guis(proc_root: Path) -> Iterator[GuiProcess]:
    """Every running GUI that we may look at, oldest process first."""
    for process in processes(proc_root):
        script = next((word for word in process.arguments[1:] if _name(word) in (GUI_SCRIPT, START)), None)
        if script is not None and process.cwd is not None and not process.foreign_root:
            yield GuiProcess(process.pid, (process.cwd / script).parent, process.python, process.environ)


def running_trainings(proc_root: Path, roots: Sequence[Path], pythons: Sequence[Path] = ()) -> list[Training]:
    """The trainings whose script lies below one of the folders `roots`, or which run in the environment of one of the
    interpreters `pythons`. One entry a training: of a launcher, its ranks and their workers the first.
    """
    known = {process.pid: process for process in processes(proc_root)}
    scripts = {pid: script for pid, process in known.items() if (script := _training_script(process)) is not None}
    environments = {_environment_of(python) for python in pythons}
    found = []
    for pid, script in scripts.items():
        process = known[pid]
        if pid == os.getpid() or process.parent in scripts:
            continue
        inside = any(_lies_in(process, script, root) for root in roots)
        if inside or (process.python is not None and _environment_of(process.python) in environments):
            found.append(Training(pid, script))
    return found


def _training_script(process: Process) -> str | None:
    if not process.arguments or not _name(process.arguments[0]).lower().startswith(LAUNCHERS):
        return None  # an editor or a pager, say
    return next((word for word in process.arguments[1:] if TRAINING_SCRIPT.match(_name(word))), None)


def _lies_in(process: Process, script: str, root: Path) -> bool:
    folder = process.real_cwd
    if folder is not None and any(_is_folder_of(folder, place) for place in (root, root / TRAINING_FOLDER)):
        return True
    if process.foreign_root:
        return False
    place = Path(script) if process.cwd is None else process.cwd / script
    return place.is_absolute() and _resolved(place).is_relative_to(_resolved(root))


def _is_folder_of(folder: Path, root: Path) -> bool:
    """By what the file system says, not by names."""
    try:
        return folder.samefile(root)
    except (OSError, ValueError):
        return False


def _environment_of(python: Path) -> Path:
    """The folder that the interpreters of one environment share."""
    return _resolved(python.parent)


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        return path


def _name(word: str) -> str:
    return re.split(r"[/\\]", word)[-1]


def _read(folder: Path, pid: int, our_root: tuple[int, int] | None) -> Process | None:
    arguments = _strings(folder / "cmdline")
    if not arguments or not arguments[0]:
        return None  # it has ended, or is a thread of the kernel
    cwd = _link(folder / "cwd")
    environ = dict(entry.split("=", 1) for entry in _strings(folder / "environ") if "=" in entry)
    python = _interpreter(folder, arguments[0], Path(cwd), environ) if cwd else _named_interpreter(arguments[0])
    root = _identity(folder / "root")
    return Process(
        pid,
        _parent(folder),
        tuple(arguments),
        Path(cwd) if cwd else None,
        python,
        environ,
        folder / "cwd" if cwd else None,
        foreign_root=None not in (root, our_root) and root != our_root,
    )


def _on_windows() -> Iterator[Process]:
    from kohya_ext.checkout import windows

    rows = [row for row in windows.listed() if row.program.lower().startswith(LAUNCHERS)]
    read = [(row, found) for row in sorted(rows, key=lambda row: row.pid) if (found := windows.details(row.pid))]
    images = {row.pid: Path(found.image) for row, found in read}
    for row, found in read:
        folder = Path(found.folder)
        python = _windows_interpreter(images[row.pid], images.get(row.parent))
        yield Process(row.pid, row.parent, found.arguments, folder, python, found.environ, folder)


def _windows_interpreter(image: Path, parents: Path | None) -> Path | None:
    """A virtual environment's python.exe starts the one it was made from, and waits: both have one command line."""
    if not image.name.lower().startswith("python"):
        return None
    if parents is not None and parents.name.lower().startswith("python") and _in_a_venv(parents):
        return parents
    return image


def _in_a_venv(python: Path) -> bool:
    return (python.parent.parent / "pyvenv.cfg").is_file()


def _named_interpreter(argv0: str) -> Path | None:
    return Path(argv0) if os.path.isabs(argv0) and _name(argv0).lower().startswith("python") else None  # noqa: PTH117


def _interpreter(folder: Path, argv0: str, cwd: Path, environ: Mapping[str, str]) -> Path | None:
    """The path the interpreter was started by; `exe` alone would name the base Python behind a virtual environment.

    `uv run` and shell wrappers carry kohya_gui.py in their command line too: those have no Python of their own.
    """
    if not _name(argv0).lower().startswith("python"):
        return None
    if "/" in argv0:
        candidates = [cwd / argv0]
    else:
        candidates = [cwd / entry / argv0 for entry in environ.get("PATH", "").split(":") if entry]
        if environ.get("VIRTUAL_ENV"):
            candidates.append(cwd / environ["VIRTUAL_ENV"] / "bin" / "python")
    candidates = [path for path in candidates if os.access(path, os.X_OK)]
    in_a_venv = [path for path in candidates if _in_a_venv(path)]
    if in_a_venv or candidates:
        return Path(os.path.normpath((in_a_venv or candidates)[0]))
    executable = _link(folder / "exe")
    return Path(executable) if executable else None


def _parent(folder: Path) -> int:
    """The parent's number, 0 where unknown. In `stat` it follows the name in brackets, which may hold anything."""
    try:
        return int((folder / "stat").read_bytes().rpartition(b")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a folder from every other one, None where it cannot be looked at."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _link(path: Path) -> str | None:
    try:
        return str(path.readlink())
    except (OSError, ValueError):
        return None


def _strings(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape").rstrip("\0").split("\0")
    except OSError:
        return []
