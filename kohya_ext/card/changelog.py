"""A change log as a model page needs it: the current major version whole, each older one in a line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

_HEADING = re.compile(r"#{1,6}\s+(?:\[|version\s+|v\.?\s*)*(\d+)(?:\.(\d+))?(?:\.(\d+))?(.*)", re.IGNORECASE)
_ANY_HEADING = re.compile(r"#{1,6}\s+\S")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}|\d{1,2}\.\d{1,2}\.\d{4}")
_FENCE = re.compile(r"\s*(```|~~~)")
LONGEST = 100  # characters of an entry in the line of an old version


@dataclass(frozen=True)
class Version:
    """One section of a change log. text: its lines without the heading."""

    name: str
    number: tuple[int, int, int]
    date: str
    text: str


def parse(text: str) -> list[Version]:
    """The versions in a Markdown change log, the newest first. Sections without a number (Unreleased) are skipped."""
    found: list[tuple[re.Match[str], list[str]]] = []
    lines: list[str] | None = None
    level, fenced = 0, False
    for line in text.splitlines():
        fenced ^= bool(_FENCE.match(line))
        depth = len(line) - len(line.lstrip("#"))
        if not fenced and (match := _HEADING.match(line)) and (lines is None or depth <= level):
            lines, level = [], depth
            found.append((match, lines))
        elif not fenced and _ANY_HEADING.match(line) and depth <= level:
            lines, level = None, 0
        elif lines is not None:
            lines.append(line.rstrip())
    versions = [_version(match, body) for match, body in found]
    return sorted(versions, key=lambda version: version.number, reverse=True)


def pruned(versions: Sequence[Version]) -> list[str]:
    """Lines of Markdown: every version of the newest major number, and one line for each older number."""
    lines: list[str] = []
    for place, (major, group) in enumerate(groupby(versions, key=lambda version: version.number[0])):
        members = list(group)
        if place == 1:  # else the list would go on with that of the version above
            lines += ["### Earlier", ""]
        if place:
            lines.append(_in_a_line(major, members))
            continue
        for version in members:
            lines += [f"### {version.name}" + (f" ({version.date})" if version.date else ""), "", version.text, ""]
    return lines


def _version(match: re.Match[str], lines: Sequence[str]) -> Version:
    numbers = [match[place] for place in (1, 2, 3)]
    date = _DATE.search(match[4])
    text = "\n".join(lines).strip()
    # headings within a section would stand next to our own
    text = re.sub(r"(?m)^#{1,6}\s+(.*)$", r"\n**\1**\n", text).strip()
    name = ".".join(number for number in numbers if number is not None)
    return Version(name, tuple(int(number or 0) for number in numbers), date[0] if date else "", text)  # type: ignore[arg-type]


def _in_a_line(major: int, members: Sequence[Version]) -> str:
    newest, oldest = members[0], members[-1]
    span = newest.name if len(members) == 1 else f"{oldest.name} to {newest.name}"
    until = f", {newest.date}" if newest.date else ""
    first = next((line.lstrip("-*+ ").strip() for line in newest.text.splitlines() if line.strip()), "")
    if len(first) > LONGEST:
        first = first[:LONGEST].rsplit(" ", 1)[0] + " ..."
    return f"- **{major}.x** ({span}{until})" + (f": {first}" if first else "")
