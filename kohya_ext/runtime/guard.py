"""An error of ours in a wrapper must not harm a run: Kohya's own function is used instead.

Only a run that asked for something of ours is stopped by such a fault, because without us it would train something else
than was asked for.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import kohya_ext
from kohya_ext.core import shell
from kohya_ext.runtime.run import run, say, stop, warn_again_at_end
from kohya_ext.spec.flags import (
    EMA,
    ENABLE_EMA,
    EXACT_RESUME,
    LOG_EVERY,
    RESUME,
    SAVE_ON_SIGNAL,
    TELEMETRY,
    VALIDATE,
    VALIDATION,
    VALIDATION_SPLIT,
)
from kohya_ext.spec.hooks import HOOKS, Definition, hooks_in
from kohya_ext.spec.optimizers import ours

MARK = "__kohya_ext__"
# feature -> what turns it on
SWITCHES = {
    EMA: (ENABLE_EMA.key,),
    TELEMETRY: (LOG_EVERY.key,),
    VALIDATION: (VALIDATE.key, VALIDATION_SPLIT.key),
    RESUME: (EXACT_RESUME.key, SAVE_ON_SIGNAL.key),
}


class Original:
    """A function of Kohya's as our wrappers see it: it remembers its last result, and what its last call raised."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.__wrapped__ = function  # inspect.signature looks through
        self.succeeded = False
        self.result: Any = None
        self.error: BaseException | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function, and note what becomes of it."""
        self.error = None
        try:
            self.result = self.__wrapped__(*args, **kwargs)
        except BaseException as error:
            self.error = error
            raise
        self.succeeded = True
        return self.result


def unwrapped_hooks(namespace: dict[str, Any]) -> list[tuple[str, str]]:
    """Key and function's name of every hook that the module with these globals defines itself, not yet wrapped."""
    here = {
        name: value
        for name in {name for hook in HOOKS for name in hook.functions}
        if inspect.isfunction(value := namespace.get(name)) and value.__module__ == namespace["__name__"]
    }
    found = hooks_in({name: _definition(function) for name, function in here.items()})
    return [(hook.key, name) for hook, name in found if not hasattr(here[name], MARK)]


def _definition(function: FunctionType) -> Definition:
    """As `checkout.scan` reads it from the text: the parameters, and the names that the code refers to."""
    function = inspect.unwrap(function)
    return Definition(frozenset(inspect.signature(function).parameters), frozenset(names_in(function.__code__)))


def names_in(code: CodeType) -> Iterator[str]:
    """The global names and attributes that a function's code refers to, the functions inside it included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names_in(constant)


def wrapped(function: Callable[..., Any], wrapper: Callable[..., Any], *, may_stop: bool = True) -> Callable[..., Any]:
    """`function` as `wrapper(function, *args, **kwargs)`, guarded and marked. may_stop: see `guarded`."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return guarded(wrapper, function, args, kwargs, may_stop=may_stop)

    setattr(call, MARK, f"{wrapper.__module__.rpartition('.')[2]}:{wrapper.__name__}")
    return call


def guarded(
    wrapper: Callable[..., Any],
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    may_stop: bool = True,
) -> Any:
    """`wrapper(function, *args, **kwargs)`. A fault of the wrapper's own gives the result of `function` instead.

    What `function` raises passes through, and it is not called a second time. may_stop: before training, such a fault
    ends a run that asked for something of ours (SystemExit); at a save it does not, the trained weights come first.
    """
    original = Original(function)
    try:
        return wrapper(original, *args, **kwargs)
    except Exception as error:
        if original.error is not None and original.error in (error, error.__cause__):
            raise
        fault = f"{function.__name__}: {type(error).__name__}: {error}"
        given = next((value for value in (*args, *kwargs.values()) if isinstance(value, argparse.Namespace)), None)
        if not may_stop:
            warn_again_at_end(f"internal error (a bug), please report it: {fault}. Kohya's own function did the work")
        elif asks_for_us(given):
            stop(f"internal error (a bug), please report it: {fault}. Without --enable_ema and AdaCoor the run works")
        else:
            say(
                f"internal error (a bug), please report it: {fault}. Kohya continues as if kohya_ext were not installed"
            )
    return original.result if original.succeeded else function(*args, **kwargs)


def asks_for_us(args: argparse.Namespace | None = None) -> bool:
    """Whether this run was told to do something of ours: from `args` where there are any, else the command line.

    A flag that is the fork's own asks for nothing of ours.
    """
    switches = [name for feature, names in SWITCHES.items() if feature not in run.yielded for name in names]
    if args is not None:
        return ours(getattr(args, "optimizer_type", None)) is not None or any(
            getattr(args, name, None) for name in switches
        )
    options = {word.partition("=")[0] for word in sys.argv}
    optimizers = re.findall(r"^--optimizer_type[=\n](.+)", "\n".join(sys.argv), re.MULTILINE)
    named = bool(optimizers) and ours(optimizers[-1]) is not None
    return named or any(f"--{name}" in options for name in switches)


def stop_at_faults() -> None:
    """End a run that asks for something of ours where kohya_ext is incomplete, or not all of Kohya could be wrapped."""
    damaged = damaged_files()
    if damaged:
        more = f" and {len(damaged) - 3} more" if len(damaged) > 3 else ""
        stop(
            "--enable_ema and AdaCoor cannot be used, kohya_ext is damaged or mixes two versions "
            f"({', '.join(damaged[:3])}{more}); {shell.install_again(sys.executable)}"
        )
    if run.faults:
        stop(
            "--enable_ema and AdaCoor cannot be used, kohya_ext could not hook into all of Kohya "
            f"({'; '.join(run.faults)}); {shell.install_again(sys.executable)}, and report this if it happens again"
        )


def damaged_files() -> list[str]:
    """Our own files that are not as they were installed; none where there is no record of an installation."""
    from kohya_ext.core import record  # here: every start of the GUI and of a worker would pay for it

    return record.damaged(Path(kohya_ext.__file__).parent.parent)
