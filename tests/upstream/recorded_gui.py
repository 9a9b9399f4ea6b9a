"""Builds one tab of a real GUI on a recording stand-in for gradio and prints what its preset keys are wired to.

Run in a process of its own: `python recorded_gui.py TREE TAB`. Packages that are not installed are stood in for.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import inspect
import json
import logging
import os
import sys
import types
from typing import Any
from unittest import mock

MODULES = {
    "finetune": ("finetune_gui", "finetune_tab"),
    "lora": ("lora_gui", "lora_tab"),
    "dreambooth": ("dreambooth_gui", "dreambooth_tab"),
    "ti": ("textual_inversion_gui", "ti_tab"),
}
POSITIONAL = {
    "Dropdown": ("choices", "value"),
    "Radio": ("choices", "value"),
    "Slider": ("minimum", "maximum", "value", "step"),
    "Number": ("value", "label"),
    "Textbox": ("value",),
    "Checkbox": ("value",),
}
ATTRIBUTES = ("choices", "minimum", "maximum", "step", "precision", "allow_custom_value", "value")
EVENTS: list[tuple[Any, str, Any, Any]] = []


class Recorded:
    """A component that remembers its arguments, what it is wired to, and how many were made before it."""

    made = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.order = Recorded.made
        Recorded.made += 1
        self.kind = type(self).__name__
        self.given = {**dict(zip(POSITIONAL.get(self.kind, ()), args, strict=False)), **kwargs}

    def __enter__(self) -> Recorded:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def wire(*args: Any, **kwargs: Any) -> mock.MagicMock:
            handler = args[0] if args else kwargs.get("fn")
            EVENTS.append((self, name, handler, kwargs.get("outputs", args[2] if len(args) > 2 else None)))
            return mock.MagicMock()

        return wire


class Gradio(types.ModuleType):
    """Every name with a capital is a component class."""

    __version__ = "0"

    def __getattr__(self, name: str) -> Any:
        if name[:1].isupper():
            setattr(self, name, type(name, (Recorded,), {}))
            return self.__dict__[name]
        return mock.MagicMock()


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The last resort of the import system: whatever is not installed is a mock."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] in ("library", "kohya_gui"):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Any:
        module = mock.MagicMock(name=spec.name)
        module.__path__ = []
        module.__spec__ = spec
        if spec.name == "rich.logging":  # logging compares the levels of its handlers
            module.RichHandler = lambda *_, **__: logging.NullHandler()
        return module

    def exec_module(self, module: Any) -> None:
        return None


def keys_of(module: Any) -> list[str]:
    skipped = ("ask_for_file", "apply_preset", "file_path")
    return [name for name in inspect.signature(module.open_configuration).parameters if name not in skipped]


def build(tree: str, tab: str) -> dict[str, Any]:
    os.chdir(tree)
    for name in ("finetune", "lora"):
        os.makedirs(f"presets/{name}", exist_ok=True)  # noqa: PTH103
    sys.path.insert(0, tree)
    gradio = Gradio("gradio")
    gradio.__path__ = []
    sys.modules["gradio"] = gradio
    sys.meta_path.append(StandIns())
    module_name, builder_name = MODULES[tab]
    package = os.path.isfile(f"kohya_gui/{module_name}.py")  # noqa: PTH113
    module = importlib.import_module(f"kohya_gui.{module_name}" if package else module_name)
    builder = getattr(module, builder_name)
    given: dict[str, Any] = {"headless": False}
    if "config" in inspect.signature(builder).parameters:
        given["config"] = {}
        if os.path.isfile("kohya_gui/class_gui_config.py"):  # noqa: PTH113
            given["config"] = importlib.import_module("kohya_gui.class_gui_config").KohyaSSGUIConfig()
    builder(**{name: value for name, value in given.items() if name in inspect.signature(builder).parameters})
    keys = keys_of(module)
    registry = getattr(module, "last_built_field_registry", None)
    if registry:
        components = [component for _, component in registry]
    else:
        wired = [outputs for _, _, handler, outputs in EVENTS if handler is module.open_configuration and outputs]
        components = wired[-1][1:]
    return {key: describe(component) for key, component in zip(keys, components, strict=False)}


def describe(component: Any) -> dict[str, Any]:
    return {
        "component": component.kind,
        "label": component.given.get("label"),
        "order": component.order,
        **{name: component.given[name] for name in ATTRIBUTES if name in component.given},
    }


if __name__ == "__main__":
    out = os.dup(1)
    os.dup2(2, 1)  # whatever the GUI prints
    text = json.dumps(build(sys.argv[1], sys.argv[2]), default=str)
    os.write(out, text.encode())
    os._exit(0)
