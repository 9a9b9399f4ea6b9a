"""The expressions of Python that tab builders are made of, evaluated without running anything."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from typing import Any

from kohya_ext.pysource.machine import Machine
from kohya_ext.pysource.values import (
    BoundMethod,
    ClassValue,
    Component,
    Config,
    External,
    Function,
    Instance,
    Scope,
    Unknown,
    Value,
    plain,
    truth,
)

COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda item, container: item in container,
    ast.NotIn: lambda item, container: item not in container,
}

ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}

_WIDE = re.compile(r"%[^a-zA-Z%]*(?:\d{4}|\*)")  # thousands of characters wide, or as wide as a value says


class Expressions(Machine):
    """The expressions of Python that tab builders are made of, a method for each node of `ast`."""

    def visit_Constant(self, node: ast.Constant, __: Scope) -> Value:
        """The constant itself."""
        return node.value

    def visit_List(self, node: ast.List | ast.Tuple | ast.Set, scope: Scope) -> Value:
        """Sets are read as lists: newer releases write sets of components in the order that counts."""
        items: list[Value] = []
        for element in node.elts:
            if isinstance(element, ast.Starred):
                inner = plain(self.value(element.value, scope))
                items += inner if isinstance(inner, (list, tuple)) else [Unknown("starred")]
                if not self.budget.made(len(items)):
                    return Unknown("too long")
            else:
                items.append(self.value(element, scope))
        return items

    visit_Tuple = visit_List

    visit_Set = visit_List

    def visit_Dict(self, node: ast.Dict, scope: Scope) -> Value:
        """A dict; unknown where a key or a dict that is unpacked into it is."""
        result: dict[Any, Value] = {}
        for key_node, value_node in zip(node.keys, node.values, strict=True):
            value = self.value(value_node, scope)
            if key_node is None:
                if not isinstance(plain(value), dict):
                    return Unknown("dict")
                result.update(plain(value))
                if not self.budget.made(len(result)):
                    return Unknown("too long")
                continue
            key = plain(self.value(key_node, scope))
            if not isinstance(key, (str, int, float, bool)):
                return Unknown("dict")
            result[key] = value
        return result

    def visit_Name(self, node: ast.Name, scope: Scope) -> Value:
        """What the name is bound to."""
        return self.lookup(node.id, scope)

    def visit_Attribute(self, node: ast.Attribute, scope: Scope) -> Value:
        """An attribute of an object, a module or something outside of the checkout."""
        owner = plain(self.value(node.value, scope))
        if isinstance(owner, External):
            dotted = f"{owner.name}.{node.attr}"
            return self.world.constants.get(dotted, External(dotted))
        if isinstance(owner, Instance):
            if node.attr in owner.attributes:
                return owner.attributes[node.attr]
            return self.method_of(owner.cls, node.attr, owner)
        if isinstance(owner, ClassValue):
            return self.method_of(owner, node.attr, None)
        if isinstance(owner, (Component, Config, str, list, dict)):
            return BoundMethod(owner, node.attr)
        return Unknown(f"attribute {node.attr}")

    def visit_UnaryOp(self, node: ast.UnaryOp, scope: Scope) -> Value:
        """`not` and the sign of a number."""
        value = plain(self.value(node.operand, scope))
        if isinstance(node.op, ast.Not):
            decided = truth(value)
            return Unknown("not") if decided is None else not decided
        if isinstance(node.op, ast.USub) and isinstance(value, (int, float)):
            return -value
        return Unknown("unary")

    def visit_BoolOp(self, node: ast.BoolOp, scope: Scope) -> Value:
        """`and` and `or`, evaluated as far as Python would."""
        value: Value = None
        for operand in node.values:
            value = self.value(operand, scope)
            decided = truth(value)
            if decided is None:
                return Unknown("and/or")
            if decided is not isinstance(node.op, ast.And):
                return value
        return value

    def visit_Compare(self, node: ast.Compare, scope: Scope) -> Value:
        """A comparison of known values, also a chain of them."""
        left = plain(self.value(node.left, scope))
        for op, right_node in zip(node.ops, node.comparators, strict=True):
            right = plain(self.value(right_node, scope))
            if not self.budget.known(left, right):
                return Unknown("comparison")
            try:
                if not COMPARISONS[type(op)](left, right):
                    return False
            except TypeError:
                return Unknown("comparison")
            left = right
        return True

    def visit_BinOp(self, node: ast.BinOp, scope: Scope) -> Value:
        """Arithmetic; see `combine`."""
        left, right = plain(self.value(node.left, scope)), plain(self.value(node.right, scope))
        return self.combine(node.op, left, right)

    def combine(self, op: ast.operator, left: Value, right: Value) -> Value:
        """Arithmetic; a list plus something unknown stays a list with an unknown item in it."""
        budget = self.budget
        if isinstance(op, ast.Add) and (isinstance(left, list) or isinstance(right, list)):
            parts = [side if isinstance(side, list) else [Unknown("list")] for side in (left, right)]
            return [*parts[0], *parts[1]] if budget.made(sum(map(len, parts))) else Unknown("too long")
        if not budget.known(left, right):
            return Unknown("arithmetic")
        if isinstance(op, ast.BitOr):  # of sets, which are lists here
            if isinstance(left, list) and isinstance(right, list):
                budget.step(len(left) * len(right))
                return [*left, *(item for item in right if item not in left)]
            if isinstance(left, dict) and isinstance(right, dict):
                return {**left, **right}
        function = ARITHMETIC.get(type(op))
        if function is None or not budget.numbers(left, right):
            return Unknown("arithmetic")
        if isinstance(op, ast.Mult) and not all(isinstance(x, (int, float)) for x in (left, right)):
            return Unknown("repetition")
        if isinstance(op, ast.Mod) and isinstance(left, str) and _WIDE.search(left):
            return Unknown("a wide conversion")
        try:
            return function(left, right)
        except (TypeError, ValueError, ArithmeticError):
            return Unknown("arithmetic")

    def visit_IfExp(self, node: ast.IfExp, scope: Scope) -> Value:
        """`a if b else c`; unknown where the condition is."""
        decided = truth(self.value(node.test, scope))
        if decided is None:
            return Unknown("condition")
        return self.value(node.body if decided else node.orelse, scope)

    def visit_JoinedStr(self, node: ast.JoinedStr, scope: Scope) -> Value:
        """An f-string of known values without formats."""
        pieces: list[str] = []
        for part in node.values:
            inner = part.value if isinstance(part, ast.FormattedValue) else part
            value = plain(self.value(inner, scope))
            if not self.budget.known(value) or (isinstance(part, ast.FormattedValue) and _converted(part)):
                return Unknown("f-string")
            pieces.append(str(value))
            if not self.budget.made(sum(map(len, pieces))):
                return Unknown("too long")
        return "".join(pieces)

    def visit_NamedExpr(self, node: ast.NamedExpr, scope: Scope) -> Value:
        """`name := value`."""
        value = self.value(node.value, scope)
        self.bind(node.target, value, scope)
        return value

    def visit_ListComp(self, node: ast.ListComp | ast.GeneratorExp, scope: Scope) -> Value:
        """A comprehension over one known list."""
        generator = node.generators[0]
        items = plain(self.value(generator.iter, scope))
        if len(node.generators) != 1 or not isinstance(items, list):
            return Unknown("comprehension")
        result = []
        for item in tuple(items):
            self.budget.step()
            inner = Scope(scope.module, outer=scope)
            self.bind(generator.target, item, inner)
            decided = [truth(self.value(test, inner)) for test in generator.ifs]
            if None in decided:
                result.append(Unknown("comprehension"))
            elif all(decided):
                result.append(self.value(node.elt, inner))
        return result

    visit_GeneratorExp = visit_ListComp

    def visit_DictComp(self, node: ast.DictComp, scope: Scope) -> Value:
        """A dict from a comprehension, by way of one of pairs."""
        pair = ast.Tuple(elts=[node.key, node.value], ctx=ast.Load())
        pairs = self.visit_ListComp(ast.ListComp(elt=pair, generators=node.generators), scope)
        if not isinstance(pairs, list) or not all(isinstance(p, list) and self.budget.known(p[0]) for p in pairs):
            return Unknown("dict")
        return {plain(key): value for key, value in pairs}

    def visit_Subscript(self, node: ast.Subscript, scope: Scope) -> Value:
        """An item of a list, a dict or a string."""
        container, index = plain(self.value(node.value, scope)), plain(self.value(node.slice, scope))
        if isinstance(container, (list, dict, str)) and self.budget.known(index):
            try:
                return container[index]
            except (KeyError, IndexError, TypeError):
                return Unknown("subscript")
        return Unknown("subscript")

    def visit_Lambda(self, node: ast.Lambda, scope: Scope) -> Value:
        """The function, with the scope that it sees."""
        return Function(node, scope)


def _converted(part: ast.FormattedValue) -> bool:
    """Whether a value is written otherwise than by `str`."""
    return part.format_spec is not None or part.conversion not in (-1, ord("s"))
