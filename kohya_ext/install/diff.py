"""A change of a file as a unified diff, which `git apply` and `patch -p1` understand."""

from __future__ import annotations

import difflib

from kohya_ext.files.journal import Change, FileState


def diff_of(change: Change) -> str:
    """The lines of one file's change."""
    old = "/dev/null" if change.before is None else f"a/{change.path}"
    new = "/dev/null" if change.after is None else f"b/{change.path}"
    lines = difflib.unified_diff(_lines(change.before), _lines(change.after), fromfile=old, tofile=new)
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def _lines(state: FileState | None) -> list[str]:
    if state is None:
        return []
    *whole, rest = state.data.decode("utf-8", "surrogateescape").split("\n")  # only LF ends a line of a diff
    return [line + "\n" for line in whole] + ([rest] if rest else [])
