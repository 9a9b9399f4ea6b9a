"""Caption files as they lie on the disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kohya_ext.core.errors import ConflictError, UsageError
from kohya_ext.files.atomic import owner_for
from kohya_ext.files.journal import FileState, read_state
from kohya_ext.files.text_encoding import TextForm

LARGEST = 1 << 20  # bytes; a caption has a few hundred
NEW_MODE = 0o644


def first_line(text: str) -> str:
    """All that Kohya reads of a caption, "" where the first line is blank."""
    return text.partition("\n")[0].strip()


@dataclass(frozen=True)
class Caption:
    """One caption file. path: relative to the data set. text: without byte order mark and final newline."""

    path: Path
    state: FileState
    text: str

    @property
    def first_line(self) -> str:
        """All that Kohya reads of it, "" where the first line is blank."""
        return first_line(self.text)

    def as_state(self, text: str) -> FileState:
        """The file with another text, and the line ends, the mark and the mode that it has."""
        data = TextForm.of(self.state.data).encode(text)
        return FileState(data, self.state.mode, self.state.owner)


def read(folder: Path, path: Path) -> Caption | None:
    """The caption in `path`, None when there is none.

    Raises UsageError when it is not UTF-8 or much too large, ConflictError when it is a link or a folder.
    """
    try:
        if (folder / path).stat().st_size > LARGEST:
            raise UsageError(f"{path} has more than {LARGEST} bytes: that is not a caption; nothing was changed")
        state = read_state(folder / path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConflictError(f"{path} cannot be read: {error.strerror}; nothing was changed") from error
    if state is None:
        return None
    try:
        return Caption(path, state, TextForm.of(state.data).decode(state.data).removesuffix("\n"))
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 (byte {error.start}), and Kohya stops at such a caption: save it as UTF-8; "
            "nothing was changed"
        ) from error


def fresh(folder: Path, path: Path, text: str, before: Caption | None) -> FileState:
    """A new caption file: UTF-8, one line, with the mode of the one that it replaces."""
    mode = before.state.mode if before else NEW_MODE
    return FileState(f"{text}\n".encode(), mode, owner_for(folder / path))
