"""The statements of Python that tab builders are made of."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kohya_ext.presets.expressions import combine
from kohya_ext.presets.values import (
    BudgetExceeded,
    ClassValue,
    External,
    Function,
    LoopEnded,
    NextRound,
    Returned,
    Scope,
    Signal,
    Undecidable,
    Unknown,
    plain,
    truth,
)

if TYPE_CHECKING:
    from kohya_ext.presets.evaluator import Evaluator

OWN_PACKAGES = ("kohya_gui", "library")


def run_block(evaluator: Evaluator, body: Sequence[ast.stmt], scope: Scope) -> None:
    """Runs statements in order; kinds that cannot matter are skipped."""
    for statement in body:
        evaluator.budget.step()
        run = STATEMENTS.get(type(statement))
        if run is None:
            continue
        try:
            run(evaluator, statement, scope)
        except Signal:
            raise
        except Exception as error:  # a name may be left as it was: nothing that follows can be trusted
            raise BudgetExceeded from error


def assign(evaluator: Evaluator, node: ast.Assign, scope: Scope) -> None:
    value = evaluator.value(node.value, scope)
    for target in node.targets:
        evaluator.bind(target, value, scope)


def annotated(evaluator: Evaluator, node: ast.AnnAssign, scope: Scope) -> None:
    if node.value is not None:
        evaluator.bind(node.target, evaluator.value(node.value, scope), scope)


def augmented(evaluator: Evaluator, node: ast.AugAssign, scope: Scope) -> None:
    if isinstance(node.target, (ast.Name, ast.Attribute)):
        before, change = plain(evaluator.value(node.target, scope)), plain(evaluator.value(node.value, scope))
        evaluator.bind(node.target, combine(evaluator, node.op, before, change), scope)


def with_block(evaluator: Evaluator, node: ast.With, scope: Scope) -> None:
    for item in node.items:
        value = evaluator.value(item.context_expr, scope)
        if item.optional_vars is not None:
            evaluator.bind(item.optional_vars, value, scope)
    run_block(evaluator, node.body, scope)


def condition(evaluator: Evaluator, node: ast.If, scope: Scope) -> None:
    decided = truth(evaluator.value(node.test, scope))
    if decided is not None:
        run_block(evaluator, node.body if decided else node.orelse, scope)
        return
    if evaluator.world.complete and scope.names is not scope.module.names:  # not while a module loads
        raise Undecidable(f"{scope.module.path}:{node.lineno}")
    for branch in (node.orelse, node.body):
        _run_doubtful(evaluator, branch, scope)


def _run_doubtful(evaluator: Evaluator, body: Sequence[ast.stmt], scope: Scope) -> None:
    evaluator.uncertain += 1
    try:
        run_block(evaluator, body, scope)
    except Returned:
        scope.may_have_returned = True
    finally:
        evaluator.uncertain -= 1


def attempt(evaluator: Evaluator, node: ast.Try, scope: Scope) -> None:
    """The body is what normally happens; what an exception would change is not known here."""
    run_block(evaluator, node.body, scope)
    run_block(evaluator, node.finalbody, scope)


def loop(evaluator: Evaluator, node: ast.For, scope: Scope) -> None:
    items = plain(evaluator.value(node.iter, scope))
    jumps = evaluator.fact("jumps", node, lambda: _holds(node, ast.Break, ast.Continue))
    if not isinstance(items, (list, tuple)) or (jumps and not evaluator.world.complete):
        evaluator.bind(node.target, Unknown("loop"), scope)
        _run_doubtful(evaluator, node.body, scope)
        return
    for item in tuple(items):  # the body may change the list
        evaluator.budget.step()
        evaluator.bind(node.target, item, scope)
        try:
            run_block(evaluator, node.body, scope)
        except NextRound:
            continue
        except LoopEnded:
            return


def _holds(node: ast.AST, *kinds: type[ast.AST]) -> bool:
    return any(isinstance(inner, kinds) for inner in ast.walk(node))


def next_round(evaluator: Evaluator, _: ast.Continue, __: Scope) -> None:
    if evaluator.world.complete and not evaluator.uncertain:
        raise NextRound


def end_loop(evaluator: Evaluator, _: ast.Break, __: Scope) -> None:
    if evaluator.world.complete and not evaluator.uncertain:
        raise LoopEnded


def while_loop(evaluator: Evaluator, node: ast.While, scope: Scope) -> None:
    _run_doubtful(evaluator, node.body, scope)


def define_function(_: Evaluator, node: ast.FunctionDef, scope: Scope) -> None:
    scope.names[node.name] = Function(node, scope)


def define_class(_: Evaluator, node: ast.ClassDef, scope: Scope) -> None:
    scope.names[node.name] = ClassValue(node, scope.module)


def expression(evaluator: Evaluator, node: ast.Expr, scope: Scope) -> None:
    evaluator.value(node.value, scope)


def give_back(evaluator: Evaluator, node: ast.Return, scope: Scope) -> None:
    raise Returned(None if node.value is None else evaluator.value(node.value, scope))


def declare_global(_: Evaluator, node: ast.Global, scope: Scope) -> None:
    scope.declared_global.update(node.names)


def import_module(_: Evaluator, node: ast.Import, scope: Scope) -> None:
    for alias in node.names:
        scope.names[alias.asname or alias.name.split(".")[0]] = External(
            alias.name if alias.asname else alias.name.split(".")[0]
        )


def import_from(evaluator: Evaluator, node: ast.ImportFrom, scope: Scope) -> None:
    """Names from the checkout's own modules are followed, all others are external."""
    dotted = node.module or ""
    own = node.level > 0 or dotted.split(".")[0] in OWN_PACKAGES or "." not in dotted
    path = evaluator.find(dotted.split(".")[-1] + ".py") if own and dotted else None
    module = evaluator.module(path) if path is not None else None
    for alias in node.names:
        if alias.name == "*":
            if module is not None:
                scope.module.stars.append(module)
        elif module is None:
            scope.names[alias.asname or alias.name] = External(f"{dotted}.{alias.name}")
        else:
            scope.names[alias.asname or alias.name] = evaluator.exported(module, alias.name)


STATEMENTS: dict[type[ast.stmt], Callable[..., None]] = {
    ast.Assign: assign,
    ast.AnnAssign: annotated,
    ast.AugAssign: augmented,
    ast.With: with_block,
    ast.If: condition,
    ast.Try: attempt,
    ast.For: loop,
    ast.Continue: next_round,
    ast.Break: end_loop,
    ast.While: while_loop,
    ast.FunctionDef: define_function,
    ast.ClassDef: define_class,
    ast.Expr: expression,
    ast.Return: give_back,
    ast.Global: declare_global,
    ast.Import: import_module,
    ast.ImportFrom: import_from,
}
