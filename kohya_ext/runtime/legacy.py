"""A tree that still carries the guide's or the pull request's replaced files: EMA flags or an AdaCoor of its own.

Two averages in one run, or two optimizers of one name, would train something nobody asked for. So we stay out of such
a tree altogether, and a run that asks for EMA or AdaCoor there is stopped with the command that restores the files.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from kohya_ext.runtime.run import run
from kohya_ext.spec.hooks import LEGACY_CLASSES, LEGACY_FLAG, LEGACY_FLAG_HOMES


def look_at(namespace: dict[str, Any]) -> None:
    """Note what the module with these globals defines that only the old replaced files define."""
    file = namespace.get("__file__")
    if not file:
        return
    name = namespace["__name__"]
    for class_name in LEGACY_CLASSES:
        value = namespace.get(class_name)
        if inspect.isclass(value) and value.__module__ == name:
            run.old_files[file] = f"class {class_name}"
    if any(name in namespace for name in LEGACY_FLAG_HOMES):
        # read as text: the flag may be added by a function that runs after ours
        source = Path(file).read_text(encoding="utf-8-sig", errors="replace")
        if any(f"{quote}{LEGACY_FLAG}{quote}" in source for quote in "'\""):
            run.old_files[file] = LEGACY_FLAG


def found() -> bool:
    """True when this tree carries old replaced files."""
    return bool(run.old_files)


def message() -> str:
    """What was found, and the git command that restores the files."""
    what = "; ".join(f"{file} has {thing}" for file, thing in sorted(run.old_files.items()))
    files = " ".join(f"'{file}'" for file in sorted(run.old_files))
    folder = Path(sorted(run.old_files)[0]).parent
    return (
        f"this checkout carries files of an older patch ({what}); kohya_ext stays out of it. "
        f"Restore them with: git -C '{folder}' checkout --ignore-skip-worktree-bits -- {files} "
        "(files that git does not know have to be moved away)"
    )
