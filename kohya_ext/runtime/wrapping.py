"""Which of Kohya's functions is wrapped by what, and the import hook that does it. Imports no torch.

A finder in front of `sys.meta_path` answers for `library.*`, `kohya_gui.*` and `kohya_gui_v2.*` only. It asks the
finders behind it and replaces `exec_module` of the one loader it gets, so that source, path, caching and `inspect` work
as without us. After a module of Kohya has run, its functions are wrapped.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from kohya_ext.runtime import accelerators, checkpoints, gui, legacy, optimizers, options, sampling, second_gui
from kohya_ext.runtime.guard import unwrapped_hooks, wrapped
from kohya_ext.runtime.run import not_hooked, run
from kohya_ext.spec.hooks import GUI_PACKAGES, TRAINING_PACKAGE
from kohya_ext.spec.second_gui import PACKAGE as SECOND_GUI

# key of the hook -> the function that gets Kohya's own as its first argument
WRAPPERS: dict[str, Callable[..., Any]] = {
    "arguments": options.add_optimizer_arguments,
    "optimizer": optimizers.get_optimizer,
    "accelerator": accelerators.prepare_accelerator,
    "save_during": checkpoints.save_during_training,
    "save_at_end": checkpoints.save_at_end,
    "sample": sampling.sample_images,
    "fused_backward": optimizers.patch_fused_backward,
}

# Hooks that are called when weights have been trained, which must not be lost for a fault of ours.
DURING_TRAINING = ("save_during", "save_at_end", "sample")


def wrap_module(namespace: dict[str, Any]) -> None:
    """Wrap every hook that the module with these globals defines itself; a second call changes nothing."""
    name = namespace.get("__name__", "")
    package = name.partition(".")[0]
    if package in GUI_PACKAGES:
        gui.offer_ours(namespace)
    if package == SECOND_GUI:
        second_gui.offer_ours(namespace)
    if package != TRAINING_PACKAGE:
        return
    try:
        legacy.look_at(namespace)
        for key, function in unwrapped_hooks(namespace):
            namespace[function] = wrapped(namespace[function], WRAPPERS[key], may_stop=key not in DURING_TRAINING)
    except Exception as error:
        run.faults.append(f"{name}: {type(error).__name__}: {error}")
        raise


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
    finder = next((finder for finder in sys.meta_path if isinstance(finder, _Finder)), None)
    if finder is None:
        finder = _Finder()
        sys.meta_path.insert(0, finder)
    top = package.partition(".")[0]
    finder.packages.add(top)
    if top in GUI_PACKAGES:  # the second GUI takes modules from the first one's package before any of its own
        finder.packages.add(SECOND_GUI)
