"""Marked places of a page: what the author writes between two marks is kept when the page is regenerated.

A mark carries a checksum of what we put there, so that an edit can be told from our own text of last time.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_BEGIN = "<!-- kohya-ext begin {name} {digest} -->"
_END = "<!-- kohya-ext end {name} -->"
_PLACE = re.compile(
    r"<!-- kohya-ext begin (?P<name>[a-z-]+) (?P<digest>[0-9a-f]{8}) -->\n"
    r"(?P<text>.*?)\n?<!-- kohya-ext end (?P=name) -->",
    re.DOTALL,
)
_MARK = re.compile(r"(?i)<!--(\s*kohya-ext)")


@dataclass
class EditableSections:
    """The marked places of a page. edits: those that the author changed; filled: all, edited or not.

    used: the places whose text the new page has taken over.
    """

    edits: Mapping[str, str] = field(default_factory=dict)
    filled: Mapping[str, str] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)

    def place(self, name: str, text: str, *, weak: bool = False) -> Iterator[str]:
        """The lines of a marked place: the author's edit if there is one, else `text`.

        A weak text, one that merely asks to be filled in, gives way to whatever stood there.
        """
        found = self.filled.get(name) if weak else self.edits.get(name)
        if found is not None:
            self.used.append(name)
        yield _BEGIN.format(name=name, digest=_digest(text if name in self.edits or found is None else found))
        yield text if found is None else found
        yield _END.format(name=name)


def read(page: str) -> EditableSections:
    """The edits in an existing page."""
    page = page.replace("\r\n", "\n")
    places = {match["name"]: (match["digest"], match["text"]) for match in _PLACE.finditer(page)}
    edits = {name: text for name, (digest, text) in places.items() if _digest(text) != digest}
    return EditableSections(edits, {name: text for name, (_, text) in places.items()})


def without_marks(text: str) -> str:
    """`text` with anything that looks like one of our marks made harmless."""
    return _MARK.sub(r"<! --\1", text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.strip().encode("utf-8", "backslashreplace")).hexdigest()[:8]
