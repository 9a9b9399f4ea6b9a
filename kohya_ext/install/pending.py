"""An update under way: what must be reinstalled if the update is killed.

Between taking our files off and putting them on again lies a `git pull`, which may take minutes and be killed. The
record of it stands where git keeps its own: it outlives `uninstall`, is in nobody's way and never in `git status`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kohya_ext.checkout import git
from kohya_ext.core.errors import ConflictError
from kohya_ext.files.atomic import TEMPORARY_SUFFIX, clear_leftovers, write_into
from kohya_ext.files.folder import opened
from kohya_ext.files.journal import state_in

NAME = "kohya_ext-update.json"


@dataclass(frozen=True)
class PendingUpdate:
    """patch_set and package: what `apply.install` is to be called with. root: see `Manifest`."""

    patch_set: str
    package: Mapping[str, Any] | None
    root: str | None = None


def begin(root: Path, pending: PendingUpdate) -> None:
    """Record that our files are about to be uninstalled, and what they were."""
    where = git.own_folder(root)
    if where is not None:
        document = {"patch_set": pending.patch_set, "package": pending.package, "root": pending.root}
        with opened(where) as folder:
            write_into(folder, NAME, (json.dumps(document, indent=2) + "\n").encode("utf-8"))


def read(root: Path) -> PendingUpdate | None:
    """What an interrupted update left to be reinstalled, None where there was none."""
    where = git.own_folder(root)
    if where is None:
        return None
    try:
        with opened(where) as folder:
            state = state_in(folder, NAME)
        if state is None:
            return None
        document = json.loads(state.data)
        return PendingUpdate(str(document["patch_set"]), document["package"], document.get("root"))
    except (ConflictError, OSError, ValueError, KeyError, TypeError):
        return None


def half_written(root: Path) -> bool:
    """Whether a kill has left the record half written: then the update had not changed anything yet."""
    where = git.own_folder(root)
    if where is None:
        return False
    try:
        with opened(where) as folder:
            return any(NAME in name and name.endswith(TEMPORARY_SUFFIX) for name in folder.names())
    except OSError:
        return False


def end(root: Path) -> None:
    """The update is over, whichever way."""
    where = git.own_folder(root)
    if where is not None:
        with opened(where) as folder:
            clear_leftovers(folder, NAME)
            folder.unlink(NAME, missing_ok=True)
