"""Kohya's source files as text, and parsed, never run: bounded, and refused in one way whatever is wrong with them.

They come from a checkout's folder, or from anything else that can be asked for a file. A tree of syntax takes up to two
kilobytes a token, and Python's own parser gives up in four ways on source that is nested too deeply, or crashes (3.10).
The largest module of any Kohya release has 50,000 tokens.
"""

from __future__ import annotations

import ast
import gc
import re
import warnings
from collections.abc import Mapping
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Protocol

from kohya_ext.files.regular import MODULE_LIMIT, NotReadableError, read_regular

MOST_TOKENS = 200_000
_TOKEN = re.compile(r"\w+|[^\w\s]")
_TOKEN_BYTES = re.compile(rb"[\w\x80-\xff]+|[^\w\s]")


class Sources(Protocol):
    """Gives the text of files of one checkout."""

    def read(self, path: str) -> str | None:
        """The text of the file at `path` (posix, relative to the checkout), None where there is none."""
        ...


class FolderSources:
    """The files of a checkout on disk, each read once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._texts: dict[str, str | None] = {}

    def read(self, path: str) -> str | None:
        """See `Sources.read`; nothing outside of the folder, and no file that cannot be read."""
        if path not in self._texts:
            self._texts[path] = self._read(path)
        return self._texts[path]

    def _read(self, path: str) -> str | None:
        parts = PurePosixPath(path)
        if parts.is_absolute() or ".." in parts.parts:
            return None
        try:
            return read_regular(self.root / path, MODULE_LIMIT).decode("utf-8-sig", errors="replace")
        except NotReadableError:
            return None


class TextSources:
    """Files given as a mapping; for tests and for revisions read from git."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def read(self, path: str) -> str | None:
        """See `Sources.read`."""
        return self._texts.get(path)


def tokens_in(source: str | bytes) -> int:
    """About how many tokens `source` has, counted up to a little more than are ever parsed."""
    found = _TOKEN.finditer(source) if isinstance(source, str) else _TOKEN_BYTES.finditer(source)
    return sum(1 for _ in islice(found, MOST_TOKENS + 1))


def parse(source: str | bytes) -> ast.Module:
    """The tree of a module. Raises SyntaxError for whatever is not one, and for what is larger than any module."""
    if tokens_in(source) > MOST_TOKENS:
        raise SyntaxError(f"more than {MOST_TOKENS} tokens, which no module of Kohya has")
    collecting = gc.isenabled()
    gc.disable()  # it would search the growing tree again and again
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # upstream has strings with invalid escapes
            return ast.parse(source)
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        raise SyntaxError(str(error) or "nested too deeply") from error
    finally:
        if collecting:
            gc.enable()
