"""A tree that git has half merged or half rebased: nothing must be read from it or installed into it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from kohya_ext.checkout import git
from kohya_ext.checkout.checkout import Checkout
from kohya_ext.core import shell
from kohya_ext.core.errors import ConflictError

# What git keeps in its folder while it is at work, what to call that, and the command that ends it.
AT_WORK = {
    "MERGE_HEAD": ("a merge", "merge --abort"),
    "rebase-merge": ("a rebase", "rebase --abort"),
    "rebase-apply": ("a rebase", "rebase --abort"),
    "CHERRY_PICK_HEAD": ("a cherry-pick", "cherry-pick --abort"),
    "REVERT_HEAD": ("a revert", "revert --abort"),
}
NAMES_SHOWN = 5
_MARKERS = tuple(re.compile(rb"^" + mark, re.MULTILINE) for mark in (rb"<{7} ", rb"={7}\r?$", rb">{7} "))


def refuse(checkout: Checkout) -> None:
    """Raise ConflictError, with the commands that end it, while git has left a merge or a rebase half done there."""
    found = list(problems(checkout))
    if found:
        raise ConflictError("\n".join(found) + "\nNothing was changed")


def problems(checkout: Checkout) -> Iterator[str]:
    """One sentence for each repository of the checkout in which git has not finished."""
    tops = dict.fromkeys(git.work_tree(folder) for folder in (checkout.root, checkout.training_root))
    for top in tops:
        if top is not None:
            yield from _problem(top)


def _problem(top: Path) -> Iterator[str]:
    folder = git.own_folder(top)
    said = git.answer(top, "ls-files", "--unmerged", "-z") or b""
    names = list(dict.fromkeys(os.fsdecode(row.partition(b"\t")[2]) for row in said.split(b"\0")[:-1]))
    at_work = next((what for name, what in AT_WORK.items() if folder and (folder / name).exists()), None)
    if at_work is None and not names:
        return
    what, command = at_work or ("a merge", "reset --merge")
    unmerged = f"; not merged: {', '.join(names[:NAMES_SHOWN])}{' and more' if len(names) > NAMES_SHOWN else ''}"
    yield (
        f"{top} is half merged: git has not finished {what} there{unmerged if names else ''}. "
        f"Finish it, or abort it: git -C {shell.quoted(top)} {command}"
    )


def has_markers(data: bytes) -> bool:
    """Whether `data` holds the lines by which git marks a conflict."""
    return all(mark.search(data) for mark in _MARKERS)
