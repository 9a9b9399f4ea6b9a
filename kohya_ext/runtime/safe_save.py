"""Model files that hold the EMA: written whole or not at all, and marked in their metadata.

SIGTERM in the middle of a save undoes what is under way first, then ends the process by the signal.
"""

from __future__ import annotations

import functools
import inspect
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from kohya_ext.runtime.run import warn_again_at_end
from kohya_ext.spec.outputs import SAVING_PREFIX

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# the functions upstream writes safetensors files with, under the names its modules import them by
_SAFETENSORS = ("save_file", "mem_eff_save_file")
# the function that sd-scripts 0.6 writes a folder in diffusers form with
_DIFFUSERS = "save_diffusers_checkpoint"
_PACKAGES = ("library", "networks", "__main__")

LOCK_ATTEMPTS = 10
REPLACED = ".replaced"

Writer = Callable[..., Any]


@contextmanager
def moved_into_place(target: str) -> Iterator[str]:
    """A path in a temporary folder next to `target`; all that is there at the end moves next to `target` at once.

    The name stays the same, because some savers derive the names of further files from it.
    """
    path = Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_abandoned(path.parent)
    folder, lock = _locked_folder(path.parent)
    try:
        yield str(folder / path.name)
        for made in sorted(folder.iterdir()):
            _flush(made)
            _replace(path.parent / made.name, made)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _replace(goal: Path, made: Path) -> None:
    """Give `made` the name `goal`. A folder that has it is moved away whole: half of it is never under its name."""
    old = made.with_name(f"{made.name}{REPLACED}")
    moved = goal.is_dir() and not goal.is_symlink()
    if moved:
        goal.rename(old)
    try:
        made.replace(goal)
    except OSError:
        if moved:
            old.rename(goal)
        raise


def abandoned(folder: Path) -> list[Path]:
    """The temporary folders in `folder` that no process uses any more: it was killed within a save.

    Who uses one holds a lock on it, which the system takes back however a process ends, in another container too.
    """
    found = []
    for left, lock in _locked_leftovers(folder):
        os.close(lock)
        found.append(left)
    return found


def clear_abandoned(folder: Path) -> None:
    """Remove them, each while it is locked: one that a living process has made a moment ago is left to it."""
    for left, lock in _locked_leftovers(folder):
        try:
            shutil.rmtree(left, ignore_errors=True)
        finally:
            os.close(lock)


def _locked_leftovers(folder: Path) -> Iterator[tuple[Path, int]]:
    for path in sorted(folder.glob(f"{SAVING_PREFIX}*")):
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):  # in use, gone, or no locks on this disk
                lock = _lock(path)
                if lock is not None:
                    yield path, lock


def _locked_folder(parent: Path) -> tuple[Path, int | None]:
    """A new folder in `parent`, and the lock on it; None where locks do not exist."""
    for _ in range(LOCK_ATTEMPTS):
        folder = Path(tempfile.mkdtemp(prefix=SAVING_PREFIX, dir=parent))
        try:
            return folder, _lock(folder)
        except (BlockingIOError, FileNotFoundError):  # somebody who clears up was quicker
            continue
        except OSError:
            return folder, None
    return Path(tempfile.mkdtemp(prefix=SAVING_PREFIX, dir=parent)), None


def _lock(folder: Path) -> int | None:
    """An open lock on `folder`, None on systems without any.

    Raises BlockingIOError where another process holds it, FileNotFoundError where one has removed the folder since.
    """
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder.stat()  # a lock on what has been removed is worth nothing
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def tell_failure(target: str, error: Exception, *, only: bool) -> None:
    """Say now, and again at the end of the run, that the EMA is not in `target`. Training continues."""
    instead = (
        "the raw weights are written in its place" if only else "the raw weights are saved, and training continues"
    )
    warn_again_at_end(f"the EMA could not be saved as {target} ({type(error).__name__}: {error}); {instead}")


