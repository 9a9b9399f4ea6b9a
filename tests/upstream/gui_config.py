"""Builds tabs of a real GUI with its own gradio and prints what the browser would get.

`python gui_config.py TREE FAULT TAB...`: what is ours is printed apart, the rest is numbered anew, so two GUIs can be
compared. FAULT: "" or functions of `kohya_ext.runtime` that shall fail, as MODULE.FUNCTION with commas between.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
import time
from typing import Any

OURS = "EMA (kohya_ext)"
SCRIPTS = ("kohyaExtEma", "=> [new Map(")
PRESETS = "Presets"
OPTIMIZER = ("AdaCoor", ["AdaCoor", "AdaCoor"])


def build(tree: str, fault: str, tabs: list[str]) -> dict[str, Any]:
    os.chdir(tree)
    sys.path[:0] = [tree, os.path.join(tree, "sd-scripts")]  # noqa: PTH118
    sys.argv = ["kohya_gui.py", "--headless"]
    gradio = importlib.import_module("gradio")
    package = "kohya_gui." if os.path.isfile("kohya_gui/finetune_gui.py") else ""  # noqa: PTH113
    for one in filter(None, fault.split(",")):
        module, _, name = one.partition(".")
        setattr(importlib.import_module(f"kohya_ext.runtime.{module}"), name, lambda *_, **__: 1 / 0)
    started = time.perf_counter()
    with gradio.Blocks() as demo:
        for tab in tabs:
            module, _, name = tab.partition(":")
            builder = getattr(importlib.import_module(package + module), name)
            given: dict[str, Any] = {"headless": True}
            if "config" in inspect.signature(builder).parameters:
                given["config"] = importlib.import_module("kohya_gui.class_gui_config").KohyaSSGUIConfig()
            builder(**given)
    seconds = time.perf_counter() - started
    return {**compared(demo.get_config_file()), "seconds": seconds}


def compared(config: dict[str, Any]) -> dict[str, Any]:
    components = {one["id"]: one for one in config["components"]}
    events = config["dependencies"]
    theirs = [one for one in events if not any(script in str(one.get("js")) for script in SCRIPTS)]
    notes = {one["outputs"][0] for one in events if SCRIPTS[1] in str(one.get("js"))}
    ours: set[int] = set()
    layout = without_ours(config["layout"], components, ours, notes)
    kept = [one for one in components if one not in ours]
    numbers = {one: number for number, one in enumerate(kept)}
    return {
        "layout": renumbered(layout, numbers),
        "components": [comparable(components[one]) for one in kept],
        "events": [event(one, numbers) for one in theirs],
        "our_components": [components[one]["props"].get("label") for one in components if one in ours],
        "our_events": len(events) - len(theirs),
        "our_backend": [one["id"] for one in events if one not in theirs and one["backend_fn"]],
    }


def without_ours(
    node: dict[str, Any], components: dict[int, Any], ours: set[int], notes: set[int], inside: bool = False
) -> Any:
    children = []
    for child in node.get("children") or []:
        labelled = components.get(child["id"], {}).get("props", {}).get("label") == OURS
        mine = inside or labelled or child["id"] in notes
        if mine:
            ours.add(child["id"])
        kept = without_ours(child, components, ours, notes, mine)
        if not mine:
            children.append(kept)
    return {"id": node["id"], "children": children}


def renumbered(node: dict[str, Any], numbers: dict[int, int]) -> Any:
    return [numbers.get(node["id"], -1), [renumbered(child, numbers) for child in node["children"]]]


def comparable(component: dict[str, Any]) -> Any:
    """Without our entry in the list of optimizers, and with the list of presets in one order."""
    props = json.loads(json.dumps(component["props"], default=str))
    if props.get("choices"):
        props["choices"] = [one for one in props["choices"] if one not in OPTIMIZER]
        if props.get("label") == PRESETS:
            props["choices"].sort()
    return [component["type"], props]


def event(one: dict[str, Any], numbers: dict[int, int]) -> Any:
    """An event with its components numbered anew; KeyError where one of ours is among them."""
    targets = [target if isinstance(target, list) else [target, one.get("trigger")] for target in one["targets"]]
    kept = ("api_name", "js", "backend_fn", "queue", "show_progress", "batch", "trigger_mode")
    return [
        [[numbers.get(target, -1), name] for target, name in targets],
        [numbers[each] for each in one["inputs"]],
        [numbers[each] for each in one["outputs"]],
        {key: one.get(key) for key in kept},
    ]


if __name__ == "__main__":
    out = os.dup(1)
    os.dup2(2, 1)  # whatever the GUI prints
    os.write(out, json.dumps(build(sys.argv[1], sys.argv[2], sys.argv[3:])).encode())
    os._exit(0)
