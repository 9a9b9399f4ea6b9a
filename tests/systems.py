"""What only some systems have. A test that uses what Windows lacks is skipped there, with the reason, where it does."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

WINDOWS = os.name == "nt"
HAS_GIT = shutil.which("git") is not None
IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0

with_git = pytest.mark.skipif(not HAS_GIT, reason="needs git")
posix_modes = pytest.mark.skipif(WINDOWS, reason="Windows has no permission bits")

NO_LINKS = "no links: they need a right that few users of Windows have, and wine makes none"

LACKING = {
    "fork": "needs fork",
    "SIGKILL": "needs signals",
    "killpg": "needs signals",
    "mkfifo": "needs named pipes in folders",
    "geteuid": "needs user ids",
    "getuid": "needs user ids",
    "chown": "needs user ids",
}
LACKING_MODULES = {"fcntl": "needs fcntl", "resource": "needs limits of a process", "pwd": "needs user ids"}

# What Kohya's installer and presets, the data set, the files are about: all that has no need of torch. `make windows`.
SUITE = (
    "files",
    "core",
    "checkout",
    "pysource",
    "install",
    "presets",
    "dataset",
    "cli",
    "tensors",
    "card",
    "basemodel",
    "evaluation",
    "runtime",
)
TESTS = Path(__file__).parent


def belongs_to_windows_suite(path: Path) -> bool:
    """Whether the tests in `path` are of those that are run by a Windows Python too."""
    if not path.is_relative_to(TESTS):
        return False
    parts = path.relative_to(TESTS).parts
    return len(parts) == 1 or parts[0] in SUITE


def reason_to_skip(error: BaseException) -> str | None:
    """Why a test that ended with `error` cannot run on this system: the test itself, not our code, used what is not
    there. None where it has failed."""
    if not WINDOWS or not _by_a_test(error.__traceback__):
        return None
    if isinstance(error, AttributeError):
        return LACKING.get(str(error.name))
    if isinstance(error, ModuleNotFoundError):
        return LACKING_MODULES.get(str(error.name))
    return None


def _by_a_test(traceback: TracebackType | None) -> bool:
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and Path(traceback.tb_frame.f_code.co_filename).is_relative_to(TESTS)


def _can_link() -> bool:
    """Whether a link can be made; wine says yes and makes none."""
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder, "link")
        try:
            link.symlink_to(folder)
        except OSError:
            return False
        return link.is_symlink()


def skip_what_windows_lacks() -> None:
    """A mode says no more there than read-only, and links need a right that few have: whoever needs them is skipped."""
    real_chmod, real_symlink = Path.chmod, os.symlink

    def chmod(path: Path, mode: int, **options: Any) -> None:
        if _called_by_a_test() and (mode & 0o200 or path.is_dir()):
            pytest.skip("Windows has no permission bits")
        real_chmod(path, mode, **options)

    def symlink(source: Any, target: Any, *options: Any, **more: Any) -> None:
        if _called_by_a_test():
            pytest.skip(NO_LINKS)
        real_symlink(source, target, *options, **more)

    def symlink_to(path: Path, target: Any, *options: Any) -> None:
        if _called_by_a_test():
            pytest.skip(NO_LINKS)
        real_symlink(target, path, *options)

    replaced: Any = Path
    replaced.chmod = chmod
    if not _can_link():
        replaced.symlink_to = symlink_to
        vars(os)["symlink"] = symlink


def _called_by_a_test() -> bool:
    return Path(sys._getframe(2).f_code.co_filename).is_relative_to(TESTS)


def needs_git() -> None:
    """Skip the test where there is no git."""
    if not HAS_GIT:
        pytest.skip("needs git")
