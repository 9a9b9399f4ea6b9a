"""The state of an interpretation of Kohya's source: its modules and names. The layers above evaluate."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

from kohya_ext.pysource.budget import Budget
from kohya_ext.pysource.parsing import parse
from kohya_ext.pysource.sources import Sources
from kohya_ext.pysource.values import (
    ClassValue,
    Component,
    Event,
    External,
    Instance,
    LoopEnded,
    Module,
    NextRound,
    Returned,
    Scope,
    Unknown,
    Value,
    World,
    plain,
)

FOLDERS = ("kohya_gui/", "library/", "")

MAX_DEPTH = 16  # calls within calls

MOST_NAMES = 100  # that one component is bound to

_MISSING = Unknown("name")

# Text -> tree of the modules of each checkout, for reading only: its form is followed again for every preset.
_TREES: WeakKeyDictionary[Sources, dict[str, ast.Module | None]] = WeakKeyDictionary()


class Machine:
    """What there is while the modules of one checkout are interpreted: modules, names, and what was seen of the form.

    events: every wiring of a component to a handler, in the order of the source.
    uncertain: how many undecidable conditions surround the statement at work.
    """

    def __init__(self, sources: Sources, world: World | None = None) -> None:
        """world: what stands in for things outside the checkout; None knows nothing and follows forms only."""
        self.sources = sources
        self.world = world or World()
        self.events: list[Event] = []
        self.uncertain = 0
        self.depth = 0
        self._modules: dict[str, Module | None] = {}
        self.budget = Budget()
        self.facts: dict[tuple[str, ast.AST], Any] = {}  # what was found out about pieces of the source

    # modules

    def find(self, name: str, landmark: str = "") -> str | None:
        """The path of the module file `name` that holds the text `landmark`, in the folders of either era."""
        for folder in FOLDERS:
            text = self.sources.read(folder + name)
            if text is not None and landmark in text:
                return folder + name
        return None

    def module(self, path: str) -> Module | None:
        """The module at `path` with its top-level names; None where it is missing or does not parse."""
        if path not in self._modules:
            tree = self._parse(path)
            yields = "yield" in (self.sources.read(path) or "")
            module = self._modules[path] = None if tree is None else Module(path, yields)
            if module is not None and tree is not None:
                with suppress(Returned, NextRound, LoopEnded):  # outside of any function or loop: not valid Python
                    self.run_block(tree.body, Scope(module, names=module.names))
        return self._modules[path]

    def _parse(self, path: str) -> ast.Module | None:
        text = self.sources.read(path)
        if text is None:
            return None
        self.budget.read(text)
        trees = _TREES.setdefault(self.sources, {})
        if text not in trees:
            try:
                trees[text] = parse(text.lstrip("\ufeff"))
            except SyntaxError:
                trees[text] = None
        return trees[text]

    # names

    def lookup(self, name: str, scope: Scope) -> Value:
        if name in self.world.names:
            return self.world.names[name]
        place: Scope | None = scope
        while place is not None:
            if name in place.names:
                return place.names[name]
            place = place.outer
        if name == "__name__":
            return scope.module.path
        value = self._global(name, scope.module)
        return External(f"builtins.{name}") if value is _MISSING else value

    def _global(self, name: str, module: Module) -> Value:
        seen, waiting = {id(module)}, [module]  # modules may import everything from each other
        while waiting:
            self.budget.step()
            one = waiting.pop()
            if name in one.names:
                return one.names[name]
            fresh = [star for star in one.stars if id(star) not in seen]
            seen.update(id(star) for star in fresh)
            waiting += reversed(fresh)
        return _MISSING

    def exported(self, module: Module, name: str) -> Value:
        """What `from module import name` gives."""
        value = self._global(name, module)
        return Unknown(f"import {name}") if value is _MISSING else value

    def bind(self, target: ast.expr, value: Value, scope: Scope) -> None:
        """Assigns; under an undecidable condition a plain value becomes unknown, unless it was the same before."""
        if isinstance(target, ast.Name):
            place = scope.module.names if target.id in scope.declared_global else scope.names
            place[target.id] = self._doubted(place.get(target.id, _MISSING), value)
            if isinstance(value, Component):
                self._called(value, "", target.id)
        elif isinstance(target, ast.Attribute):
            owner = plain(self.value(target.value, scope))
            if isinstance(owner, Instance):
                before = owner.attributes.get(target.attr, _MISSING)
                owner.attributes[target.attr] = self._doubted(before, value)
                if isinstance(value, Component):
                    self._called(value, owner.cls.node.name, target.attr)
        elif isinstance(target, ast.Subscript):
            container, key = plain(self.value(target.value, scope)), plain(self.value(target.slice, scope))
            if isinstance(container, dict) and isinstance(key, (str, int)):
                container[key] = Unknown("assigned under a condition") if self.uncertain else value
        elif isinstance(target, (ast.Tuple, ast.List)):
            items = plain(value)
            fits = isinstance(items, list) and len(items) == len(target.elts)
            for index, element in enumerate(target.elts):
                self.bind(element, items[index] if fits else Unknown("unpacking"), scope)

    @staticmethod
    def _called(component: Component, owner: str, name: str) -> None:
        if len(component.names) < MOST_NAMES:
            component.names.append((owner, name))

    def _doubted(self, before: Value, value: Value) -> Value:
        if not self.uncertain or isinstance(value, (Component, Instance)) or self.budget.same(before, value):
            return value
        return Unknown("assigned under a condition")

    # evaluation

    def fact(self, kind: str, node: ast.AST, find: Callable[[], Any]) -> Any:
        """What `find` gives for a piece of the source, found out once."""
        key = (kind, node)
        if key not in self.facts:
            self.facts[key] = find()
        return self.facts[key]

    def value(self, node: ast.expr, scope: Scope) -> Value:
        """The value of an expression; see `Interpreter`."""
        raise NotImplementedError

    def run_block(self, body: Sequence[ast.stmt], scope: Scope) -> None:
        """Runs statements in order; see `Interpreter`."""
        raise NotImplementedError

    def method_of(self, cls: ClassValue, name: str, owner: Instance | None) -> Value:
        """A method or class attribute of `cls`; see `Calls`."""
        raise NotImplementedError
