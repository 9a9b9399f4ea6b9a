"""Kohya is never worse off for us: a fault of ours in a wrapper leaves the run with Kohya's own function.

Only a run that asked for something of ours is stopped by such a fault, because without us it would train something else
than was asked for.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

from kohya_ext.runtime.report import say, stop
from kohya_ext.upstream import ADACOOR_NAMES, EMA_SWITCH, LOG_SWITCH

MARK = "__kohya_ext__"

# What could not be wrapped, each with its reason. A run that asks for something of ours stops at these.
faults: list[str] = []


class Original:
    """A function of Kohya's as our wrappers see it: it remembers what came of its last call."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.__wrapped__ = function  # inspect.signature looks through
        self.called = False
        self.result: Any = None
        self.error: BaseException | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.called, self.error = True, None
        try:
            self.result = self.__wrapped__(*args, **kwargs)
        except BaseException as error:
            self.error = error
            raise
        return self.result


def defined_here(namespace: dict[str, Any], function: str) -> bool:
    """Whether the module with these globals defines `function` itself, and it is not wrapped yet."""
    value = namespace.get(function)
    return inspect.isfunction(value) and value.__module__ == namespace["__name__"] and not hasattr(value, MARK)


def wrapped(function: Callable[..., Any], wrapper: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as `wrapper(function, *args, **kwargs)`, guarded and marked."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return guarded(wrapper, function, args, kwargs)

    setattr(call, MARK, f"{wrapper.__module__.rpartition('.')[2]}:{wrapper.__name__}")
    return call


def guarded(
    wrapper: Callable[..., Any], function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """`wrapper(function, *args, **kwargs)`. A fault of the wrapper's own gives the result of `function` instead.

    What `function` raises passes through, and it is not called a second time. Raises SystemExit when the wrapper stops
    the run on purpose, and when it fails in a run that asked for something of ours.
    """
    original = Original(function)
    try:
        return wrapper(original, *args, **kwargs)
    except Exception as error:
        if original.error is not None:
            raise
        fault = f"{function.__name__}: {type(error).__name__}: {error}"
        given = next((value for value in (*args, *kwargs.values()) if isinstance(value, argparse.Namespace)), None)
        if asks_for_us(given):
            stop(f"internal error (a bug), please report it: {fault}. Without --enable_ema and AdaCoor the run works")
        say(f"internal error (a bug), please report it: {fault}. Kohya goes on as if kohya_ext were not installed")
    return original.result if original.called else function(*args, **kwargs)


def asks_for_us(args: argparse.Namespace | None = None) -> bool:
    """Whether this run was told to do something of ours: from `args` where there are any, else the command line."""
    if args is not None:
        named = str(getattr(args, "optimizer_type", None) or "").lower() in ADACOOR_NAMES
        return named or bool(getattr(args, EMA_SWITCH, None)) or bool(getattr(args, LOG_SWITCH, None))
    options = {word.partition("=")[0] for word in sys.argv}
    values = {word.rpartition("=")[2].lower() for word in sys.argv}
    return bool(options & {f"--{EMA_SWITCH}", f"--{LOG_SWITCH}"}) or bool(values.intersection(ADACOOR_NAMES))


def stop_at_faults() -> None:
    """End a run that asks for something of ours where not all of Kohya could be wrapped."""
    if faults:
        stop(
            f"kohya_ext could not hook into all of Kohya ({'; '.join(faults)}), so --enable_ema and AdaCoor cannot be "
            "honoured; `kohya-ext doctor` says more"
        )
