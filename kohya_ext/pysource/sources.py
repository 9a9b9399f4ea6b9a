"""Kohya's source files as text: from a checkout's folder, or from anything else that can be asked for a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Protocol

from kohya_ext.files.regular import MODULE_LIMIT, NotReadableError, read_regular


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
        return self._texts.get(path)
