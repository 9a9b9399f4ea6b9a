"""Calls: gradio components, the checkout's own functions and classes, a few methods of plain values."""

from __future__ import annotations

import ast

from kohya_ext.pysource.expressions import Expressions
from kohya_ext.pysource.gui_files import setting
from kohya_ext.pysource.machine import MAX_DEPTH, joined_size, replaced_size
from kohya_ext.pysource.values import (
    MOST_SIZE,
    BoundMethod,
    BudgetExceeded,
    ClassValue,
    Component,
    Config,
    Event,
    External,
    Function,
    Instance,
    LoopEnded,
    NextRound,
    Returned,
    Scope,
    Setting,
    Signal,
    Unknown,
    Value,
    plain,
)

# The parameters that are ever given by position, in gradio 3.36 to 6.
POSITIONAL = {
    "Dropdown": ("choices",),
    "Radio": ("choices",),
    "CheckboxGroup": ("choices",),
    "Slider": ("minimum", "maximum", "value", "step"),
    "Number": ("value",),
    "Textbox": ("value",),
    "Checkbox": ("value",),
    "Label": ("value",),
    "Button": ("value",),
}

EVENTS = ("input", "click", "change", "blur", "select", "then", "submit", "release", "load")

CONVERSIONS = {"builtins.int": int, "builtins.float": float, "builtins.str": str, "builtins.bool": bool}

STRING_METHODS = ("strip", "lower", "upper", "replace", "split", "startswith", "endswith", "join")


