"""An update that is under way: what is to be put on again, should nobody come to do it.

Between taking our files off and putting them on again lies a `git pull`, which may take minutes and be killed. The
record of it stands where git keeps its own: it outlives `uninstall`, is in nobody's way and never in `git status`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kohya_ext.files.atomic import write_atomic
from kohya_ext.install import git

NAME = "kohya_ext-update.json"


@dataclass(frozen=True)
class Pending:
    """patch_set and package: what `apply.install` is to be called with. root: see `Manifest`."""

    patch_set: str
    package: Mapping[str, Any] | None
    root: str | None = None


def begin(root: Path, pending: Pending) -> None:
    """Record that our files are about to be taken off, and what they were."""
    path = _path(root)
    if path is not None:
        document = {"patch_set": pending.patch_set, "package": pending.package, "root": pending.root}
        write_atomic(path, (json.dumps(document, indent=2) + "\n").encode("utf-8"))


def read(root: Path) -> Pending | None:
    """What an interrupted update left to be put on again, None where there was none."""
    path = _path(root)
    try:
        document = json.loads(path.read_text(encoding="utf-8")) if path is not None else None
        if document is None:
            return None
        return Pending(str(document["patch_set"]), document["package"], document.get("root"))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def end(root: Path) -> None:
    """The update is over, whichever way."""
    path = _path(root)
    if path is not None:
        path.unlink(missing_ok=True)


def _path(root: Path) -> Path | None:
    said = git.answer(root, "rev-parse", "--git-path", NAME)
    return None if said is None else root / os.fsdecode(said.rstrip(b"\n"))
