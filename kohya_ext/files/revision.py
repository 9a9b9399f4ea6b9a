"""Which commit a repository is at, by git's own files: the GUI asks at each start, and starting git takes longer.

Two commits may bear the name of one release: a branch goes on where a tag was set.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from kohya_ext.files.regular import TEXT_LIMIT, NotReadableError, read_regular

_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_LINE_LIMIT = 4096  # bytes of a file of git's that holds one line
UNKNOWN = ""


def commits(folders: Iterable[Path]) -> list[str]:
    """The commit of each work tree, `UNKNOWN` where there is no repository or its files do not tell."""
    return [_commit(folder) for folder in folders]


def moved(before: Sequence[str], now: Sequence[str]) -> bool:
    """Whether one of the commits is another than it was; what is not known has not moved."""
    return any(one and other and one != other for one, other in zip(before, now, strict=False))


def _commit(top: Path) -> str:
    entry = top / ".git"
    folder = entry if entry.is_dir() else top / _line(entry).partition("gitdir:")[2].strip()
    if folder == top:
        return UNKNOWN
    head = _line(folder / "HEAD")
    _, is_branch, name = head.partition("ref:")
    if is_branch:
        head = _referred(folder, name.strip())
    return head if _COMMIT.fullmatch(head) else UNKNOWN


def _referred(folder: Path, name: str) -> str:
    """The commit of a branch; work trees have their branches in a common folder."""
    parts = PurePosixPath(name).parts
    if parts[:1] != ("refs",) or ".." in parts:
        return UNKNOWN
    common = folder / _line(folder / "commondir")
    for place in (folder, common):
        if found := _line(place / name):
            return found
    rows = (row.partition(" ") for row in _text(common / "packed-refs", TEXT_LIMIT).splitlines())
    return next((commit for commit, _, packed in rows if packed == name), UNKNOWN)


def _line(path: Path) -> str:
    return _text(path, _LINE_LIMIT).strip()


def _text(path: Path, limit: int) -> str:
    try:
        return read_regular(path, limit).decode("utf-8", errors="replace")
    except NotReadableError:
        return ""
