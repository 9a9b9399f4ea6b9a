"""What a piece of source can evaluate to without being run.

Plain Python values (strings, numbers, lists, dicts, None) stand for themselves; the classes here stand for the rest.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

MOST_SIZE = 100_000  # of a value, in characters, digits and items
MOST_BITS = 4096  # of a whole number

Value: TypeAlias = Any
StandIn: TypeAlias = Callable[[list[Any], dict[str, Any]], Any]


@dataclass(frozen=True)
class Unknown:
    """Depends on something that only a running program knows."""

    reason: str


@dataclass(frozen=True)
class Setting:
    """A value that the GUI's `config.toml` may override under `key`; `default` holds where it does not."""

    key: str
    default: Value


@dataclass(frozen=True)
class External:
    """Something of a package outside the checkout, by its dotted name."""

    name: str


@dataclass(frozen=True)
class Config:
    """The GUI's configuration object (or the empty dict that stands in for it). values: what its file holds."""

    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Module:
    """A module of the checkout: its file and, once loaded, its names. yields: whether it may hold generators."""

    path: str
    yields: bool = True
    names: dict[str, Value] = field(default_factory=dict)
    stars: list[Module] = field(default_factory=list)


@dataclass(eq=False)
class Scope:
    """Names visible at one place: a function's own, those of the function around it, the module's."""

    module: Module
    names: dict[str, Value] = field(default_factory=dict)
    outer: Scope | None = None
    declared_global: set[str] = field(default_factory=set)
    may_have_returned: bool = False


@dataclass(frozen=True)
class ClassValue:
    """A class of the source that is read, and the module whose names it sees."""

    node: ast.ClassDef
    module: Module


@dataclass(frozen=True)
class Function:
    """A function of the checkout; `owner` is the instance that a method is bound to."""

    node: ast.FunctionDef | ast.Lambda
    scope: Scope
    owner: Instance | None = None

    @property
    def name(self) -> str:
        """The function's name."""
        return self.node.name if isinstance(self.node, ast.FunctionDef) else "<lambda>"


@dataclass(eq=False)
class Instance:
    """An object of a class of the checkout."""

    cls: ClassValue
    attributes: dict[str, Value] = field(default_factory=dict)


@dataclass(eq=False)
class Component:
    """A gradio component: its class, its arguments, where it is made, and the names it is bound to.

    certain: False when it is made under a condition that cannot be decided, or with arguments that cannot be seen.
    names: pairs of the owning class ("" for a variable) and the name.
    """

    kind: str
    arguments: dict[str, Value]
    place: str
    certain: bool = True
    names: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class BoundMethod:
    """A method of a plain value or of a component, not called yet."""

    owner: Value
    name: str


@dataclass(frozen=True)
class Event:
    """`trigger.method(...)` wires a component to a handler; outputs are the components that it fills."""

    trigger: Component
    method: str
    outputs: list[Value]


@dataclass(frozen=True)
class World:
    """What stands in for things that only a running program has.

    names: variables, whatever module they are used in. constants: attributes of other packages by dotted name.
    calls: functions by name (of the checkout) or dotted name (of other packages); they get the positional and the
    named arguments. followed: functions of the checkout that are followed though they build nothing of the form.
    complete: every condition must be decidable and every function of the checkout is followed.
    """

    names: Mapping[str, Value] = field(default_factory=dict)
    constants: Mapping[str, Value] = field(default_factory=dict)
    calls: Mapping[str, StandIn] = field(default_factory=dict)
    followed: frozenset[str] = frozenset()
    complete: bool = False


class Signal(Exception):  # noqa: N818 - control flow, not an error
    """Control flow of the evaluation, which passes where every other exception makes a value unknown."""


class Returned(Signal):
    """A `return` statement was reached."""

    def __init__(self, value: Value) -> None:
        super().__init__()
        self.value = value


class NextRound(Signal):
    """A `continue` was reached."""


class LoopEnded(Signal):
    """A `break` was reached."""


class Undecidable(Signal):
    """A condition depends on something unknown, where everything has to be known."""


class BudgetExceeded(Signal):
    """The source is larger or deeper than any release's: evaluation is given up."""


def plain(value: Value) -> Value:
    """The value itself; for a setting its default."""
    return value.default if isinstance(value, Setting) else value


def weight(value: Value) -> int:
    """Characters, digits and items of a value when it is written out; what is shared counts each time.

    Counting ends a little beyond MOST_SIZE: a value may hold itself.
    """
    total, waiting = 0, [value]
    while waiting and total <= MOST_SIZE:
        one = plain(waiting.pop())
        total += 1
        if isinstance(one, str):
            total += len(one)
        elif isinstance(one, int):
            total += one.bit_length() // 3 if one.bit_length() <= MOST_BITS else MOST_SIZE
        elif isinstance(one, (list, tuple)):
            total += len(one)
            waiting += one if total <= MOST_SIZE else ()
        elif isinstance(one, dict):
            total += 2 * len(one)
            if total <= MOST_SIZE:
                waiting += one.keys()
                waiting += one.values()
    return total


def known(value: Value) -> bool:
    """Whether the value is plain Python all the way down, and no larger than anything in a form."""
    waiting, seen = [value], 0
    while waiting:
        one = plain(waiting.pop())
        seen += 1
        if isinstance(one, (list, tuple)):
            seen += len(one)
            waiting += one if seen <= MOST_SIZE else ()
        elif isinstance(one, dict):
            seen += len(one)
            waiting += one.values() if seen <= MOST_SIZE else ()
        elif isinstance(one, int):
            seen += 0 if one.bit_length() <= MOST_BITS else MOST_SIZE
        elif not (one is None or isinstance(one, (float, str))):
            return False
        if seen > MOST_SIZE:
            return False
    return True


def truth(value: Value) -> bool | None:
    """Its truth, None where that cannot be told."""
    value = plain(value)
    if isinstance(value, (Unknown, External)):
        return None
    if value is None or isinstance(value, (bool, int, float, str, list, tuple, dict)):
        return bool(value)
    return True
