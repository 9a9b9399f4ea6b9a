"""The form of a text file next to its text: byte order mark, line ends, the newline at its end."""

from __future__ import annotations

import re
from dataclasses import dataclass

BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True)
class TextForm:
    """How a UTF-8 text is stored in its file.

    newline: the line end of most lines, LF when there is none. final_newline: the last line ends in one.
    mixed: not all line ends are equal, so `decode` and `encode` would make them so; use `appended` on such files.
    """

    bom: bool = False
    newline: str = "\n"
    final_newline: bool = True
    mixed: bool = False

    @classmethod
    def of(cls, data: bytes) -> TextForm:
        """The form of `data`."""
        body = data.removeprefix(BOM)
        ends = _LINE_END.findall(body)
        counts = {end: ends.count(end) for end in (b"\n", b"\r\n", b"\r")}
        newline = max(counts, key=lambda end: counts[end])
        return cls(
            bom=data.startswith(BOM),
            newline=newline.decode(),
            final_newline=not body or body.endswith((b"\n", b"\r")),
            mixed=sum(count > 0 for count in counts.values()) > 1,
        )

    def decode(self, data: bytes) -> str:
        """The text of `data`, lines ending in LF, without the byte order mark. Raises UnicodeDecodeError."""
        text = data.removeprefix(BOM).decode("utf-8")
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def encode(self, text: str) -> bytes:
        """`text`, whose lines end in LF, in this form. What `decode` gave comes back byte for byte unless `mixed`."""
        if self.final_newline and text and not text.endswith("\n"):
            text += "\n"
        elif not self.final_newline and text.endswith("\n"):
            text = text[:-1]
        return (BOM if self.bom else b"") + text.replace("\n", self.newline).encode("utf-8")


def appended(data: bytes, text: str) -> bytes:
    """`data` followed by the lines of `text`, in the line ends of most of its lines. `data` itself stays as it is."""
    form = TextForm.of(data)
    gap = "" if form.final_newline else "\n"
    return data + (gap + text).replace("\n", form.newline).encode("utf-8", "surrogateescape")


def same_text(one: bytes, other: bytes) -> bool:
    """True when both hold the same text: byte order mark, line ends and the last newline do not count."""
    return _plain(one) == _plain(other)


def _plain(data: bytes) -> bytes:
    return _LINE_END.sub(b"\n", data.removeprefix(BOM)).removesuffix(b"\n")
