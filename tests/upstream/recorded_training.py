"""Calls `train_model` of a tab of a real GUI with everything that would run recorded instead.

Run in a process of its own: `python recorded_training.py TREE TAB < form.json`; prints the commands and the TOML files.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import toml
from recorded_gui import MODULES, Gradio, StandIns
from recorded_gui import keys_of as all_keys

SWITCHES = ("headless", "print_only")
ALIASES = {"generate_caption_database": "create_caption", "generate_image_buckets": "create_buckets"}


def keys_of(module: Any) -> list[str]:
    """The keys that the GUI hands to `train_model`, in their order."""
    return [key for key in all_keys(module) if key != "training_preset"]


def main(tree: str, tab: str, form: dict[str, Any]) -> dict[str, Any]:
    os.chdir(tree)
    sys.path.insert(0, tree)
    gradio = Gradio("gradio")
    gradio.__path__ = []
    sys.modules["gradio"] = gradio
    sys.meta_path.append(StandIns())
    name = MODULES[tab][0]
    package = Path(f"kohya_gui/{name}.py").is_file()
    module: Any = importlib.import_module(f"kohya_gui.{name}" if package else name)
    commands: list[Any] = []

    def record(*args: Any, **kwargs: Any) -> Any:
        commands.append(args[0] if args else kwargs["run_cmd"])
        return mock.MagicMock(returncode=0)

    os.system = record
    subprocess.run = record
    module.executor = SimpleNamespace(execute_command=record, is_running=lambda: False, wait_for_training_to_end=record)
    labels = "print_only.get" in inspect.getsource(module.train_model)
    given: dict[str, Any] = {}
    places = [name for name in inspect.signature(module.train_model).parameters if name not in SWITCHES]
    by_place = dict(zip(places, keys_of(module), strict=False)) if len(places) == len(keys_of(module)) else {}
    for name in inspect.signature(module.train_model).parameters:
        if name in SWITCHES:
            on = name == "headless"
            given[name] = {"label": str(on)} if labels else on
        else:
            key = next((one for one in (name, ALIASES.get(name), by_place.get(name)) if one in form), None)
            given[name] = None if key is None else form[key]
    module.train_model(**given)
    files = {str(path): toml.loads(path.read_text("utf-8")) for path in Path(form["output_dir"]).glob("*.toml")}
    return {"commands": commands, "toml": files}


if __name__ == "__main__":
    out = os.dup(1)
    os.dup2(2, 1)
    text = json.dumps(main(sys.argv[1], sys.argv[2], json.load(sys.stdin)), default=str)
    os.write(out, text.encode())
    os._exit(0)
