"""Evaluates the modules of a checkout as text: no line of them is imported or run.

It follows what matters for a form: assignments, calls of the checkout's own functions and classes, conditions. Whatever
needs a running program (files, the network, other packages) becomes `Unknown`, never a guess. Conditions that cannot be
decided are followed both ways, and everything made there is marked as uncertain.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

from kohya_ext.pysource.calls import Calls
from kohya_ext.pysource.values import (
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
    Value,
    plain,
    truth,
)

OWN_PACKAGES = ("kohya_gui", "library")


class Interpreter(Calls):
    """Interprets modules of one checkout; statements that have no method are skipped, expressions are unknown."""

    def value(self, node: ast.expr, scope: Scope) -> Value:
        """The value of an expression; whatever goes wrong within it makes it unknown.

        Raises BudgetExceeded on sources beyond any release's size or depth.
        """
        self.budget.step()
        try:
            visit = getattr(self, f"visit_{type(node).__name__}", None)
            return Unknown(type(node).__name__) if visit is None else visit(node, scope)
        except Signal:
            raise
        except (RecursionError, MemoryError) as error:
            raise BudgetExceeded from error
        except Exception as error:  # of an operation on values that nobody has foreseen
            return Unknown(type(error).__name__)

    def run_block(self, body: Sequence[ast.stmt], scope: Scope) -> None:
        """Runs statements in order; kinds that cannot matter are skipped."""
        for statement in body:
            self.budget.step()
            visit = getattr(self, f"visit_{type(statement).__name__}", None)
            if visit is None:
                continue
            try:
                visit(statement, scope)
            except Signal:
                raise
            except Exception as error:  # a name may be left as it was: nothing that follows can be trusted
                raise BudgetExceeded from error

    def visit_Assign(self, node: ast.Assign, scope: Scope) -> None:
        """Binds the value to every target."""
        value = self.value(node.value, scope)
        for target in node.targets:
            self.bind(target, value, scope)

    def visit_AnnAssign(self, node: ast.AnnAssign, scope: Scope) -> None:
        """Binds the value, where there is one."""
        if node.value is not None:
            self.bind(node.target, self.value(node.value, scope), scope)

    def visit_AugAssign(self, node: ast.AugAssign, scope: Scope) -> None:
        """Binds what the operator makes of the old value and the new one."""
        if isinstance(node.target, (ast.Name, ast.Attribute)):
            before, change = plain(self.value(node.target, scope)), plain(self.value(node.value, scope))
            self.bind(node.target, self.combine(node.op, before, change), scope)

    def visit_With(self, node: ast.With, scope: Scope) -> None:
        """Binds the context managers themselves, then runs the body."""
        for item in node.items:
            value = self.value(item.context_expr, scope)
            if item.optional_vars is not None:
                self.bind(item.optional_vars, value, scope)
        self.run_block(node.body, scope)

    def visit_If(self, node: ast.If, scope: Scope) -> None:
        """Runs the branch that is decided; where neither is, both with doubt, or none where a command depends on it."""
        decided = truth(self.value(node.test, scope))
        if decided is not None:
            self.run_block(node.body if decided else node.orelse, scope)
            return
        if self.world.complete and scope.names is not scope.module.names:  # not while a module loads
            raise Undecidable(f"{scope.module.path}:{node.lineno}")
        for branch in (node.orelse, node.body):
            self._run_doubtful(branch, scope)

    def _run_doubtful(self, body: Sequence[ast.stmt], scope: Scope) -> None:
        self.uncertain += 1
        try:
            self.run_block(body, scope)
        except Returned:
            scope.may_have_returned = True
        finally:
            self.uncertain -= 1

    def visit_Try(self, node: ast.Try, scope: Scope) -> None:
        """The body is what normally happens; what an exception would change is not known here."""
        self.run_block(node.body, scope)
        self.run_block(node.finalbody, scope)

    def visit_For(self, node: ast.For, scope: Scope) -> None:
        """Runs the body for every item of a known list; once with doubt otherwise."""
        items = plain(self.value(node.iter, scope))
        jumps = self.fact("jumps", node, lambda: _holds(node, ast.Break, ast.Continue))
        if not isinstance(items, (list, tuple)) or (jumps and not self.world.complete):
            self.bind(node.target, Unknown("loop"), scope)
            self._run_doubtful(node.body, scope)
            return
        for item in tuple(items):  # the body may change the list
            self.budget.step()
            self.bind(node.target, item, scope)
            try:
                self.run_block(node.body, scope)
            except NextRound:
                continue
            except LoopEnded:
                return

    def visit_Continue(self, _: ast.Continue, __: Scope) -> None:
        """Goes on with the next round, where it is certain that this is reached."""
        if self.world.complete and not self.uncertain:
            raise NextRound

    def visit_Break(self, _: ast.Break, __: Scope) -> None:
        """Ends the loop, where it is certain that this is reached."""
        if self.world.complete and not self.uncertain:
            raise LoopEnded

    def visit_While(self, node: ast.While, scope: Scope) -> None:
        """Runs the body once with doubt: how often is not decided here."""
        self._run_doubtful(node.body, scope)

    def visit_FunctionDef(self, node: ast.FunctionDef, scope: Scope) -> None:
        """Binds the function; its body waits for a call."""
        scope.names[node.name] = Function(node, scope)

    def visit_ClassDef(self, node: ast.ClassDef, scope: Scope) -> None:
        """Binds the class; its body waits for an instance."""
        scope.names[node.name] = ClassValue(node, scope.module)

    def visit_Expr(self, node: ast.Expr, scope: Scope) -> None:
        """Evaluates an expression for what it does."""
        self.value(node.value, scope)

    def visit_Return(self, node: ast.Return, scope: Scope) -> None:
        """Ends the function with the value, by an exception."""
        raise Returned(None if node.value is None else self.value(node.value, scope))

    def visit_Global(self, node: ast.Global, scope: Scope) -> None:
        """Names that are bound in the module from here on."""
        scope.declared_global.update(node.names)

    def visit_Import(self, node: ast.Import, scope: Scope) -> None:
        """Binds a module of outside the checkout."""
        for alias in node.names:
            scope.names[alias.asname or alias.name.split(".")[0]] = External(
                alias.name if alias.asname else alias.name.split(".")[0]
            )

    def visit_ImportFrom(self, node: ast.ImportFrom, scope: Scope) -> None:
        """Names from the checkout's own modules are followed, all others are external."""
        dotted = node.module or ""
        own = node.level > 0 or dotted.split(".")[0] in OWN_PACKAGES or "." not in dotted
        path = self.find(dotted.split(".")[-1] + ".py") if own and dotted else None
        module = self.module(path) if path is not None else None
        for alias in node.names:
            if alias.name == "*":
                if module is not None:
                    scope.module.stars.append(module)
            elif module is None:
                scope.names[alias.asname or alias.name] = External(f"{dotted}.{alias.name}")
            else:
                scope.names[alias.asname or alias.name] = self.exported(module, alias.name)


def _holds(node: ast.AST, *kinds: type[ast.AST]) -> bool:
    return any(isinstance(inner, kinds) for inner in ast.walk(node))