class Calls(Expressions):
    """Calls of gradio's components, of the checkout's own functions and classes, of a few methods of plain values."""

    def visit_Call(self, node: ast.Call, scope: Scope) -> Value:
        """What a call gives; unknown where nothing of the checkout or of the world stands behind it."""
        function = plain(self.value(node.func, scope))
        if isinstance(function, External):
            return self._call_external(function.name, node, scope)
        if isinstance(function, BoundMethod):
            return self._call_method(function, node, scope)
        if isinstance(function, ClassValue):
            return self._instantiate(function, node, scope)
        if isinstance(function, Function):
            return self._invoke(function, node, scope)
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            self.value(argument, scope)
        return Unknown("call")

    def _arguments(self, node: ast.Call, scope: Scope) -> tuple[list[Value], dict[str, Value], bool]:
        """Positional and named arguments, and whether all of them could be seen."""
        positional: list[Value] = []
        named: dict[str, Value] = {}
        complete = True
        for argument in node.args:
            if isinstance(argument, ast.Starred):
                items = plain(self.value(argument.value, scope))
                complete = complete and isinstance(items, list)
                positional += items if isinstance(items, list) else []
                complete = complete and self.budget.made(len(positional))
                if not complete:
                    del positional[MOST_SIZE:]
            else:
                positional.append(self.value(argument, scope))
        for keyword in node.keywords:
            value = self.value(keyword.value, scope)
            if keyword.arg is not None:
                named[keyword.arg] = value
            elif isinstance(plain(value), dict):
                named.update(plain(value))
            else:
                complete = False
        return positional, named, complete

    def _call_external(self, name: str, node: ast.Call, scope: Scope) -> Value:
        positional, named, complete = self._arguments(node, scope)
        if name in self.world.calls:
            return self._stand_in(name, positional, named)
        if name in ("builtins.locals", "builtins.vars") and not positional:
            return dict(scope.names) if self.budget.made(len(scope.names)) else Unknown("too long")
        package, _, rest = name.partition(".")
        if package == "gradio" and rest[:1].isupper() and "." not in rest:
            for index, value in enumerate(positional):
                names = POSITIONAL.get(rest, ())
                named[names[index] if index < len(names) else f"argument {index}"] = value
            return Component(rest, named, f"{scope.module.path}:{node.lineno}", certain=complete and not self.uncertain)
        if name in CONVERSIONS and len(positional) == 1 and not named:
            return self._converted(name, positional[0])
        if name in ("builtins.list", "builtins.set", "builtins.frozenset", "builtins.tuple") and len(positional) == 1:
            items = plain(positional[0])
            if not isinstance(items, (list, tuple)):
                return [Unknown("list")]
            return list(items) if self.budget.made(len(items)) else Unknown("too long")
        if name == "builtins.getattr" and len(positional) == 3 and isinstance(plain(positional[0]), Config):
            return positional[2]
        if name == "builtins.len" and len(positional) == 1 and self.budget.known(positional[0]):
            return len(plain(positional[0]))
        return Unknown(f"{name}()")

    def _stand_in(self, name: str, positional: list[Value], named: dict[str, Value]) -> Value:
        if not self.budget.small(*positional, *named.values()):
            return Unknown("too long")
        try:
            return self.world.calls[name](
                [plain(value) for value in positional], {key: plain(value) for key, value in named.items()}
            )
        except Signal:
            raise
        except Exception:  # of values that it was not made for
            return Unknown(f"{name}()")

    def _converted(self, name: str, value: Value) -> Value:
        if not self.budget.known(value):
            return Unknown(f"{name}()")
        try:
            result = CONVERSIONS[name](plain(value))
        except (TypeError, ValueError, OverflowError):
            return Unknown(f"{name}()")
        return Setting(value.key, result) if isinstance(value, Setting) else result

    def _call_method(self, method: BoundMethod, node: ast.Call, scope: Scope) -> Value:
        positional, named, _ = self._arguments(node, scope)
        owner = method.owner
        if isinstance(owner, Component):
            if method.name in EVENTS:
                outputs = plain(named.get("outputs", positional[2] if len(positional) > 2 else []))
                self.events.append(Event(owner, method.name, outputs if isinstance(outputs, list) else [outputs]))
            return Unknown(f".{method.name}()")
        if isinstance(owner, Config) or (owner == {} and method.name == "get"):
            if method.name != "get" or not positional:
                return Unknown(f"config.{method.name}()")
            key, default = plain(positional[0]), plain(positional[1]) if len(positional) > 1 else named.get("default")
            values = owner.values if isinstance(owner, Config) else {}
            return setting(values, key, default) if isinstance(key, str) else Unknown("config key")
        if isinstance(owner, dict) and method.name == "get" and positional and self.budget.known(positional[0]):
            return owner.get(plain(positional[0]), positional[1] if len(positional) > 1 else None)
        if isinstance(owner, dict) and method.name == "items":
            if not self.budget.made(2 * len(owner)):
                return Unknown("too long")
            return [[key, value] for key, value in owner.items()]
        if isinstance(owner, list):
            return self._list_method(owner, method.name, positional)
        if isinstance(owner, str) and method.name in STRING_METHODS and not named:
            return self._string_method(owner, method.name, positional)
        return Unknown(f".{method.name}()")

    def _string_method(self, owner: str, name: str, positional: list[Value]) -> Value:
        if not self.budget.known(owner, positional):
            return Unknown(f".{name}()")
        given = [plain(value) for value in positional]
        size = 3 * len(owner)  # what a change of case may make of it
        if name in ("startswith", "endswith"):
            given = [tuple(value) if isinstance(value, list) else value for value in given]
        elif name == "replace" and all(isinstance(value, str) for value in given[:2]) and len(given) > 1:
            size = replaced_size(owner, given[0], given[1])
        elif name == "join" and given and isinstance(given[0], list):
            given[0] = [plain(item) for item in given[0]]
            size = joined_size(owner, given[0])
        if not self.budget.made(size):
            return Unknown("too long")
        try:
            return getattr(owner, name)(*given)
        except (TypeError, ValueError):
            return Unknown(f".{name}()")

    def _list_method(self, owner: list[Value], name: str, arguments: list[Value]) -> Value:
        if len(owner) >= MOST_SIZE:
            raise BudgetExceeded
        if name == "append" and len(arguments) == 1:
            owner.append(Unknown("appended under a condition") if self.uncertain else arguments[0])
            return None
        if name == "insert" and len(arguments) == 2 and isinstance(plain(arguments[0]), int):
            item = Unknown("inserted under a condition") if self.uncertain else arguments[1]
            owner.insert(plain(arguments[0]), item)
            return None
        if name == "extend" and len(arguments) == 1:
            items = plain(arguments[0])
            if isinstance(items, list) and not self.budget.made(len(owner) + len(items)):
                raise BudgetExceeded
            owner += items if isinstance(items, list) and not self.uncertain else [Unknown("extended")]
            return None
        return Unknown(f".{name}()")

    def method_of(self, cls: ClassValue, name: str, owner: Instance | None) -> Value:
        """A method or class attribute of `cls` or of its bases in the checkout."""
        scope = Scope(cls.module)
        self.budget.step()
        statement = self.fact("members", cls.node, lambda: _members(cls.node)).get(name)
        if isinstance(statement, ast.FunctionDef):
            static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in statement.decorator_list)
            return Function(statement, scope, None if static else owner)
        if statement is not None:
            return self.value(statement.value, scope)
        for base_node in cls.node.bases:
            base = plain(self.value(base_node, scope))
            if isinstance(base, ClassValue) and base.node is not cls.node:
                return self.method_of(base, name, owner)
        return Unknown(f"attribute {name}")

    def _instantiate(self, cls: ClassValue, node: ast.Call, scope: Scope) -> Value:
        instance = Instance(cls)
        initialise = self.method_of(cls, "__init__", instance)
        if isinstance(initialise, Function):
            self._invoke(initialise, node, scope)
        return instance

    def _invoke(self, function: Function, node: ast.Call, scope: Scope) -> Value:
        """Follows a call into the checkout, if the callee can have to do with the form."""
        positional, named, complete = self._arguments(node, scope)
        if function.name in self.world.calls:
            return self._stand_in(function.name, positional, named)
        world = self.world
        followed = world.complete or function.name in world.followed or self._builds_form(function)
        if isinstance(function.node, ast.Lambda) or self.depth >= MAX_DEPTH or not followed:
            return Unknown(f"{function.name}()")
        inner = Scope(function.scope.module, outer=function.scope)
        self._bind_parameters(function, positional, named, complete, inner)
        self.depth += 1
        try:
            self.run_block(function.node.body, inner)
        except Returned as returned:
            return Unknown("conditional return") if inner.may_have_returned or self.uncertain else returned.value
        except (NextRound, LoopEnded):  # outside of any loop: not valid Python
            return Unknown(f"{function.name}()")
        finally:
            self.depth -= 1
        return Unknown("conditional return") if inner.may_have_returned else None

    def _builds_form(self, function: Function) -> bool:
        """Methods, and functions that mention gradio; generators give nothing that can be followed."""
        node = function.node
        if function.scope.module.yields and self.fact("generator", node, lambda: _is_generator(node)):
            return False
        return function.owner is not None or bool(self.fact("gradio", node, lambda: _mentions_gradio(node)))

    def _bind_parameters(
        self,
        function: Function,
        positional: list[Value],
        named: dict[str, Value],
        complete: bool,
        inner: Scope,
    ) -> None:
        parameters = function.node.args
        names = [parameter.arg for parameter in (*parameters.posonlyargs, *parameters.args)]
        defaults = dict(zip(reversed(names), reversed(parameters.defaults), strict=False))
        defaults.update(
            {p.arg: d for p, d in zip(parameters.kwonlyargs, parameters.kw_defaults, strict=True) if d is not None}
        )
        if function.owner is not None and names:
            inner.names[names.pop(0)] = function.owner
        given = {**dict(zip(names, positional, strict=False)), **named}
        if parameters.kwarg is not None:
            taken = {*names, *(parameter.arg for parameter in parameters.kwonlyargs)}
            inner.names[parameters.kwarg.arg] = {key: value for key, value in named.items() if key not in taken}
        if parameters.vararg is not None:
            inner.names[parameters.vararg.arg] = positional[len(names) :]
        for name in (*names, *(parameter.arg for parameter in parameters.kwonlyargs)):
            if name in given:
                inner.names[name] = given[name]
            elif name in defaults and complete:
                inner.names[name] = self.default_value(name, defaults[name], function.scope)
            else:
                inner.names[name] = Unknown(f"parameter {name}")

    def default_value(self, name: str, node: ast.expr, scope: Scope) -> Value:
        """A parameter's default; the empty dict of a parameter called `config` stands for the GUI's configuration."""
        value = self.value(node, scope)
        return Config() if name == "config" and value in ({}, None) else value


def _members(node: ast.ClassDef) -> dict[str, ast.FunctionDef | ast.Assign]:
    """The first definition of each name in the body of a class."""
    found: dict[str, ast.FunctionDef | ast.Assign] = {}
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef):
            found.setdefault(statement.name, statement)
        elif isinstance(statement, ast.Assign):
            for target in statement.targets:
                if isinstance(target, ast.Name):
                    found.setdefault(target.id, statement)
    return found


def _is_generator(node: ast.AST) -> bool:
    return any(isinstance(inner, (ast.Yield, ast.YieldFrom)) for inner in ast.walk(node))


def _mentions_gradio(node: ast.AST) -> bool:
    return any(isinstance(inner, ast.Name) and inner.id in ("gr", "gradio", "self") for inner in ast.walk(node))
