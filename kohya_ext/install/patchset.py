"""Patch sets: what the installer changes in a checkout, read from `patches/*.toml`."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kohya_ext.checkout.checkout import Checkout
from kohya_ext.checkout.scan import GUI_KEYS, HookRow
from kohya_ext.core import bundle
from kohya_ext.core.about import PACKAGE
from kohya_ext.core.errors import UnsupportedError, UsageError
from kohya_ext.files.atomic import sha256
from kohya_ext.files.regular import toml_loads
from kohya_ext.files.text_encoding import appended, same_text
from kohya_ext.pysource import sources
from kohya_ext.spec.hooks import TRAINING_PACKAGE

FORMAT = 2
BLOCK = "block.py"
CALL = "CALL"  # stands there for what a patch set calls
DEFAULT = "hook"
INLINE = "inline"
MARKER = b"# >>> kohya_ext "
END_MARKER = b"# <<< kohya_ext <<<"
_FIRST_LINE = re.compile(rb"# >>> kohya_ext \d+ >>>")

EMPTY_MODULE = "empty_module"
APPEND_TO_DEFINERS = "append_to_definers"
KINDS = (EMPTY_MODULE, APPEND_TO_DEFINERS)
ROOTS = ("training", "gui")
DEFINES = ("hooks", *GUI_KEYS)


@dataclass(frozen=True)
class Edit:
    """One rule: which files of a checkout get the block. See `patches/hook.toml` for the fields."""

    kind: str
    root: str
    files: str
    defines: str | None = None


@dataclass(frozen=True)
class PatchTarget:
    """One file that a patch set edits, and the rule that led to it."""

    path: Path
    edit: Edit

    def fits(self, data: bytes) -> bool:
        """True when the anchor of the rule matches `data`."""
        return self.edit.kind != EMPTY_MODULE or is_empty_module(data)


@dataclass(frozen=True)
class PatchSet:
    """A set of edits and the block of lines they put in."""

    name: str
    summary: str
    edits: tuple[Edit, ...]
    block: str

    def patched(self, data: bytes) -> bytes:
        """`data` with the block at its end, in the line ends of `data`."""
        return appended(data, self.block)

    def targets(self, checkout: Checkout, hooks: Sequence[HookRow]) -> list[PatchTarget]:
        """The files of `checkout` that this set edits, each once; `hooks` is what `scan` found there.

        Raises UnsupportedError when a file that must be there is missing.
        """
        found: dict[Path, PatchTarget] = {}
        for edit in self.edits:
            for path in _files(edit, checkout, hooks):
                found.setdefault(path, PatchTarget(path, edit))
        return list(found.values())


def names() -> list[str]:
    """The patch sets that ship with this installation."""
    return sorted(path.stem for path in bundle.data_dir("patches").glob("*.toml"))


def load(name: str) -> PatchSet:
    """The patch set `name`. Raises UsageError when there is none, or when its file is wrong."""
    folder = bundle.data_dir("patches")
    path = folder / f"{name}.toml"
    if name not in names():
        raise UsageError(f"there is no patch set {name!r}; there are: {', '.join(names())}")
    return parse(path.read_text(encoding="utf-8"), path, (folder / BLOCK).read_text(encoding="utf-8"))


def parse(text: str, path: Path, lines: str) -> PatchSet:
    """The patch set in `text`, which puts in `lines` with a call of its own; `path` is named in errors.

    Raises UsageError.
    """
    try:
        document = toml_loads(text)
        if document["format"] != FORMAT:
            raise UsageError(f"{path}: format {document['format']!r} is not known, only {FORMAT}")
        edits = tuple(_edit(row, path) for row in document["edit"])
        block = lines.replace(CALL, str(document["block"]["call"])) if edits else lines
        result = PatchSet(str(document["name"]), str(document["summary"]), edits, block)
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: {error!r} is missing or of the wrong kind") from error
    except ValueError as error:  # every TOML reader's error is one
        raise UsageError(f"{path}: {error}") from error
    if not _is_block(block.encode()) or not block.endswith("\n"):
        raise UsageError(f"{path}: the block must begin with {MARKER.decode()!r} and end with {END_MARKER.decode()!r}")
    return result


def is_empty_module(data: bytes) -> bool:
    """True when `data` is a Python module without a statement, a docstring aside."""
    try:
        body = sources.parse(data).body
    except SyntaxError:
        return False
    return not body or (
        len(body) == 1
        and isinstance(body[0], ast.Expr)
        and isinstance(body[0].value, ast.Constant)
        and isinstance(body[0].value.value, str)
    )


def unpatched(data: bytes, *, sha256_before: str | None = None, head: bytes | None = None) -> bytes | None:
    """What `data` was before one of our blocks was put at its end, None when there is no whole block of ours there.

    A block of any of our versions counts, of later ones too: it is known by its marks and by what it does, not by its
    words. The newline before it may be ours; `sha256_before` or `head`, the version git has, decide.
    """
    start = data.rfind(MARKER)
    if start < 0 or not _is_block(data[start:]):
        return None
    before = data[:start]
    shorter = before[:-2] if before.endswith(b"\r\n") else before[:-1] if before.endswith((b"\n", b"\r")) else before
    for guess in (before, shorter):
        if sha256(guess) == sha256_before:
            return guess
    if head is not None and same_text(shorter, head) and not head.endswith((b"\n", b"\r")):
        return shorter
    return before


def _is_block(data: bytes) -> bool:
    """Whether `data` is a block of ours and nothing else: both marks, and Python between them that imports us."""
    lines = data.splitlines()
    if not lines or lines[-1] != END_MARKER or not _FIRST_LINE.match(lines[0]):
        return False
    try:
        body = list(ast.walk(ast.parse(b"\n".join(lines[1:-1]))))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    modules = [alias.name for node in body if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module or "" for node in body if isinstance(node, ast.ImportFrom)]
    modules += [node.value for node in body if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return any(module.split(".")[0] == PACKAGE for module in modules)


def _edit(row: dict[str, Any], path: Path) -> Edit:
    edit = Edit(str(row["kind"]), str(row["root"]), str(row["files"]), row.get("defines"))
    known = edit.kind in KINDS and edit.root in ROOTS
    if not known or (edit.kind == APPEND_TO_DEFINERS and edit.defines not in DEFINES):
        raise UsageError(f"{path}: {row} is not an edit kohya_ext knows")
    return edit


def _files(edit: Edit, checkout: Checkout, hooks: Sequence[HookRow]) -> list[Path]:
    if edit.root == "gui" and checkout.gui_package is None:
        return []
    root = checkout.training_root if edit.root == "training" else checkout.root
    pattern = edit.files.format(gui_package=checkout.gui_package or TRAINING_PACKAGE)
    if edit.kind == APPEND_TO_DEFINERS:
        wanted = [row for row in hooks if row.file and (row.key if row.key in GUI_KEYS else "hooks") == edit.defines]
        paths = dict.fromkeys(checkout.root / str(row.file) for row in wanted)
        return [path for path in paths if path.is_relative_to(root) and path.relative_to(root).match(pattern)]
    path = root / pattern
    if not path.is_file():
        raise UnsupportedError(
            f"{path} is missing, so this is an incomplete checkout; nothing was changed. Run: "
            f"git -C '{root}' checkout --ignore-skip-worktree-bits -- '{pattern}'"
        )
    return [path]
