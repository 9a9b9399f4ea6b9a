"""Full fine-tunes: every checkpoint that Kohya saves is saved from the EMA too."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from kohya_ext.runtime import averaging, naming, written


def save_during_training(original: Callable[..., Any], *positional: Any, **named: Any) -> Any:
    """Kohya's saver at the end of an epoch or after a number of steps."""
    call = inspect.signature(original).bind(*positional, **named)
    on_epoch_end = call.arguments.get("on_epoch_end", True)  # sd-scripts 0.6 saves at the end of an epoch only
    return _save_both(original, call, naming.EPOCH if on_epoch_end else naming.STEP)


def save_at_end(original: Callable[..., Any], *positional: Any, **named: Any) -> Any:
    """Kohya's saver at the end of training; the accelerator is gone by then."""
    return _save_both(original, inspect.signature(original).bind(*positional, **named), naming.LAST)


def _save_both(original: Callable[..., Any], call: inspect.BoundArguments, default_name: str) -> Any:
    average = averaging.current()
    only = average is not None and average.options.save == "only"
    if average is None or not average.ready(say_so=only):
        return original(*call.args, **call.kwargs)
    result = None if only else original(*call.args, **call.kwargs)
    if not only:
        call.arguments["args"] = naming.args_of_average(call.arguments["args"], default_name)
    for saver in ("sd_saver", "diffusers_saver"):
        if saver in call.arguments:
            call.arguments[saver] = _whole_or_nothing(call.arguments[saver])
    with average.in_place(), written.with_metadata(average.metadata()):
        of_average = original(*call.args, **call.kwargs)
    return of_average if only else result


def _whole_or_nothing(saver: Callable[..., Any]) -> Callable[..., Any]:
    """The saver, writing into a folder of its own first: a run that dies in a save leaves no half file."""

    @functools.wraps(saver)
    def save(file: str, *rest: Any, **named: Any) -> Any:
        with written.moved_into_place(file) as temporary:
            return saver(temporary, *rest, **named)

    return save
