"""The import hook: after a module of Kohya has run, its functions are wrapped.

A finder in front of `sys.meta_path` answers for `library.*` and `kohya_gui.*` only. It asks the finders behind it and
replaces `exec_module` of the one loader it gets, so that source, path, caching and `inspect` work as without us.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from kohya_ext.runtime.report import not_hooked

Wrap = Callable[[dict[str, Any]], None]


class _Finder(importlib.abc.MetaPathFinder):
    """Watches the packages that called `activate`."""

    def __init__(self, wrap: Wrap) -> None:
        self.packages: set[str] = set()
        self._wrap = wrap

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
        loader, wrap = spec.loader, self._wrap
        assert loader is not None
        exec_module = loader.exec_module

        def exec_and_wrap(module: ModuleType) -> None:
            exec_module(module)
            try:
                wrap(vars(module))
            except (Exception, SystemExit) as error:
                not_hooked(module.__name__, error)

        # the loader is this module's own, so an instance attribute reaches nobody else
        loader.exec_module = exec_and_wrap  # type: ignore[method-assign]


def watch(package: str, wrap: Wrap) -> None:
    """Call `wrap` with the globals of each module of `package` that is imported from now on."""
    finder = next((finder for finder in sys.meta_path if isinstance(finder, _Finder)), None)
    if finder is None:
        finder = _Finder(wrap)
        sys.meta_path.insert(0, finder)
    finder.packages.add(package.partition(".")[0])
