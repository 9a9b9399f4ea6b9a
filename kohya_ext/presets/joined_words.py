"""Words of a command line that a missing blank has made one of: `--lowram--no_half_vae`."""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import pairwise

_FLAG = re.compile(r"--(\w+)")
_VALUE = re.compile(r"[A-Z0-9.]")  # how a value begins that follows the name of a flag at once; the names are small


def apart(word: str, known: Collection[str]) -> list[str]:
    """The words that were meant; `word` alone where nothing tells of several. known: names of flags, without dashes."""
    starts = [match.start() for match in _FLAG.finditer(word) if match[1] in known and match.start()]
    edges = [0, *starts, len(word)]
    pieces = [word[begin:end] for begin, end in pairwise(edges)]
    return [part for index, piece in enumerate(pieces) for part in _named(piece, index < len(starts), known)]


def _named(piece: str, followed: bool, known: Collection[str]) -> list[str]:
    """One piece, its flag apart from what follows its name without a sign between; no comma at its end."""
    piece = piece.rstrip(",;") if followed else piece
    match = _FLAG.fullmatch(piece.partition("=")[0])
    if match is None or any(name.startswith(match[1]) for name in known):
        return [piece]
    name = max((one for one in known if match[1].startswith(one)), key=len, default="")
    rest = piece[2 + len(name) :]
    if name and rest.partition("=")[0] in known:
        return [f"--{name}", f"--{rest}"]
    return [f"--{name}", rest] if name and _VALUE.match(rest) else [piece]