@contextmanager
def kept_going(*, unless: bool) -> Iterator[None]:
    """Training continues where the raw weights cannot be saved in place of the EMA either: a later save may succeed.

    unless: this is the last save of the run, whose failure is raised.
    """
    try:
        yield
    except Exception as error:
        if unless:
            raise
        warn_again_at_end(f"nor could the raw weights ({type(error).__name__}: {error}): this save wrote NOTHING")


def _flush(path: Path) -> None:
    """Force a file's bytes to the disk, or those of a folder, so that a name in place always stands for all of it."""
    for made in path.rglob("*") if path.is_dir() else [path]:
        if made.is_file():
            with made.open("rb+") as file:
                os.fsync(file.fileno())


@contextmanager
def with_metadata(extra: Mapping[str, str]) -> Iterator[None]:
    """While this lasts, every safetensors file that Kohya's modules write carries `extra` in its metadata."""

    def adding(writer: Writer) -> Writer:
        @functools.wraps(writer)
        def write(tensors: Any, filename: Any, metadata: Mapping[str, Any] | None = None, **named: Any) -> Any:
            return writer(tensors, filename, metadata={**(metadata or {}), **extra}, **named)

        return write

    with _replaced(_SAFETENSORS, adding):
        yield


@contextmanager
def whole_files() -> Iterator[None]:
    """While this lasts, what Kohya's modules write appears whole or not at all: for savers that write in place."""
    import torch

    def second_argument(writer: Writer) -> Writer:
        """A writer(what, where, ...), by either of its names for it."""

        @functools.wraps(writer)
        def write(*args: Any, **named: Any) -> Any:
            call = inspect.signature(writer).bind(*args, **named)
            where = list(call.arguments)[1]
            if not isinstance(call.arguments[where], (str, os.PathLike)):
                return writer(*args, **named)
            target = str(call.arguments[where])
            with _no_empty_folder(target), moved_into_place(target) as temporary:
                call.arguments[where] = temporary
                return writer(*call.args, **call.kwargs)

        return write

    with _replaced((*_SAFETENSORS, _DIFFUSERS), second_argument), _attribute(torch, "save", second_argument):
        yield


@contextmanager
def _no_empty_folder(target: str) -> Iterator[None]:
    """Savers of a folder make it first; one that has failed leaves none."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            Path(target).rmdir()
        raise


@contextmanager
def _replaced(names: tuple[str, ...], wrap: Callable[[Writer], Writer]) -> Iterator[None]:
    """These functions of safetensors and of Kohya's modules, wrapped for a while."""
    import safetensors.torch

    replaced: list[tuple[ModuleType, str, Writer]] = []

    def give(module: ModuleType, name: str) -> None:
        writer = vars(module)[name]
        replaced.append((module, name, writer))
        setattr(module, name, wrap(writer))

    try:
        give(safetensors.torch, "save_file")  # imported at call time by the network modules
        for module_name, module in list(sys.modules.items()):
            if module_name.partition(".")[0] in _PACKAGES and isinstance(module, ModuleType):
                for name in names:
                    if callable(vars(module).get(name)):
                        give(module, name)
        yield
    finally:
        for module, name, writer in replaced:
            setattr(module, name, writer)


@contextmanager
def _attribute(module: ModuleType, name: str, wrap: Callable[[Writer], Writer]) -> Iterator[None]:
    writer = getattr(module, name)
    setattr(module, name, wrap(writer))
    try:
        yield
    finally:
        setattr(module, name, writer)


class Terminated(SystemExit):
    """SIGTERM has come; raised where the main thread is, so that files and weights are put right on the way out."""


@contextmanager
def unwinding_on_sigterm() -> Iterator[None]:
    """While this lasts, SIGTERM unwinds the stack before it ends the process.

    Only where it would end the process right there: a handler of somebody else's stays. Outside the main thread nothing
    can be done, and nothing is.
    """
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def unwind(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not disturb the unwinding
        raise Terminated(128 + number)

    signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    except Terminated:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
