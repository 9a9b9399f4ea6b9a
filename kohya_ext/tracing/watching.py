"""Functions and classes of the installed `library` replaced by name, in whatever module a release keeps them."""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Change = Callable[[Any], Any]  # what a module defines -> what it shall have instead


class _ChangingFinder(importlib.abc.MetaPathFinder):
    def __init__(self, packages: frozenset[str], changes: Mapping[str, Change]) -> None:
        self.packages, self.changes = packages, changes
        self.asking: set[str] = set()  # modules that another finder is being asked for, which may ask us in turn

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in self.packages or fullname in self.asking:
            return None
        self.asking.add(fullname)
        try:
            spec = next(filter(None, (self._ask(finder, fullname, path, target) for finder in sys.meta_path)), None)
        finally:
            self.asking.discard(fullname)
        if spec is not None and spec.loader is not None and hasattr(spec.loader, "exec_module"):
            self._change_after(spec)
        return spec

    def _ask(self, finder: Any, *asked: Any) -> ModuleSpec | None:
        find = getattr(finder, "find_spec", None)
        return None if finder is self or find is None else find(*asked)

    def _change_after(self, spec: ModuleSpec) -> None:
        loader = spec.loader
        assert loader is not None
        execute = loader.exec_module

        def exec_and_change(module: ModuleType) -> None:
            execute(module)
            change_module(vars(module), self.changes)

        loader.exec_module = exec_and_change  # type: ignore[method-assign]


def change_module(namespace: dict[str, Any], changes: Mapping[str, Change]) -> None:
    """Replace what a module itself defines, once; what it has from elsewhere is replaced there."""
    for name, change in changes.items():
        value = namespace.get(name)
        if getattr(value, "__module__", None) == namespace["__name__"] and not hasattr(value, "__preflight__"):
            new = change(value)
            namespace[name] = value if new is None else new
            if new is not None:
                new.__preflight__ = True


def watch(packages: frozenset[str], changes: Mapping[str, Change]) -> None:
    """Apply `changes` to every module of `packages` that is imported from now on.

    Args:
        packages: top-level names, as `library`.
        changes: name of a function or class -> what makes its replacement; None keeps it.
    """
    sys.meta_path.insert(0, _ChangingFinder(packages, changes))
