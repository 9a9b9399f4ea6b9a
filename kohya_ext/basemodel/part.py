"""A partial download: accessible to this user only, and never reached through a link.

It lies next to the file it is to become, perhaps in a folder that others may write to as well, under a name that they
can guess: only that way can a later run resume it.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from kohya_ext.core.errors import ConflictError
from kohya_ext.files.atomic import NEW_FILE_MODE, Owner
from kohya_ext.files.folder import Folder, give, opened

_PRIVATE = 0o600


@dataclass(frozen=True)
class Part:
    """A part by its path. All methods raise OSError."""

    path: Path

    def size(self) -> int:
        """Bytes that are there, 0 without a part of ours."""
        with self._folder() as folder:
            found = folder.lstat(self.path.name)
        return found.st_size if found is not None and _is_ours(found) else 0

    def open(self, start: int) -> BinaryIO:
        """The partial file, to resume at `start`; at 0 a new one. Raises ConflictError where it is not ours."""
        with self._folder() as folder:
            if start == 0:
                self._remove(folder)
                return open(folder.create(self.path.name), "w+b")  # noqa: PTH123 - a descriptor
            descriptor = folder.open_file(self.path.name, writing=True)
            try:
                if not _is_ours(os.fstat(descriptor)):
                    raise ConflictError(f"{self.path} belongs to another user: remove it and run again")
                give(descriptor, None, _PRIVATE)
                file = open(descriptor, "r+b")  # noqa: PTH123, SIM115 - a descriptor; the caller closes it
            except BaseException:
                os.close(descriptor)
                raise
        file.seek(start)
        return file

    def sync(self) -> None:
        """Wait until the disk has it."""
        with self.open(self.size()) as file:
            os.fsync(file.fileno())

    def remove(self) -> None:
        """Begin anew."""
        with self._folder() as folder:
            self._remove(folder)

    def become(self, name: str, owner: Owner | None) -> None:
        """It is whole: readable for all, and of that name in its folder."""
        with self._folder() as folder:
            with self.open(self.size()) as file:
                give(file.fileno(), owner, NEW_FILE_MODE)
            folder.replace(self.path.name, folder, name)
            folder.sync()

    def _folder(self) -> Any:
        return opened(self.path.parent.resolve())

    def _remove(self, folder: Folder) -> None:
        try:
            folder.unlink(self.path.name, missing_ok=True)
        except PermissionError as error:
            raise ConflictError(f"{self.path} belongs to another user: have it removed, then run again") from error


def _is_ours(found: os.stat_result) -> bool:
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        return False
    return not hasattr(os, "geteuid") or found.st_uid == os.geteuid()
