"""A guard within a test process, and within every Python that it starts: no write outside of the tests' own folders, no
look at this machine's processes.

The test session loads this file and calls `watch`. Its children find it as their `sitecustomize`, by PYTHONPATH, which
`_hand_on` puts back where a child gets variables of its own. Whatever is refused raises, and is written to a log as
well: code under test may swallow the exception, or run in a process whose words nobody reads; the session reads the log
after each test. Standard library only, and as little as possible: this runs at the start of every child.
"""

from __future__ import annotations

import os
import sys
import threading

TYPE_CHECKING = False  # importing typing would cost every child some milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

ALLOWED = "KOHYA_EXT_TESTS_MAY_WRITE"  # folders and files, separated as in PATH
LOG = "KOHYA_EXT_TESTS_REFUSED"  # the file that refusals are written to
KEPT = (ALLOWED, LOG, "KOHYA_EXT_MACHINE")
MEASURING = "COVERAGE_PROCESS_CONFIG"  # under `make coverage`

# What Python and pytest write wherever they run.
CACHES = frozenset(("__pycache__", ".pytest_cache", ".hypothesis"))
DEVICES = ("/dev/", "/proc/self/", "/proc/thread-self/") if os.name == "posix" else ("nul", "con", "\\\\.\\")

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

# event: the positions of (path, its dir_fd) in its arguments; None where it has no dir_fd
CHANGES = {
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.truncate": ((0, None),),
    "os.utime": ((0, 3),),
    "os.setxattr": ((0, None),),
    "os.removexattr": ((0, None),),
    "os.chflags": ((0, None),),
}
FOLLOWING = frozenset(("os.chmod", "os.truncate"))  # these change what a link leads to

_now = threading.local()
_watching: dict[str, Any] = {}


class TrespassError(RuntimeError):
    """A test, or what it started, reached for something that is not the tests' own."""


def watch() -> None:
    """Start to watch this process, by what the environment variables say. It lasts as long as the process."""
    _watching["allowed"] = tuple(
        os.path.normcase(os.path.realpath(entry)) for entry in os.environ.get(ALLOWED, "").split(os.pathsep) if entry
    )
    _watching["log"] = os.environ.get(LOG)
    if "hook" not in _watching:
        _watching["hook"] = _hear
        os.open = _with_its_folder(os.open)
        os.supports_dir_fd.add(os.open)
        sys.addaudithook(_hear)


class _Ours:
    """Modules whose warnings are errors, as `warnings.filters` has them: something with the `match` of a pattern."""

    def match(self, module: str) -> bool:
        return module.partition(".")[0] in ("kohya_ext", "tests")


def be_strict() -> None:
    """In a child: what Python or a library warns our code of is an error, as pytest makes it one in its own process.

    Warnings to the user (RuntimeWarning, UserWarning) are part of what is tested, and what libraries warn each other
    of is not ours to mend.
    """
    import warnings

    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning, SyntaxWarning, ResourceWarning):
        warnings.filters.insert(0, ("error", None, category, _Ours(), 0))  # type: ignore[attr-defined]


def _with_its_folder(real: Callable[..., int]) -> Callable[..., int]:
    """os.open that remembers its dir_fd: the event does not tell it."""

    def open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        _now.folder = dir_fd
        try:
            return real(path, flags, mode, dir_fd=dir_fd)
        finally:
            _now.folder = None

    return open


def rest() -> None:
    """Watch no more: pytest tidies up."""
    _watching["resting"] = True


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if "resting" in _watching:
        return
    if event == "open":
        path, mode, flags = arguments
        if isinstance(flags, int) and flags & WRITING:
            _check(path, getattr(_now, "folder", None) if mode is None else None, "write", follow=True)
        elif isinstance(path, (str, bytes)):
            _check_process(os.fsdecode(path))
    elif event in CHANGES:
        for at, folder in CHANGES[event]:
            fd = arguments[folder] if folder is not None and folder < len(arguments) else None
            _check(arguments[at], fd, event, follow=event in FOLLOWING)
    elif event in ("os.listdir", "os.scandir"):
        if arguments[0] in ("/proc", b"/proc", "/proc/", b"/proc/"):
            _refuse("looks at this machine's processes (/proc)")
    elif event == "subprocess.Popen":
        _hand_on(arguments[3])


def _hand_on(environ: Any) -> None:
    """A child with variables of its own is watched as well."""
    if isinstance(environ, dict) and "log" in _watching:
        guard = os.path.dirname(os.path.abspath(__file__))
        known = [entry for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
        if guard not in known:
            environ["PYTHONPATH"] = os.pathsep.join([*known, guard])
        for name in (*KEPT[:2], MEASURING):
            if name in os.environ:
                environ.setdefault(name, os.environ[name])


def _check(path: Any, folder: Any, what: str, *, follow: bool) -> None:
    if not isinstance(path, (str, bytes)) and not hasattr(path, "__fspath__"):
        return  # a descriptor: what it names was checked when it was opened
    place = os.fsdecode(path)
    if place.lower().startswith(DEVICES):  # before it is resolved: under wine that leads to /dev/null
        return
    if not os.path.isabs(place) and isinstance(folder, int) and folder >= 0:
        base = _folder_of(folder)
        if base is None:
            return
        place = os.path.join(base, place)
    if follow:
        place = os.path.realpath(place)
    else:
        place = os.path.join(os.path.realpath(os.path.dirname(place) or os.curdir), os.path.basename(place))
    if not _is_ours(os.path.normcase(place)) and not (what == "os.mkdir" and os.path.isdir(place)):
        _refuse(f"{what}: {place}")


def _is_ours(place: str) -> bool:
    if MEASURING in os.environ and os.path.basename(place).startswith(".coverage."):
        return True
    if place.startswith(DEVICES) or not CACHES.isdisjoint(place.split(os.sep)):
        return True
    return any(place == entry or place.startswith(entry + os.sep) for entry in _watching["allowed"])


def _folder_of(descriptor: int) -> str | None:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return None


def _check_process(path: str) -> None:
    parts = path.split("/")
    other = len(parts) == 4 and parts[1] == "proc" and parts[2].isdecimal() and int(parts[2]) != os.getpid()
    if other and parts[3] in ("cmdline", "environ"):
        _refuse(f"looks at a process of this machine ({path})")


def _refuse(what: str) -> None:
    log = _watching.get("log")
    if log:
        with open(log, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{what} [by {' '.join(sys.argv[:3]) or sys.executable}]\n")
    raise TrespassError(f"the tests' guard refused: {what}")


if __name__ == "sitecustomize" and os.environ.get(LOG):
    watch()
    be_strict()
