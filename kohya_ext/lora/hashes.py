"""Hashes of the model files, taken by a thread that reads each once, from front to end, while they are worked on.

It runs ahead of the extraction, which then finds the file's pages in memory.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BLOCK = 1 << 22
_OLD_START, _OLD_LENGTH, _OLD_DIGITS = 0x100000, 0x10000, 8  # the short hash that web UIs once told models by


@dataclass(frozen=True)
class FileHash:
    """sha256 of the whole file, and the old short hash of web UIs."""

    sha256: str
    short: str


class Hashing:
    """The hashes of `paths`, on their way. Leave the context early and the thread ends early."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._found: dict[Path, FileHash] = {}
        self._error: OSError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(tuple(dict.fromkeys(paths)),), daemon=True)

    def __enter__(self) -> Hashing:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def result(self) -> dict[Path, FileHash]:
        """Wait for all of them. Raises OSError when a file could not be read to its end."""
        self._thread.join()
        if self._error:
            raise self._error
        return self._found

    def _run(self, paths: tuple[Path, ...]) -> None:
        try:
            for path in paths:
                digest = hashlib.sha256()
                with path.open("rb", buffering=0) as file:
                    file.seek(_OLD_START)
                    short = hashlib.sha256(file.read(_OLD_LENGTH)).hexdigest()[:_OLD_DIGITS]
                    file.seek(0)
                    while block := file.read(BLOCK):
                        if self._stop.is_set():
                            return
                        digest.update(block)
                self._found[path] = FileHash(digest.hexdigest(), short)
        except OSError as error:
            self._error = error
