"""A folder as links in another place: readers see the same names, and what is written next to them is not in there."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

CACHES = (".npz",)  # what training scripts write next to images; a mirror begins without
DEEPEST = 8


def mirrored(folder: Path, where: Path) -> Path:
    """A mirror of `folder` below `where`, made once.

    Args:
        folder: with images; folders in it are mirrored too.
        where: a temporary folder.

    Returns:
        The mirror; its last name is the folder's, which may say how often images are repeated.

    Raises:
        OSError: the folder cannot be listed.
    """
    source = folder.resolve()
    mark = hashlib.sha256(os.fsencode(source)).hexdigest()[:12]
    mirror = where / "data" / mark / source.name
    if not mirror.exists():
        _fill(source, mirror, DEEPEST)
    return mirror


def _fill(source: Path, mirror: Path, depth: int) -> None:
    mirror.mkdir(parents=True)
    with os.scandir(source) as entries:
        for entry in entries:
            if entry.is_dir():
                if depth:
                    _fill(Path(entry.path), mirror / entry.name, depth - 1)
            elif entry.is_file() and not entry.name.endswith(CACHES):
                _link(Path(entry.path), mirror / entry.name)


def _link(file: Path, link: Path) -> None:
    for make in (os.symlink, os.link, shutil.copyfile):  # Windows lets few users make links
        try:
            make(file, link)
        except OSError:
            continue
        return
