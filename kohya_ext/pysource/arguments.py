"""The command-line arguments of a training script, read as text.

A script's `setup_parser` adds some arguments itself and calls `add_..._arguments(parser)` functions of several modules
for the rest. Modules run to seven thousand lines, so single functions are cut out and only these are parsed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from kohya_ext.pysource.sources import Sources, parse

ENTRY = "setup_parser"
MAX_FUNCTIONS = 100
MAX_SOURCE = 1 << 20  # characters of all functions of one script; those of the largest have a tenth of it
MAX_FUNCTION = 1 << 18  # characters of one; the longest has 30,000
MAX_IMPORTS = 1000  # statements of one module; no release has more than a hundred
MAX_IMPORT = 5000  # characters of one that is in brackets

_IMPORT = re.compile(r"^(?:from|import)[ \t][^\n]*", re.MULTILINE)


@dataclass(frozen=True)
class Argument:
    """One argument: its long flag, the attribute it sets, and what argparse is told about it.

    type: the name of the converter ("str" where none is given, "bool" for switches). choices: None where any value
    goes. default: None where there is none or where it is not a literal. required: argparse asks for it before any
    file is read.
    """

    flag: str
    name: str
    type: str = "str"
    choices: tuple[Any, ...] | None = None
    default: Any = None
    nargs: Any = None
    required: bool = False


def arguments_of(sources: Sources, script: str) -> dict[str, Argument]:
    """The arguments of a script at the top of the training code, by attribute name; empty without such a script."""
    found: dict[str, Argument] = {}
    pending = [(script, ENTRY)]
    seen: set[tuple[str, str]] = set()
    imports: dict[str, dict[str, tuple[str, str]]] = {}
    room = MAX_SOURCE
    while pending and len(seen) < MAX_FUNCTIONS and room > 0:
        path, function = pending.pop(0)
        if (path, function) in seen:
            continue
        seen.add((path, function))
        text = sources.read(path)
        if text is None:
            continue
        lines = block(text, function)
        room -= len(lines)
        node = _function(lines) if room > 0 else None
        if path not in imports:
            imports[path] = imported(text, sources)
        if node is None:  # a module that only passes on what another one defines
            target = imports[path].get(function)
            pending += [(target[0], target[1])] if target is not None and target[1] else []
            continue
        for argument in _added(node):
            found.setdefault(argument.name, argument)
        pending += list(_called(node, path, imports[path]))
    return found


def flags_of(sources: Sources, script: str) -> frozenset[str]:
    """The long flags that a script takes."""
    return frozenset(argument.flag for argument in arguments_of(sources, script).values())


def function_in(text: str, name: str) -> ast.FunctionDef | None:
    """The top-level function `name`, cut out of its module and parsed alone; None where the module has none."""
    return _function(block(text, name))


def block(text: str, name: str, kind: str = "def") -> str:
    """The lines of the top-level function `name` (or of a `class`), "" where there is none."""
    start = re.search(rf"^{kind} {re.escape(name)}\b", text, re.MULTILINE)
    if start is None:
        return ""
    end = re.compile(r"^[A-Za-z@_\"']", re.MULTILINE).search(text, start.end())
    return text[start.start() : end.start() if end else len(text)]


def _function(lines: str) -> ast.FunctionDef | None:
    if len(lines) > MAX_FUNCTION:
        return None
    try:
        node = parse(lines).body[0]
    except (SyntaxError, IndexError):
        return None
    return node if isinstance(node, ast.FunctionDef) else None


def _added(node: ast.FunctionDef) -> Iterator[Argument]:
    for call in ast.walk(node):
        if not (
            isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"
        ):
            continue
        flags = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        long_flags = [flag for flag in flags if flag.startswith("--")]
        if not long_flags:
            continue
        options = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg is not None}
        action = literal(options.get("action"))
        converter = options.get("type")
        type_name = converter.id if isinstance(converter, ast.Name) else "str"
        choices = literal(options.get("choices"))
        name = literal(options.get("dest"))
        yield Argument(
            long_flags[0],
            name if isinstance(name, str) else long_flags[0][2:].replace("-", "_"),
            "bool" if action in ("store_true", "store_false") else type_name,
            tuple(choices) if isinstance(choices, (list, tuple)) else None,
            literal(options.get("default")),
            literal(options.get("nargs")),
            literal(options.get("required")) is True,
        )


def literal(node: ast.expr | None) -> Any:
    """The value of a literal, None for anything else."""
    try:
        return None if node is None else ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, ArithmeticError, MemoryError, RecursionError):
        return None


def _called(node: ast.FunctionDef, path: str, imports: dict[str, tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The functions of other modules that this one hands its parser to."""
    for call in ast.walk(node):
        if not isinstance(call, ast.Call):
            continue
        if isinstance(call.func, ast.Name) and (call.args or call.func.id == ENTRY):
            target = imports.get(call.func.id)
            yield target if target is not None and target[1] else (path, call.func.id)
        elif isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
            target = imports.get(call.func.value.id)
            if target is not None and not target[1]:
                yield target[0], call.func.attr


def imported(text: str, sources: Sources) -> dict[str, tuple[str, str]]:
    """Names that a module imports from its own tree -> file, and the name there ("" for a whole module)."""
    names: dict[str, tuple[str, str]] = {}
    for match in islice(_IMPORT.finditer(text), MAX_IMPORTS):
        try:
            node = parse(_whole_import(text, match)).body[0]
        except (SyntaxError, IndexError):
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name] = (alias.name.replace(".", "/") + ".py", "")
        elif isinstance(node, ast.ImportFrom):
            folder = (node.module or "").replace(".", "/")
            folder = folder if node.level == 0 else "/".join(part for part in ("library", folder) if part)
            for alias in node.names:
                module = f"{folder}/{alias.name}.py"
                whole = not folder.count("/") and sources.read(module) is not None
                names[alias.asname or alias.name] = (module, "") if whole else (f"{folder}.py", alias.name)
    return names


def _whole_import(text: str, match: re.Match[str]) -> str:
    """An import statement, to its closing bracket where it has one."""
    line = match.group()
    if "(" not in line or ")" in line:
        return line.strip()
    end = text.find(")", match.end(), match.end() + MAX_IMPORT)
    return text[match.start() : end + 1] if end >= 0 else ""
