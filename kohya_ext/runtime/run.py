"""The one run that this process is: its state, all in this room that outlasts a call; its messages; how it is stopped.

The savers that Kohya calls last have no accelerator, and nothing may be hung on `args`, which Kohya writes into
logs and TOML files. So it is one object of this module, and everybody who needs it imports it. Messages are one line
each, on the main process only.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import multiprocessing
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn, TextIO

from kohya_ext.core import shell
from kohya_ext.core.errors import WRONG_USAGE
from kohya_ext.core.terminal import printable


@dataclass
class Run:
    """What this run has and has seen so far.

    averages: an `Average` for each EMA that it keeps; telemetry, validation, resume: a `Telemetry`, a `Validation` and
    an `ExactResume`, None while it measures nothing, validates nothing and cannot be resumed exactly. The modules of
    all these import this one.
    arguments: what the command line was parsed into last; given: the same before the script changes any of it.
    held_out: the `HeldOut` images of its validation. reminders: warnings to repeat at the end.
    skip_counts, skips_told: AdaCoor's counts of skipped gradient elements, and how many have been reported. old_files:
    file of an older patch -> what it has. faults: what could not be wrapped, with the reason. yielded: feature of ours
    -> the fork's flag that it gave way to. undoing: what gives others back that it replaced.
    joint_states: `JointStates` of a run with DeepSpeed.
    loader_layers: position -> what is between the loaders and the script there, see `runtime/loader.py`.
    """

    averages: list[Any] = field(default_factory=list)
    telemetry: Any = None
    validation: Any = None
    arguments: Any = None
    given: dict[str, Any] = field(default_factory=dict)
    held_out: Any = None
    resume: Any = None
    reminders: list[str] = field(default_factory=list)
    skip_counts: list[Any] = field(default_factory=list)
    skips_told: int = 0
    old_files: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    yielded: dict[str, str] = field(default_factory=dict)
    undoing: list[Callable[[], object]] = field(default_factory=list)
    joint_states: Any = None
    loader_layers: dict[str, Any] = field(default_factory=dict)

    def begin(self) -> None:
        """A training starts in this process: whatever one before it has left is gone."""
        self.restore()
        self.averages, self.telemetry, self.validation = [], None, None
        self.skip_counts, self.skips_told, self.joint_states = [], 0, None

    def replace(self, holder: Any, name: str, function: Any) -> None:
        """Put `function` in the place of a function that is not ours, until `restore`."""
        self.undoing.append(functools.partial(setattr, holder, name, getattr(holder, name)))
        setattr(holder, name, function)

    def restore(self) -> None:
        """Give everybody their functions back; one who was replaced twice gets the first."""
        self.loader_layers.clear()
        self.resume = None
        while self.undoing:
            self.undoing.pop()()


run = Run()


def is_main_process() -> bool:
    """True in the process that speaks and saves: rank 0, or the only one."""
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) in ("", "0", "-1")


def say(message: str) -> None:
    """Print one line, prefixed, on the main process. What the terminal cannot show is escaped."""
    if is_main_process():
        _print(f"kohya_ext: {message}", sys.stdout)


def warn_again_at_end(message: str) -> None:
    """Say `message` now, and once more when the process ends: hours of log may lie in between."""
    if not is_main_process():
        return
    if not run.reminders:
        atexit.register(_remind)
    run.reminders.append(message)
    _print(f"kohya_ext: WARNING: {message}", sys.stderr)


def stop(message: str, exit_code: int = WRONG_USAGE) -> NoReturn:
    """End the run: an explicitly given flag cannot be honoured. Raises SystemExit, which no `except Exception` eats."""
    _print(f"kohya_ext: {message}", sys.stderr)
    raise SystemExit(exit_code)


def not_hooked(name: str, error: BaseException) -> None:
    """Say that `name` stays as upstream made it. A run that asks for something of ours stops later, see `guard`."""
    if multiprocessing.parent_process() is None:  # a worker of a DataLoader has nothing to tell
        say(
            f"could not hook into {name!r}, it is left unpatched ({type(error).__name__}: {error}); to fix it, "
            f"{shell.install_again(sys.executable)}"
        )


def _remind() -> None:
    for message in run.reminders:
        _print(f"kohya_ext: REMINDER: {message}", sys.stderr)


def _print(text: str, stream: TextIO) -> None:
    """Never raises: a message must not end a run, whatever happened to the terminal."""
    with contextlib.suppress(OSError, ValueError):
        encoding = getattr(stream, "encoding", None) or "utf-8"
        text = printable(text, one_line=True)  # it may hold names of files, and must pass for nothing else
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
