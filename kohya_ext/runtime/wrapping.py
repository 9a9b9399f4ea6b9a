"""The import hook that wraps Kohya's functions as their modules are loaded. Imports no torch.

A finder in front of `sys.meta_path` answers for `library.*`, `kohya_gui.*` and `kohya_gui_v2.*` only. It asks the
finders behind it and replaces `exec_module` of the one loader it gets, so that source, path, caching and `inspect` work
as without us. After a module of Kohya has run, its functions are wrapped.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from kohya_ext.runtime import gui, second_gui
from kohya_ext.runtime.run import not_hooked
from kohya_ext.spec.hooks import GUI_PACKAGES, TRAINING_PACKAGE
from kohya_ext.spec.second_gui import PACKAGE as SECOND_GUI


def wrap_module(namespace: dict[str, Any]) -> None:
    """Wrap every hook that the module with these globals defines itself; a second call changes nothing."""
    package = namespace.get("__name__", "").partition(".")[0]
    if package in GUI_PACKAGES:
        gui.offer_ours(namespace)
    if package == SECOND_GUI:
        second_gui.offer_ours(namespace)
    if package == TRAINING_PACKAGE:
        _wrappers().wrap_training(namespace)


def _wrappers() -> ModuleType:
    from kohya_ext.runtime import wrappers  # here: the GUI starts without

    return wrappers


class _Finder(importlib.abc.MetaPathFinder):
    """Watches the packages that called `activate`."""

    def __init__(self) -> None:
        self.packages: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in self.packages:
            return None
        spec = self._find_behind(fullname, path, target)
        if spec is not None and spec.loader is not None and hasattr(spec.loader, "exec_module"):
            with contextlib.suppress(AttributeError):  # a loader that takes no attributes: its module stays as it is
                self._wrap_after_exec(spec)
        return spec

    def _find_behind(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                return spec
        return None

    def _wrap_after_exec(self, spec: ModuleSpec) -> None:
        loader = spec.loader
        assert loader is not None
        exec_module = loader.exec_module

        def exec_and_wrap(module: ModuleType) -> None:
            exec_module(module)
            try:
                wrap_module(vars(module))
            except (Exception, SystemExit) as error:
                not_hooked(module.__name__, error)

        # the loader is this module's own, so an instance attribute reaches nobody else
        loader.exec_module = exec_and_wrap  # type: ignore[method-assign]


def watch(package: str) -> None:
    """Wrap what each module of `package` defines that is imported from now on."""
    if package.partition(".")[0] == TRAINING_PACKAGE:
        _wrappers()  # right away: our package may be updated or removed while a run goes on
    finder = next((finder for finder in sys.meta_path if isinstance(finder, _Finder)), None)
    if finder is None:
        finder = _Finder()
        sys.meta_path.insert(0, finder)
    top = package.partition(".")[0]
    finder.packages.add(top)
    if top in GUI_PACKAGES:  # the second GUI takes modules from the first one's package before any of its own
        finder.packages.add(SECOND_GUI)
