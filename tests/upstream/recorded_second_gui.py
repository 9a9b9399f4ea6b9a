"""Runs in an environment of the second GUI: builds one tab and tells what is on it and what it makes of files.

recorded_second_gui.py TREE TAB FAULT FILE.toml...   prints one JSON object. FAULT: functions of ours to break.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

KINDS = {"finetune": "finetune", "lora": "lora", "dreambooth": "dreambooth", "ti": "textual_inversion"}


def broken(*_: Any, **__: Any) -> Any:
    raise RuntimeError("broken for the test")


def main(tree: str, tab: str, fault: str, *files: str) -> dict[str, Any]:
    os.chdir(tree)
    sys.path.insert(0, tree)
    import gradio  # type: ignore[import-not-found,unused-ignore]

    importlib.import_module("kohya_gui.class_gui_config")
    for name in fault.split():
        setattr(importlib.import_module("kohya_ext.runtime.second_gui"), name, broken)
    kind = KINDS[tab]
    config_io = importlib.import_module("kohya_gui_v2.config_io")
    module = importlib.import_module(f"kohya_gui_v2.tabs.{kind}_tab")
    legacy = importlib.import_module("kohya_gui_v2.legacy_import")
    with gradio.Blocks() as page:
        _, names, components = getattr(module, f"{kind}_tab")(headless=True, config={})
    table = legacy.REGISTRIES[kind]
    made = [
        [type(one).__name__, one.elem_id, getattr(one, "label", None), getattr(one, "choices", None), str(one.value)]
        for one in page.blocks.values()
        if hasattr(one, "value")
    ]
    defaults = {spec.name: spec.default for spec in table}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "saved.toml"
        config_io.save_config(table, {**defaults, "output_name": "mine"}, str(file))
        saved = file.read_text()
    trained = {}
    for name in files:
        values = config_io.load_config(table, name)
        family = values.get("architecture", "")
        sent = {one: as_sent(component, values[one]) for one, component in zip(names, components, strict=True)}
        sent["architecture"] = family
        sent.update(module.derive(sent, family))
        keeps = kind in ("dreambooth", "finetune")
        run = config_io.build_run_config(table, sent, arch_key=family, training_type=kind, zero_survives_false=keeps)
        trained[name] = {key: value for key, value in run.items() if value is not None}
    return {"made": made, "saved": saved, "trained": trained, "names": names}


def as_sent(component: Any, value: Any) -> Any:
    """A value as the page shows it and the browser sends it back."""
    shown = component.postprocess(value)
    return component.preprocess(shown)


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
