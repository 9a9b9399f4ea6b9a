"""The Python files of a checkout read as text, each at most once: nothing of Kohya is ever imported here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from kohya_ext.errors import UnsupportedError

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Sources:
    """Bytes and syntax trees of files, remembered for the length of one command."""

    def __init__(self) -> None:
        self._data: dict[Path, bytes] = {}
        self._trees: dict[Path, ast.Module] = {}

    def data(self, path: Path) -> bytes:
        """The bytes of `path`."""
        if path not in self._data:
            self._data[path] = path.read_bytes()
        return self._data[path]

    def tree(self, path: Path) -> ast.Module:
        """The syntax tree of `path`. Raises UnsupportedError when it is no valid Python."""
        if path not in self._trees:
            try:
                self._trees[path] = ast.parse(self.data(path))
            except (SyntaxError, ValueError) as error:
                raise UnsupportedError(
                    f"{path} does not parse ({error}), so kohya_ext cannot tell what it defines; "
                    "nothing was changed. Restore the file, then run again"
                ) from error
        return self._trees[path]

    def holding(self, folder: Path, pattern: str, words: tuple[str, ...]) -> list[Path]:
        """The files of `pattern` below `folder` that hold one of `words` anywhere: only those are worth parsing."""
        needles = [word.encode() for word in words]
        files = sorted(path for path in folder.glob(pattern) if path.is_file())
        return [path for path in files if any(needle in self.data(path) for needle in needles)]

    def functions(self, path: Path) -> Iterator[Function]:
        """The functions that the module `path` defines at its top level, also those below an `if` or `try`."""
        return _functions(self.tree(path).body)


def _functions(body: list[ast.stmt]) -> Iterator[Function]:
    for statement in body:
        if isinstance(statement, Function):
            yield statement
        elif isinstance(statement, ast.If | ast.Try | ast.With):
            for branch in ("body", "orelse", "finalbody"):
                yield from _functions(getattr(statement, branch, []))
            for handler in getattr(statement, "handlers", []):
                yield from _functions(handler.body)
