"""The fields of a tab of the second GUI, read from its source as text.

Each tab has one table, and a row of it is one call with everything about a field: the argument of the training script
that it is, its component, its default, the model families that have it. What the second GUI makes of the values, it
makes in functions of its own, which are followed as text, too.
"""

from __future__ import annotations

import ast
import posixpath
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kohya_ext.presets.schema import Field, Tab
from kohya_ext.pysource.arguments import function_in
from kohya_ext.pysource.interpreter import Interpreter
from kohya_ext.pysource.sources import Sources, parse
from kohya_ext.pysource.values import (
    External,
    Function,
    Module,
    Returned,
    Scope,
    Signal,
    Value,
    World,
    known,
    plain,
)
from kohya_ext.spec.optimizers import NAMES
from kohya_ext.spec.second_gui import FAMILY, OPTIMIZER, PACKAGE, ROW_CLASS, TRAINING_TYPES

COMPONENTS = {"TEXTBOX": "Textbox", "NUMBER": "Number", "CHECKBOX": "Checkbox", "DROPDOWN": "Dropdown",
              "SLIDER": "Slider", "FILE": "Textbox", "FOLDER": "Textbox"}  # fmt: skip
TYPES = {"builtins.bool": bool, "builtins.int": int, "builtins.float": float, "builtins.str": str,
         "builtins.list": list, "builtins.tuple": list, "builtins.dict": dict}  # fmt: skip
SCRIPTS = "ARCHITECTURE_SCRIPTS"
TYPED = "CURATED_ALLOW_CUSTOM"  # lists that take other values than they offer


@dataclass(frozen=True)
class FieldRow:
    """One field. families: those of models that have it, None for all. gui_only: no training gets it.

    kept: a training gets it though it is empty. reading, writing: the functions between file and field, None where
    the value is the same in both.
    """

    field: Field
    families: tuple[str, ...] | None
    gui_only: bool
    kept: bool
    reading: Function | None
    writing: Function | None

    def belongs_to(self, family: str) -> bool:
        """Whether the family of models has the field."""
        return self.families is None or family in self.families


@dataclass(frozen=True)
class Table:
    """One tab. rows: by name, in the GUI's order. scripts: family of models -> training script."""

    tab: Tab
    rows: Mapping[str, FieldRow]
    scripts: Mapping[str, str]
    interpreter: Interpreter

    @property
    def family(self) -> str:
        """The family of models that the tab shows at first."""
        row = self.rows.get(FAMILY)
        return str(row.field.default) if row is not None else next(iter(self.scripts))

    def family_of(self, script: str) -> str:
        """The first family that a script is for; that of the tab where it is for none."""
        return next((family for family, name in self.scripts.items() if name == script), self.family)


def read_table(sources: Sources, tab: Tab, *, patched: bool = False) -> Table | None:
    """The table of a tab; None where there is no second GUI with such a tab, or its source cannot be followed.

    patched: whether kohya_ext is installed in the checkout, so that its optimizers are offered.
    """
    kind = TRAINING_TYPES[tab]
    interpreter = Interpreter(sources, World(calls=dict(_CALLS), complete=True))
    try:
        typed = _literal(sources, f"{PACKAGE}/layout_map.py", TYPED) or ()
        rows: dict[str, FieldRow] = {}
        for path in (f"tabs/{kind}_fields.py", "accelerate_launch_fields.py", f"tabs/{kind}_fields_generated.py"):
            for row in _rows(interpreter, sources, f"{PACKAGE}/{path}", typed, patched):
                rows.setdefault(row.field.key, row)
        scripts = _literal(sources, f"{PACKAGE}/tabs/{kind}_tab.py", SCRIPTS)
    except (Signal, SyntaxError, ValueError, RecursionError):
        return None
    if not rows or not isinstance(scripts, dict):
        return None
    return Table(tab, rows, {str(key): str(value) for key, value in scripts.items()}, interpreter)


