"""The Python files of a checkout read as text: nothing of Kohya is ever imported here."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kohya_ext.checkout.merging import has_markers
from kohya_ext.core.errors import ConflictError, UnsupportedError
from kohya_ext.files.regular import MODULE_LIMIT, NotReadableError, read_regular
from kohya_ext.pysource.sources import parse
from kohya_ext.spec.hooks import Definition

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class SourceFunction(Definition):
    """A definition read from the text of its module. line: counted from 1."""

    name: str
    line: int


@dataclass(frozen=True)
class Dropdown:
    """A call of gradio's Dropdown with a constant label and a literal list of choices (the constants among them)."""

    label: object
    choices: tuple[object, ...]
    line: int


@dataclass(frozen=True)
class Names:
    """Names of classes, string constants and attributes anywhere in a module."""

    classes: frozenset[str]
    strings: frozenset[str]
    attributes: frozenset[str]


class SourceFiles:
    """The bytes of files, each read once in the length of one command, and what their modules hold."""

    def __init__(self) -> None:
        self._data: dict[Path, bytes] = {}

    def data(self, path: Path) -> bytes:
        """The bytes of `path`. Raises UnsupportedError where it is not a module, ConflictError without permission."""
        if path not in self._data:
            try:
                self._data[path] = read_regular(path, MODULE_LIMIT)
            except NotReadableError as error:
                if isinstance(error.__cause__, PermissionError):
                    raise ConflictError(f"{error}; nothing was changed. Run as the user that owns it") from error
                raise UnsupportedError(f"{error}; nothing was changed. Restore the file, then run again") from error
        return self._data[path]

    def functions(self, path: Path) -> tuple[SourceFunction, ...]:
        """The functions that the module `path` defines at its top level, also those below an `if` or `try`.

        Raises UnsupportedError, like all of these, when `path` is not valid Python.
        """
        return self._ask(_functions_of, path)

    def dropdowns(self, path: Path) -> tuple[Dropdown, ...]:
        """The dropdowns anywhere in the module `path`."""
        return self._ask(_dropdowns_of, path)

    def names(self, path: Path) -> Names:
        """The names anywhere in the module `path`."""
        return self._ask(_names_of, path)

    def _ask(self, question: Callable[[bytes], Answer], path: Path) -> Answer:
        try:
            return question(self.data(path))
        except (SyntaxError, ValueError) as error:
            if has_markers(self.data(path)):
                raise ConflictError(
                    f"{path} contains merge conflict markers; nothing was changed. Resolve them, or "
                    "restore the file, then run again"
                ) from error
            raise UnsupportedError(
                f"{path} does not parse ({error}), so kohya_ext cannot tell what it defines; "
                "nothing was changed. Restore the file, then run again"
            ) from error

    def holding(self, folder: Path, pattern: str, words: tuple[str, ...]) -> list[Path]:
        """The files of `pattern` below `folder` that hold one of `words` anywhere: only those are worth parsing."""
        needles = [word.encode() for word in words]
        files = sorted(path for path in folder.glob(pattern) if path.is_file())
        return [path for path in files if any(needle in self.data(path) for needle in needles)]


# Answers are remembered by content: an installer plans more than once, and parsing is what takes its time.


@functools.lru_cache(maxsize=128)
def _functions_of(data: bytes) -> tuple[SourceFunction, ...]:
    return tuple(_functions(parse(data).body))


@functools.lru_cache(maxsize=128)
def _dropdowns_of(data: bytes) -> tuple[Dropdown, ...]:
    calls = (node for node in ast.walk(parse(data)) if isinstance(node, ast.Call))
    return tuple(dropdown for dropdown in map(_dropdown, calls) if dropdown is not None)


@functools.lru_cache(maxsize=128)
def _names_of(data: bytes) -> Names:
    nodes = list(ast.walk(parse(data)))
    return Names(
        classes=frozenset(node.name for node in nodes if isinstance(node, ast.ClassDef)),
        strings=frozenset(n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)),
        attributes=frozenset(node.attr for node in nodes if isinstance(node, ast.Attribute)),
    )


def _functions(body: list[ast.stmt]) -> Iterator[SourceFunction]:
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            given = statement.args
            parameters = frozenset(a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs))
            yield SourceFunction(parameters, _referred(statement), statement.name, statement.lineno)
        elif isinstance(statement, ast.If | ast.Try | ast.With):
            for branch in ("body", "orelse", "finalbody"):
                yield from _functions(getattr(statement, branch, []))
            for handler in getattr(statement, "handlers", []):
                yield from _functions(handler.body)


def _referred(function: ast.FunctionDef | ast.AsyncFunctionDef) -> frozenset[str]:
    nodes = [node for statement in function.body for node in ast.walk(statement)]
    return frozenset(
        node.id if isinstance(node, ast.Name) else node.attr
        for node in nodes
        if isinstance(node, ast.Name | ast.Attribute)
    )


def _dropdown(node: ast.Call) -> Dropdown | None:
    if not isinstance(node.func, ast.Attribute | ast.Name):
        return None
    name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    label, choices = keywords.get("label"), keywords.get("choices")
    if name != "Dropdown" or not isinstance(label, ast.Constant) or not isinstance(choices, ast.List | ast.Tuple):
        return None
    constants = tuple(entry.value for entry in choices.elts if isinstance(entry, ast.Constant))
    return Dropdown(label.value, constants, node.lineno)
