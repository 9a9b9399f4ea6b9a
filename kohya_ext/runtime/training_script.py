"""The function of a script that trains, in its frame: its counters read and set, its loops entered in the middle.

All of sd-scripts' training functions have had the same form since 2023: `for epoch in range(...)`, in it `for step,
batch in enumerate(train_dataloader)`, and a `global_step` that they count up. They keep their place in local variables,
which nothing passed in from outside can reach. So a resumed run enters the two loops at the right count, through the
`range` and `enumerate` that this function alone sees, and its local variables are set by the interpreter's own
interface for debuggers. Every value is read again after it was set.
"""

from __future__ import annotations

import builtins
import ctypes
import dis
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

COUNTERS = ("global_step", "epoch", "train_dataloader")
_WRITE_THROUGH = sys.version_info >= (3, 13)  # of `frame.f_locals`


class TrainingScript:
    """One running function of a script."""

    def __init__(self, frame: FrameType) -> None:
        self.frame = frame

    @classmethod
    def around(cls, frame: FrameType | None) -> TrainingScript | None:
        """The innermost training function that `frame` was called from, or is itself; None where there is none."""
        while frame is not None and not _trains(frame.f_code):
            frame = frame.f_back
        return None if frame is None else cls(frame)

    def values(self, *names: str) -> dict[str, Any]:
        """The local variables of these names that have a value now."""
        variables = self.frame.f_locals
        found = {name: variables[name] for name in names if name in variables}
        self._forget(variables)
        return found

    def put(self, **values: Any) -> None:
        """Set local variables of the function. Raises RuntimeError where one has not taken its value."""
        variables = self.frame.f_locals
        for name, value in values.items():
            variables[name] = value
        if not _WRITE_THROUGH:
            ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(self.frame), ctypes.c_int(0))
        self._forget(variables)
        now = self.values(*values)
        wrong = [name for name, value in values.items() if now.get(name) is not value]
        if wrong:
            raise RuntimeError(f"this Python does not let {', '.join(wrong)} be set")

    @staticmethod
    def _forget(variables: Any) -> None:
        """Before Python 3.13 they are a copy, which would keep tensors and models alive."""
        if not _WRITE_THROUGH:
            variables.clear()

    def has(self, name: str) -> bool:
        """Whether the function has a variable of this name."""
        return name in _names(self.frame.f_code)

    def enter_loops(
        self, epoch: Callable[[range], int], batch: Callable[[Any], int], entered: Callable[[Any], None]
    ) -> Callable[[], None]:
        """Let the loop over epochs begin at `epoch(its range)`, and the first over batches count from `batch(loader)`.

        `entered(loader)` is called when the latter has asked the loader for its iterator. Returns a function
        that ends this, to be called when both have been entered.
        """
        calls = epoch_loops(self.frame.f_code)
        names = self.frame.f_globals

        def range_of_epochs(*bounds: Any) -> range:
            made = builtins.range(*bounds)
            here = sys._getframe(1)
            if here is self.frame and any(first <= here.f_lasti < end for first, end in calls):
                return builtins.range(epoch(made), made.stop)
            return made

        def enumerate_from(things: Any, start: int = 0) -> Any:
            if sys._getframe(1) is not self.frame or start != 0:
                return builtins.enumerate(things, start)
            made = builtins.enumerate(things, batch(things))
            entered(things)
            return made

        before = {name: names[name] for name in ("range", "enumerate") if name in names}
        names.update(range=range_of_epochs, enumerate=enumerate_from)

        def end() -> None:
            for name in ("range", "enumerate"):
                if name in before:
                    names[name] = before[name]
                else:
                    names.pop(name, None)

        return end


def can_be_entered(code: CodeType) -> bool:
    """Whether a function's loops have the form that `enter_loops` needs."""
    return _trains(code) and len(epoch_loops(code)) == 1 and {"range", "enumerate"} <= set(code.co_names)


def _trains(code: CodeType) -> bool:
    return _names(code).issuperset(COUNTERS)


def _names(code: CodeType) -> set[str]:
    return {*code.co_varnames, *code.co_cellvars}


def epoch_loops(code: CodeType) -> list[tuple[int, int]]:
    """Where `for epoch in f(...)` calls: the offset of each such call's instruction, and that of the next one."""
    found = []
    steps = [step for step in dis.get_instructions(code) if step.opname not in ("CACHE", "EXTENDED_ARG", "NOP")]
    for call, get, advance, store in _fours(steps):
        if (
            call.opname.startswith(("CALL", "PRECALL"))
            and get.opname == "GET_ITER"
            and advance.opname == "FOR_ITER"
            and store.opname.startswith(("STORE_FAST", "STORE_DEREF"))
            and (store.argval[0] if isinstance(store.argval, tuple) else store.argval) == COUNTERS[1]
        ):
            found.append((call.offset, get.offset))
    return found


def _fours(steps: list[dis.Instruction]) -> Iterator[tuple[dis.Instruction, ...]]:
    return zip(steps, steps[1:], steps[2:], steps[3:], strict=False)
