"""What may reach a terminal: text from files, names and arguments must not control it, and must never end a command.

`safe_streams` stands around every command. Whatever is printed within it (argparse's errors too) has its control and
bidirectional characters escaped, and characters that the terminal's encoding lacks as well. Text that is somebody's
document, such as a model card, goes to `document`: a file gets it as it is.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any, Literal, TextIO

from kohya_ext.core.errors import KohyaExtError

# C0 and C1 controls but for tab and newline; marks, embeddings, overrides and isolates of writing direction; the line
# separators of Unicode; annotations; halves of surrogate pairs, which stand for bytes of undecodable names.
_UNSAFE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb\ud800-\udfff]"
)


Tone = Literal["good", "doubtful", "bad"]
_COLOURS: dict[Tone, str] = {"good": "32", "doubtful": "33", "bad": "31"}  # of ANSI's: green, yellow, red


class OutputLostError(KohyaExtError):
    """Standard output or standard error cannot be written: a full disk, a closed device."""


def printable(text: str, *, one_line: bool = False) -> str:
    """`text` with everything escaped that would control a terminal. one_line: tabs and newlines too, as in a name."""
    text = _UNSAFE.sub(_escaped, text)
    return text.replace("\n", "\\n").replace("\t", "\\t") if one_line else text


def indented(text: str, width: int) -> str:
    """`text` whose further lines stand below the first, so that none of them passes for a line of its own."""
    return text.replace("\n", "\n" + " " * width)


def named_in_one_line(text: str, words: Sequence[str]) -> str:
    """`text` with line breaks and tabs escaped in the names that these arguments of a command are, whole or in part."""
    for word in sorted(words, key=len, reverse=True):
        name = word.partition("=")[2] if word.startswith("--") else word
        if "\n" in name.strip() or "\t" in name.strip():
            for shown in (name, str(PurePath(name))):  # as it was typed, and as a path of this system
                text = text.replace(shown, printable(shown, one_line=True))
    return text


def rewrite_line(text: str, *, end: str = "") -> None:
    """Show `text` in place of the current line of the terminal at standard error."""
    stream = sys.stderr
    safe = printable(text, one_line=True)
    if isinstance(stream, _SafeStream):
        stream.write_raw(f"\r\x1b[K{stream.encodable(safe)}{end}")
    elif stream is not None:
        stream.write(f"\r\x1b[K{safe}{end}")
        stream.flush()


def coloured_line(before: str, text: str, tone: Tone) -> None:
    """Print `before` and `text`, the latter in the tone's colour where standard output is a terminal that has colours.

    NO_COLOR (no-color.org) switches it off, as TERM=dumb does.
    """
    stream = sys.stdout
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    if plain or not isinstance(stream, _SafeStream) or not stream.isatty():
        print(f"{before}{text}", flush=True)
        return
    shown = (stream.encodable(printable(part, one_line=True)) for part in (before, text))
    first, second = shown
    stream.write_raw(f"{first}\x1b[{_COLOURS[tone]}m{second}\x1b[0m\n")


def document(text: str) -> None:
    """Print `text`, which the user wants as it is: only a terminal gets it escaped."""
    stream = sys.stdout
    if isinstance(stream, _SafeStream) and not stream.isatty():
        stream.write_raw(stream.encodable(text))
    elif stream is not None:
        stream.write(text)


@contextlib.contextmanager
def safe_streams() -> Iterator[None]:
    """Standard output and standard error as this module promises, until the end of the context."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_safe(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def abandon_output() -> None:
    """Nobody can take what we print: keep Python from failing over it once more at its exit."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
            continue
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _safe(stream: TextIO | None) -> Any:
    return stream if stream is None or isinstance(stream, _SafeStream) else _SafeStream(stream)


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    if character == "\r":
        return "\\r"
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a name that is not text in the system's encoding
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class _SafeStream:
    """A text stream that escapes what it is given. Everything but writing is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._held = ""  # a carriage return that may be the first half of a line end

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        whole = self._held + text
        self._held = "\r" if whole.endswith("\r") else ""
        whole = whole.removesuffix("\r")
        lines = "\r\n".join(printable(part) for part in whole.split("\r\n"))
        self.write_raw(self.encodable(lines), flush=False)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._guarded(self._stream.flush)

    def write_raw(self, text: str, *, flush: bool = True) -> None:
        """Write `text` as it is."""
        self._guarded(self._stream.write, text)
        if flush:
            self.flush()

    def encodable(self, text: str) -> str:
        """`text` with escapes in place of what the stream's encoding lacks."""
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        try:
            return text.encode(encoding, "backslashreplace").decode(encoding)
        except (LookupError, UnicodeError):
            return text.encode("ascii", "backslashreplace").decode("ascii")

    @staticmethod
    def _guarded(action: Any, *arguments: Any) -> None:
        try:
            action(*arguments)
        except BrokenPipeError:
            raise
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputLostError(f"the output cannot be written: {reason}. What the command did remains") from error
