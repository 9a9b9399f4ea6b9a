"""RECORD, the list of an installed package's files with their digests: read, and held against the files.

Not by `importlib.metadata`: it takes the package that comes first on the path for the one that is asked about.
"""

from __future__ import annotations

import base64
import csv
import hashlib
from pathlib import Path

from kohya_ext.core import about

INFO = f"{about.PACKAGE}-*.dist-info"
NAME = "RECORD"


def rows(text: str) -> list[tuple[str, str]]:
    """Path and digest of each line of a RECORD; the digest is "" for what has none (compiled files, RECORD itself).

    Empty where it is damaged.
    """
    try:
        return [(row[0].replace("\\", "/"), row[1]) for row in csv.reader(text.splitlines()) if len(row) > 1]
    except csv.Error:
        return []


def of_package(listed: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Of these rows, the files of the package itself, not the programs and metadata."""
    return [row for row in listed if row[0].startswith(f"{about.PACKAGE}/")]


def matches(path: Path, digest: str) -> bool:
    """Whether the file has this digest; not where it cannot be read."""
    name, _, expected = digest.partition("=")
    try:
        found = hashlib.new(name, path.read_bytes()).digest()
    except (OSError, ValueError, TypeError):
        return False
    return base64.urlsafe_b64encode(found).rstrip(b"=").decode("ascii") == expected


def damaged(purelib: Path) -> list[str]:
    """The files of the package in `purelib` that differ from RECORD; none where there is no RECORD.

    Where an upgrade was interrupted there may be two: the one that fits better counts.
    """
    found = []
    for info in sorted(purelib.glob(INFO)):
        try:
            text = (info / NAME).read_text(encoding="utf-8-sig")
        except (OSError, ValueError):
            continue
        listed = of_package(rows(text))
        if listed:
            found.append([name for name, digest in listed if digest and not matches(purelib / name, digest)])
    return min(found, key=len, default=[])
