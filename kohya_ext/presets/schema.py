"""The fields of the installed GUI's tabs, read from its source as text.

A tab's `open_configuration` takes one parameter a preset key, in the order of the components that it fills; which these
are is defined by the wiring of the tab's Presets list (or of its "load config" button). Evaluating the tab's builder as
text gives the components, zipping both gives the schema.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from kohya_ext.pysource.arguments import function_in
from kohya_ext.pysource.gui_files import FOLLOWED, listings, read_config
from kohya_ext.pysource.interpreter import Interpreter
from kohya_ext.pysource.sources import FolderSources, Sources
from kohya_ext.pysource.values import (
    Component,
    Config,
    Event,
    Function,
    LoopEnded,
    NextRound,
    Returned,
    Scope,
    Setting,
    StandIn,
    Value,
    World,
    known,
    plain,
)
from kohya_ext.spec.hooks import OPTIMIZER_LABEL, OPTIMIZER_LANDMARK
from kohya_ext.spec.optimizers import NAMES

Tab = Literal["finetune", "lora", "dreambooth", "ti"]

LOADER = "open_configuration"
PRESETS_LIST = "training_preset"
LOAD_BUTTONS = ("button_load_config", "button_open_config")
NOT_KEYS = ("ask_for_file", "apply_preset", "file_path")
REGISTRY = "FIELD_REGISTRY"

# Tab -> file of its module, function that builds it.
BUILDERS: dict[Tab, tuple[str, str]] = {
    "finetune": ("finetune_gui.py", "finetune_tab"),
    "lora": ("lora_gui.py", "lora_tab"),
    "dreambooth": ("dreambooth_gui.py", "dreambooth_tab"),
    "ti": ("textual_inversion_gui.py", "ti_tab"),
}
TABS: tuple[Tab, ...] = tuple(BUILDERS)

# Our names for a component's attributes, and gradio's.
ATTRIBUTES = {
    "choices": "choices",
    "minimum": "minimum",
    "maximum": "maximum",
    "step": "step",
    "precision": "precision",
    "custom": "allow_custom_value",
    "default": "value",
}


@dataclass(frozen=True)
class Field:
    """One key of a tab's presets and the component that it fills.

    component: gradio's class, None where it could not be found out. choices: what a Dropdown or Radio offers.
    custom: whether other values may be typed. default: what the GUI shows at first.
    inexact: attributes whose value only the running GUI knows. settings: attribute -> key of `config.toml` that may
    override it. wired_to: the key whose component this one wrongly fills in this release. label: what the GUI calls it.
    place: file and line. source: who adds the field.
    """

    key: str
    component: str | None
    choices: tuple[Any, ...] | None = None
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    precision: int | None = None
    custom: bool = False
    default: Any = None
    inexact: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    wired_to: str | None = None
    label: str = ""
    place: str = ""
    source: str = "kohya_ss"

    @property
    def exact(self) -> bool:
        """Whether everything about the field is known."""
        return self.component is not None and not self.inexact

    def as_json(self) -> dict[str, Any]:
        """The field as `presets schema --json` prints it."""
        return {
            "component": self.component,
            "choices": None if self.choices is None else list(self.choices),
            "minimum": self.minimum,
            "maximum": self.maximum,
            "step": self.step,
            "precision": self.precision,
            "custom": self.custom,
            "default": self.default,
            "exact": self.exact,
            "inexact": list(self.inexact),
            "config_toml": dict(self.settings),
            "wired_to": self.wired_to,
            "source": self.source,
        }


@dataclass(frozen=True)
class Schema:
    """The fields of one tab, in the GUI's order. presets_list: whether the tab has a Presets list."""

    tab: Tab
    file: str
    fields: Mapping[str, Field]
    presets_list: bool
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The fields by key, as `presets schema --json` prints them."""
        return {key: one.as_json() for key, one in self.fields.items()}


def read_schema(sources: Sources, tab: Tab, *, patched: bool = False) -> Schema | None:
    """The schema of a tab; None where the checkout has no such tab.

    patched: whether kohya_ext is installed in the checkout, so that its additions (the optimizer's name) count.
    Limits that are this machine's number of cores are taken from it: it is the machine that the GUI runs on. So are
    lists of what is in the checkout's folders. Values of the user's config.toml stand in place of the release's.
    A tab whose wiring cannot be followed gives its keys without components, and a note that says so.
    """
    interpreter = Interpreter(sources, _world(sources))
    config, problem = read_config(sources)
    file, builder_name = BUILDERS[tab]
    path = interpreter.find(file, f"def {LOADER}")
    keys = _keys(sources.read(path)) if path is not None else None
    if path is None or keys is None:
        return None
    notes: list[str] = [problem] if problem else []
    components: list[Value] = []
    registry: list[str] = []
    try:
        module = interpreter.module(path)
        builder = module.names.get(builder_name) if module is not None else None
        if isinstance(builder, Function) and isinstance(builder.node, ast.FunctionDef):
            scope = _build(interpreter, builder, config)
            components = _outputs(interpreter.events)
            registry = _registry_names(scope)
    except Exception:  # whatever is in the source, it must not end the command
        notes.append(f"{path} is unlike any release's; only its keys could be read")
        components = []
    if not components:
        notes.append(f"the wiring of {LOADER} in {path} could not be followed: keys only")
    fields = {}
    for index, key in enumerate(keys):
        component = components[index] if index < len(components) else None
        one = _field(key, component)
        fields[key] = replace(one, wired_to=_wrong_wire(key, component, keys, registry, index))
    schema = Schema(tab, path, fields, PRESETS_LIST in keys, tuple(notes))
    return offering_ours(schema) if patched else schema


def _keys(text: str | None) -> list[str] | None:
    """The keys that a tab's loader takes, None where it has none that could be read."""
    loader = function_in(text or "", LOADER)
    return [parameter.arg for parameter in loader.args.args if parameter.arg not in NOT_KEYS] if loader else None


def _world(sources: Sources) -> World:
    """What the machine that the GUI runs on answers: its cores; from files on disk also the checkout's folders."""
    calls: dict[str, StandIn] = {"os.cpu_count": lambda *_: os.cpu_count()}
    if not isinstance(sources, FolderSources):
        return World(calls=calls)
    root = os.path.abspath(sources.root)  # noqa: PTH100 - the GUI's own way, symlinks stay
    return World({"scriptdir": root}, calls={**calls, **listings(sources.root)}, followed=FOLLOWED)


def _build(interpreter: Interpreter, builder: Function, config: Mapping[str, Any]) -> Scope:
    """Evaluates the tab's builder as a GUI with a screen would call it; gives the builder's names."""
    assert isinstance(builder.node, ast.FunctionDef)
    scope = Scope(builder.scope.module)
    for parameter in builder.node.args.args:
        scope.names[parameter.arg] = Config(config) if parameter.arg == "config" else False
    with suppress(Returned, NextRound, LoopEnded):
        interpreter.run_block(builder.node.body, scope)
    return scope


def _outputs(events: list[Event]) -> list[Value]:
    """The components that loading a preset fills, in the order of the keys; the first output is the file's name."""

    def names(event: Event) -> set[str]:
        return {name for _, name in event.trigger.names}

    chosen = [
        event for event in events if PRESETS_LIST in names(event) and event.method in ("input", "change", "select")
    ]
    chosen += [event for event in events if names(event) & set(LOAD_BUTTONS) and event.method == "click"]
    wired = [event.outputs[1:] for event in chosen if len(event.outputs) > 20]
    return wired[0] if wired else []


def _registry_names(scope: Scope) -> list[str]:
    """The key of each component as newer releases name it in their registry."""
    registry = plain(scope.names.get(REGISTRY))
    if not isinstance(registry, list):
        return []
    aliases: dict[Any, Any] = {}
    for name, value in scope.names.items():
        if "ALIASES" in name and isinstance(value, dict):
            aliases.update(value)
    names = [pair[0] for pair in registry if isinstance(pair, list) and len(pair) == 2]
    return [aliases.get(name, name) for name in names]


def _field(key: str, component: Value) -> Field:
    if not isinstance(component, Component):
        return Field(key, None)
    values: dict[str, Any] = {}
    settings: dict[str, str] = {}
    inexact: list[str] = []
    for ours, theirs in ATTRIBUTES.items():
        if theirs not in component.arguments:
            if not component.certain:
                inexact.append(ours)
            continue
        value = component.arguments[theirs]
        if isinstance(value, Setting):
            settings[ours] = value.key
        if not known(value) or not component.certain:
            inexact.append(ours)
        values[ours] = _choices(value) if ours == "choices" else plain(value) if known(value) else None
    return Field(
        key,
        component.kind,
        choices=values.get("choices"),
        minimum=_number(values.get("minimum")),
        maximum=_number(values.get("maximum")),
        step=_number(values.get("step")),
        precision=values.get("precision"),
        custom=bool(values.get("custom")),
        default=values.get("default"),
        inexact=tuple(inexact),
        settings=settings,
        label=_label(component.arguments.get("label", "")),
        place=component.place,
    )


def _label(value: Value) -> str:
    return str(plain(value)) if known(value) else ""


def _choices(value: Value) -> tuple[Any, ...]:
    """What is offered, as far as it is known; of a (label, value) pair the value."""
    items = plain(value)
    offered = [plain(item) for item in items if known(item)] if isinstance(items, list) else []
    return tuple(item[1] if isinstance(item, list) and len(item) == 2 else item for item in offered)


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _wrong_wire(key: str, component: Value, keys: list[str], registry: list[str], index: int) -> str | None:
    """The key whose component `key` fills by mistake, None where the wiring is right.

    Attributes of the components of one model family are named without its prefix: `flux1_clip_l` is `clip_l` of
    `flux1Training`.
    """
    if registry and index < len(registry):
        return None if registry[index] == key else registry[index]
    if not isinstance(component, Component):
        return None
    for owner, name in component.names:
        if name == key or (key.endswith(f"_{name}") and owner.lower().startswith(key[: -len(name) - 1].lower())):
            return None
    return next((name for _, name in component.names if name in keys), None)


def offering_ours(schema: Schema) -> Schema:
    """The schema as it is once our hooks are in the GUI: the optimizer's list offers ours too."""
    return replace(schema, fields={key: _with_hooks(one) for key, one in schema.fields.items()})


def _with_hooks(one: Field) -> Field:
    if one.label != OPTIMIZER_LABEL or one.choices is None:
        return one
    new = tuple(name for name in NAMES if name not in one.choices)
    if OPTIMIZER_LANDMARK not in one.choices or not new:
        return one
    return replace(one, choices=(*one.choices, *new), source="kohya_ss, kohya_ext")
