"""The rooms of the package: who may import whom, what needs no torch, and which facts have one home."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import kohya_ext
from kohya_ext.spec.flags import FLAGS
from kohya_ext.spec.hooks import HOOKS

PACKAGE = Path(kohya_ext.__file__).parent

# Room -> the rooms below it. Nothing else may be imported, for types neither. `cli` and `demo` are on top of all.
BELOW: dict[str, set[str]] = {
    "core": set(),
    "spec": set(),
    "files": {"core", "spec"},
    "tensors": {"core", "files"},
    "optim": {"spec", "tensors"},
    "ema": {"files", "tensors"},
    "pysource": {"files"},
    "checkout": {"core", "files", "pysource", "spec"},
    "presets": {"checkout", "core", "files", "pysource", "spec"},
    "install": {"checkout", "core", "files", "presets", "pysource", "spec"},
    "resume": {"core", "spec"},
    "runtime": {"core", "ema", "files", "optim", "resume", "spec", "tensors", "validation"},
    "preflight": {"checkout", "core", "files", "presets", "pysource", "spec", "tensors"},
    "tracing": {"core", "files", "runtime", "spec", "tensors"},
    "dataset": {"core", "files"},
    "basemodel": {"core", "files", "tensors"},
    "lora": {"core", "files", "tensors"},
    "evaluation": {"core", "files", "spec", "tensors"},
    "posthoc": {"core", "ema", "files", "spec", "tensors"},
    "validation": {"files", "spec"},
    "report": {"core", "files", "spec", "tensors", "validation"},
    "card": {"core", "files", "spec", "tensors"},
    "demo": {"checkout", "core", "files", "install", "presets", "spec"},
}
ON_TOP = {"cli"}
# Rooms that never import torch, not even inside a function: they run in any Python, and at once.
WITHOUT_TORCH = {"core", "spec", "files", "pysource", "checkout", "presets", "preflight", "install", "card",
                 "validation", "resume"}  # fmt: skip


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def room(module: str) -> str:
    """The room of a module of ours; "" for the few at the top."""
    name = [*module.split("."), ""][1]
    return name if name and (PACKAGE / name).is_dir() else ""


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports anywhere, ours by their full names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


def ours(path: Path) -> set[str]:
    return {name for name in imported(path) if name in MODULES and name != "kohya_ext"}


@pytest.mark.parametrize("name", sorted(name for name in MODULES if room(name)))
def test_arrows_go_down_only(name: str) -> None:
    here = room(name)
    if here in ON_TOP:
        return
    allowed = BELOW[here] | {here}
    wrong = sorted(other for other in ours(MODULES[name]) if room(other) not in allowed)
    assert not wrong, f"{name} ({here}) imports {wrong}: see BELOW"


def test_every_room_has_a_rule_and_no_two_rooms_see_each_other() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == BELOW.keys() | ON_TOP
    tuple(TopologicalSorter(BELOW).static_order())  # raises CycleError


def test_no_two_files_import_each_other() -> None:
    tuple(TopologicalSorter({name: ours(path) - {name} for name, path in MODULES.items()}).static_order())


@pytest.mark.parametrize("name", sorted(name for name in MODULES if room(name) in WITHOUT_TORCH))
def test_what_needs_no_torch_imports_none(name: str) -> None:
    heavy = {"torch", "accelerate", "diffusers", "transformers", "bitsandbytes", "numpy"}
    assert not heavy & {other.partition(".")[0] for other in imported(MODULES[name])}


def test_names_of_hooks_and_flags_live_in_spec() -> None:
    facts = {name for hook in HOOKS for name in hook.functions} | set(FLAGS)
    found = {
        (name, node.value)
        for name, path in MODULES.items()
        if room(name) not in ("spec", "demo")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in facts
    }
    assert not found


def test_no_file_is_too_long_to_read() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name: lines for name, lines in lengths.items() if lines > 400} == {}


def test_no_class_has_the_name_of_another() -> None:
    homes: dict[str, list[str]] = {}
    for name, path in MODULES.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(name)
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}
