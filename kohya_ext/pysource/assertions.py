"""What a training script refuses about its own arguments, read from its text and judged for given ones.

Scripts check their arguments in `train`, in functions that get `args` and in methods that a family's script overrides.
Only these are cut out and followed. A check counts when everything that it and the conditions around it ask for is
known from the arguments; whatever depends on models, data or the machine is left to the run.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from kohya_ext.pysource.arguments import block, function_in, imported
from kohya_ext.pysource.interpreter import Interpreter
from kohya_ext.pysource.sources import Sources, parse
from kohya_ext.pysource.values import (
    ClassValue,
    Function,
    Instance,
    Module,
    Scope,
    Signal,
    Unknown,
    Value,
    World,
    truth,
)

ENTRY = "train"
NAMESPACE = "args"
MAX_CLASS = 1 << 18  # characters of a trainer's class; the longest has 100,000
UNFINISHED = ("NotImplementedError",)  # says that a class is a base, not that arguments are wrong
_TRAINER = re.compile(r"^class (\w+)\((?:(\w+)\.)?(\w+)\):", re.MULTILINE)
_BUILTIN = "builtins."


@dataclass(frozen=True)
class Refusal:
    """One check that fails.

    message: what the script says. arguments: those that it looked at, the check's own first. file: where it stands.
    """

    message: str
    arguments: tuple[str, ...]
    file: str


def refusals(sources: Sources, script: str, arguments: Mapping[str, Any]) -> list[Refusal]:
    """The checks of a script that these arguments fail, in the order in which they are reached.

    arguments: by attribute, complete; `Unknown` where only the run knows.
    """
    trainer = _Trainer(sources, arguments)
    with suppress(Signal, SyntaxError, RecursionError):  # its end, or more than can be followed
        trainer.run(script)
    return trainer.found


class _Trainer(Interpreter):
    """Follows a script's `train`, and from there whatever is handed its arguments."""

    def __init__(self, sources: Sources, arguments: Mapping[str, Any]) -> None:
        super().__init__(sources, World(calls={"builtins.hasattr": self._has, "builtins.getattr": self._get}))
        self.found: list[Refusal] = []
        self._tests: list[ast.expr] = []
        self._entered: set[tuple[str, str]] = set()
        self._cut: dict[str, Module] = {}
        self._home: dict[ast.AST, str] = {}  # methods of the base class -> their file
        self._imports: dict[str, dict[str, tuple[str, str]]] = {}
        empty = ast.ClassDef(name="Namespace", bases=[], keywords=[], body=[], decorator_list=[])
        self.arguments = Instance(ClassValue(empty, Module("")), dict(arguments))

    def run(self, script: str) -> None:
        """Follow `train` of the script, or of its class of trainer."""
        function: Value = self._function_at(script, ENTRY)
        names: dict[str, Value] = {NAMESPACE: self.arguments}
        if function is None:
            trainer = self._trainer_in(script, self.sources.read(script) or "")
            function = None if trainer is None else self.method_of(trainer.cls, ENTRY, trainer)
            names["self"] = trainer
        if isinstance(function, Function) and isinstance(function.node, ast.FunctionDef):
            self.run_block(function.node.body, Scope(function.scope.module, names))

    def _trainer_in(self, script: str, text: str) -> Instance | None:
        """The class that the script trains with: its own methods, then those of the class that it extends."""
        found = _TRAINER.search(text)
        name = found.group(1) if found else "NetworkTrainer"
        body: list[ast.stmt] = self._members_at(script, name)
        if found is not None:
            module = self._imported(script).get(found.group(2) or found.group(3))
            base = self._members_at(module[0], found.group(3)) if module is not None else []
            own = {statement.name for statement in body if isinstance(statement, ast.FunctionDef)}
            body += [one for one in base if not (isinstance(one, ast.FunctionDef) and one.name in own)]
            self._home.update(dict.fromkeys(base, module[0]) if module is not None else {})
        if not body:
            return None
        node = ast.ClassDef(name=name, bases=[], keywords=[], body=body, decorator_list=[])
        return Instance(ClassValue(node, self._module(script)))

    def _members_at(self, path: str, name: str) -> list[ast.stmt]:
        lines = block(self.sources.read(path) or "", name, "class")
        tree = parse(lines).body if 0 < len(lines) <= MAX_CLASS else []
        return list(tree[0].body) if tree and isinstance(tree[0], ast.ClassDef) else []

    def _module(self, path: str) -> Module:
        return self._cut.setdefault(path, Module(path, yields=False))

    def _imported(self, path: str) -> dict[str, tuple[str, str]]:
        if path not in self._imports:
            self._imports[path] = imported(self.sources.read(path) or "", self.sources)
        return self._imports[path]

    def _function_at(self, path: str, name: str) -> Function | None:
        node = function_in(self.sources.read(path) or "", name)
        return None if node is None else Function(node, Scope(self._module(path)))

    # what is followed

    def method_of(self, cls: ClassValue, name: str, owner: Instance | None) -> Value:
        """A method, with the names of the file that it stands in."""
        value = super().method_of(cls, name, owner)
        if isinstance(value, Function) and value.node in self._home:
            return Function(value.node, Scope(self._module(self._home[value.node])), value.owner)
        return value

    def _call_external(self, name: str, node: ast.Call, scope: Scope) -> Value:
        if name.startswith(_BUILTIN) and name not in self.world.calls and _hands_on(node):
            target = self._target(name.removeprefix(_BUILTIN), scope.module.path)
            function = None if target is None or target in self._entered else self._function_at(*target)
            if function is not None and target is not None:
                self._entered.add(target)  # once is enough, and ends circles
                return super()._invoke(function, node, scope)
        return super()._call_external(name, node, scope)

    def _target(self, dotted: str, path: str) -> tuple[str, str] | None:
        """The file and function that a name in the file `path` stands for."""
        first, _, rest = dotted.partition(".")
        target = self._imported(path).get(first)
        if target is None:
            return None if rest else (path, first)
        if target[1]:
            return None if rest else target
        return (target[0], rest) if rest and "." not in rest else None

    def _invoke(self, function: Function, node: ast.Call, scope: Scope) -> Value:
        """Methods are followed when they get the arguments too."""
        key = (function.scope.module.path, function.name)
        if not _hands_on(node) or key in self._entered:
            return Unknown(f"{function.name}()")
        if not _asks_only(function.node):
            self._entered.add(key)
        return super()._invoke(function, node, scope)

    def _builds_form(self, _: Function) -> bool:
        return True

    # what is judged

    def visit_If(self, node: ast.If, scope: Scope) -> None:
        """A condition that cannot be told may end in an exception either way: nothing in it counts."""
        decided = truth(self.value(node.test, scope))
        if decided is None:
            for branch in (node.orelse, node.body):
                self._run_doubtful(branch, scope)
            return
        self._tests.append(node.test)
        try:
            self.run_block(node.body if decided else node.orelse, scope)
        finally:
            self._tests.pop()

    def visit_Try(self, node: ast.Try, scope: Scope) -> None:
        """What is raised here may be caught."""
        self._run_doubtful(node.body, scope)
        self.run_block(node.finalbody, scope)

    def visit_Assert(self, node: ast.Assert, scope: Scope) -> None:
        """Counts when it is sure to be reached and to fail."""
        if truth(self.value(node.test, scope)) is False:
            self._refused([node.test], node.msg, scope)

    def visit_Raise(self, node: ast.Raise, scope: Scope) -> None:
        """Counts under conditions on the arguments alone."""
        call = node.exc
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id in UNFINISHED:
            return
        self._refused([], call.args[0] if call.args else None, scope)

    def _refused(self, tests: list[ast.expr], message: ast.expr | None, scope: Scope) -> None:
        looked = dict.fromkeys(name for test in (*tests, *reversed(self._tests)) for name in _attributes(test))
        if self.uncertain or not looked:
            return
        said = self.value(message, scope) if message is not None else ""
        text = (
            said if isinstance(said, str) and said else ast.unparse(tests[0]) if tests else "it refuses the arguments"
        )
        one = Refusal(text.split(" / ")[0].strip(), tuple(looked), scope.module.path)
        if one.message not in (other.message for other in self.found):
            self.found.append(one)

    # builtins that ask about the arguments

    @staticmethod
    def _has(given: list[Value], _: dict[str, Value]) -> Value:
        owner, name = given
        return name in owner.attributes if isinstance(owner, Instance) else Unknown("hasattr()")

    @staticmethod
    def _get(given: list[Value], _: dict[str, Value]) -> Value:
        owner, name, *default = given
        known = isinstance(owner, Instance) and (name in owner.attributes or default)
        return owner.attributes.get(name, *default) if known else Unknown("getattr()")


def _hands_on(node: ast.Call) -> bool:
    given = [*node.args, *(keyword.value for keyword in node.keywords)]
    return any(isinstance(one, ast.Name) and one.id == NAMESPACE for one in given)


def _asks_only(node: ast.AST) -> bool:
    """Whether a function is a single answer, as `is_train_text_encoder` is: followed every time."""
    return isinstance(node, ast.FunctionDef) and all(isinstance(one, (ast.Return, ast.Expr)) for one in node.body)


def _attributes(test: ast.expr) -> list[str]:
    """The arguments that a condition looks at, in order."""
    return [
        one.attr
        for one in ast.walk(test)
        if isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name) and one.value.id == NAMESPACE
    ]