def _rows(interpreter: Interpreter, sources: Sources, path: str, typed: Any, patched: bool) -> Iterator[FieldRow]:
    text = sources.read(path)
    module = interpreter.module(path) if text is not None else None
    if text is None or module is None:
        return
    scope = Scope(module)
    for node in ast.walk(parse(text)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id != ROW_CLASS:
            continue
        words = {word.arg: word.value for word in node.keywords if word.arg is not None}
        widget = words.get("widget")
        component = COMPONENTS.get(widget.attr) if isinstance(widget, ast.Attribute) else None
        given = {name: plain(interpreter.value(value, scope)) for name, value in words.items() if name != "widget"}
        name = given.get("name")
        if isinstance(name, str):
            yield _row(name, component, given, f"{path}:{node.lineno}", typed, patched)


def _row(name: str, component: str | None, given: Mapping[str, Any], place: str, typed: Any, patched: bool) -> FieldRow:
    choices = given.get("choices")
    offered = tuple(choices) if isinstance(choices, list) and known(choices) else None
    unsure = tuple(one for one in ("choices", "default") if one in given and not known(given[one]))
    if name == OPTIMIZER and offered and patched:
        offered = (*offered, *(one for one in NAMES if one not in offered))
    default = given.get("default")
    slider = component == "Slider"
    field = Field(
        name,
        component,
        choices=offered,
        minimum=0 if slider else None,
        maximum=1 if slider else None,
        custom=name in typed,
        default=default if known(default) else None,
        inexact=unsure,
        label=str(given.get("label") or name),
        place=place,
        source=PACKAGE,
    )
    families = given.get("archs")
    return FieldRow(
        field,
        tuple(map(str, families)) if isinstance(families, (list, tuple)) else None,
        gui_only=given.get("gui_only") is True,
        kept=given.get("keep_if_falsy") is True,
        reading=_function(given.get("from_toml")),
        writing=_function(given.get("to_toml")),
    )


def _function(value: Any) -> Function | None:
    return value if isinstance(value, Function) else None


def _literal(sources: Sources, path: str, name: str) -> Any:
    """What a module assigns to a name at its top, a set within `frozenset` too; None where that is not a literal."""
    text = sources.read(path)
    for node in parse(text).body if text is not None else ():
        target = (
            node.targets[0]
            if isinstance(node, ast.Assign)
            else node.target
            if isinstance(node, ast.AnnAssign)
            else None
        )
        if isinstance(target, ast.Name) and target.id == name and isinstance(node, (ast.Assign, ast.AnnAssign)):
            value = node.value
            if isinstance(value, ast.Call) and value.args:
                value = value.args[0]
            return ast.literal_eval(value) if value is not None else None
    return None


def called(interpreter: Interpreter, function: Function, *arguments: Value) -> Value:
    """What a function of the second GUI gives. Raises Signal where that cannot be told."""
    assert isinstance(function.node, ast.FunctionDef)
    scope = Scope(function.scope.module, outer=function.scope)
    names = [parameter.arg for parameter in function.node.args.args]
    scope.names.update(zip(names, arguments, strict=False))
    try:
        interpreter.run_block(function.node.body, scope)
    except Returned as returned:
        return returned.value
    return None


def function_of(table: Table, path: str, name: str) -> Function | None:
    """A function of one module of the second GUI, by its path there; None where there is none."""
    module = table.interpreter.module(f"{PACKAGE}/{path}")
    return _function(module.names.get(name)) if module is not None else None


def lone_function(sources: Sources, path: str, name: str, *modules: str) -> Function | None:
    """A function out of a module that is not read otherwise. modules: those of Python's that it uses."""
    node = function_in(sources.read(f"{PACKAGE}/{path}") or "", name)
    if node is None:
        return None
    module = Module(f"{PACKAGE}/{path}", names={one: External(one) for one in modules})
    return Function(node, Scope(module))


def _is_instance(given: list[Any], _: Mapping[str, Any]) -> Any:
    value, kinds = given
    names = [one.name for one in (kinds if isinstance(kinds, list) else [kinds]) if isinstance(one, External)]
    return isinstance(value, tuple(TYPES[name] for name in names))


# As if no folder existed: what the GUI counts there is not in a file of settings.
_CALLS: dict[str, Any] = {
    "builtins.isinstance": _is_instance,
    "os.path.isdir": lambda *_: False,
    "os.path.join": lambda given, _: posixpath.join(*given),
    "shlex.quote": lambda given, _: shlex.quote(given[0]),
    "create_prompt_file": lambda given, _: posixpath.join(given[1], "prompt.txt"),
    "class_sample_images.create_prompt_file": lambda given, _: posixpath.join(given[1], "prompt.txt"),
    "kohya_gui.class_sample_images.create_prompt_file": lambda given, _: posixpath.join(given[1], "prompt.txt"),
    "builtins.round": lambda given, _: round(*given),
}
