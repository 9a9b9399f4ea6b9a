"""Paths that come out of a file (a manifest, a journal) and must not lead out of the folder they are meant for."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath, PureWindowsPath

from kohya_ext.core.errors import ConflictError

# what some system takes for `.git`: case, a stream, dots and blanks at the end, the short name of Windows
_GIT = re.compile(r"(\.git|git~\d+)[ .]*(:.*)?", re.IGNORECASE | re.DOTALL)


def checked(path: object, source: str = "the plan") -> str:
    """`path` when it is a plain relative path (posix) outside `.git`; `source` says in the error where it stood.

    Raises ConflictError for everything else: absolute paths, `..`, drives, NUL.
    """
    if not isinstance(path, str) or not path or "\0" in path:
        raise ConflictError(f"{source} contains {path!r} where a path is expected; nothing was changed")
    pure = PurePosixPath(path)
    windows = PureWindowsPath(path)
    parts = {*pure.parts, *windows.parts}
    outside = pure.is_absolute() or windows.drive or windows.root or ".." in parts
    if outside or not pure.parts or any(_GIT.fullmatch(part) for part in parts):
        raise ConflictError(f"{source} contains {path!r}, which is outside of the checkout; nothing was changed")
    return pure.as_posix()


def inside(root: Path, path: str, source: str = "the plan") -> Path:
    """The absolute path of `path` below `root`, whose folders may be links but may not lead out of `root`.

    Raises ConflictError when they do, or when `path` is not a plain relative one.
    """
    real_inside(root.resolve(), path, source)
    return root / checked(path, source)


def real_inside(root: Path, path: str, source: str = "the plan") -> tuple[Path, str]:
    """The folder in which `path` really lies, without links, and its name there.

    root: without links as well. If it is one now, somebody has put it there since: nothing is found below it then.
    Raises ConflictError as `inside` does.
    """
    target = root / checked(path, source)
    folder = target.parent.resolve()
    if not folder.is_relative_to(root):
        raise ConflictError(
            f"{target} is in {folder}, outside of the checkout {root}: a link points there. Nothing was changed; "
            "install into the folder that the link points to, or replace the link with a real folder"
        )
    return folder, target.name
