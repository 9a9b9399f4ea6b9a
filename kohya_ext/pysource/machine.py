"""The state of an interpretation of Kohya's source: its modules, names and budget. The layers above evaluate.

The source is whatever is in the folder. It may ask for `"a" * 10**10`, for lists that double in a loop, or for a list
that holds itself ten times, ten levels deep. Everything is therefore weighed before it is made or looked through, and
all of it is paid from one account. A value that would be too large is unknown; an empty account ends the reading.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

from kohya_ext.pysource.sources import Sources, parse, tokens_in
from kohya_ext.pysource.values import (
    MOST_BITS,
    MOST_SIZE,
    BudgetExceeded,
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
    known,
    plain,
    weight,
)

WORK = 400_000  # expressions, statements and rounds of loops; the largest tab of any release takes 20,000
CELLS_A_STEP = 8  # characters or items looked through in the time of one expression
MOST_SOURCE = 400_000  # tokens of all modules together; the largest tab of any release takes a quarter of it
FOLDERS = ("kohya_gui/", "library/", "")
MAX_DEPTH = 16  # calls within calls
MOST_NAMES = 100  # that one component is bound to
_MISSING = Unknown("name")

# Text -> tree of the modules of each checkout, for reading only: its form is followed again for every preset.
_TREES: WeakKeyDictionary[Sources, dict[str, ast.Module | None]] = WeakKeyDictionary()


class Budget:
    """The account of one evaluation. Every method that pays raises BudgetExceeded when nothing is left."""

    def __init__(self) -> None:
        self.spent = 0
        self.tokens = 0

    def step(self, count: int = 1) -> None:
        """Pay for expressions, statements or rounds."""
        self.spent += count
        if self.spent > WORK:
            raise BudgetExceeded

    def read(self, source: str) -> None:
        """Pay for a module that is going to be parsed."""
        self.tokens += tokens_in(source)
        if self.tokens > MOST_SOURCE:
            raise BudgetExceeded

    def made(self, size: int) -> bool:
        """Pay for a string or container of `size`; False when it is too large to be made at all."""
        if size > MOST_SIZE:
            return False
        self.step(size // CELLS_A_STEP)
        return True

    def known(self, *values: Value) -> bool:
        """Whether all `values` are plain Python all the way down, and of a size that can be worked with."""
        return self.small(*values) and all(known(value) for value in values)

    def small(self, *values: Value) -> bool:
        """Whether `values`, written out, are small enough to be compared, copied or handed to a function."""
        total = sum(weight(value) for value in values)
        self.step(min(total, MOST_SIZE) // CELLS_A_STEP)
        return total <= MOST_SIZE

    def same(self, one: Value, other: Value) -> bool:
        """Whether both are equal; values that are too large to be compared are only equal to themselves."""
        return one is other or (self.small(one, other) and bool(one == other))

    def numbers(self, *values: Value) -> bool:
        """Whether the numbers among `values` are short enough to be multiplied or divided."""
        return all(not isinstance(value, int) or value.bit_length() <= MOST_BITS for value in values)


def joined_size(separator: str, items: list[Any]) -> int:
    """The length of `separator.join(items)`; more than any string may have when something else is among them."""
    if not all(isinstance(item, str) for item in items):
        return MOST_SIZE + 1
    return sum(map(len, items)) + len(separator) * max(0, len(items) - 1)


def replaced_size(text: str, old: str, new: str) -> int:
    """An upper bound of the length of `text.replace(old, new)`."""
    return len(text) + text.count(old) * max(0, len(new) - len(old))


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
        """What a name means in a scope: the world's, the nearest scope's, the module's or a builtin."""
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
