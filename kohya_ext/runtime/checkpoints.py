"""Full fine-tunes: every checkpoint that Kohya saves is saved from the EMA too."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from kohya_ext.runtime import averaging, ema_outputs, safe_save, telemetry
from kohya_ext.runtime.run import run
from kohya_ext.runtime.safe_save import unwinding_on_sigterm

if TYPE_CHECKING:
    from kohya_ext.runtime.average import Average


def save_during_training(original: Callable[..., Any], *positional: Any, **named: Any) -> Any:
    """Kohya's saver at the end of an epoch or after a number of steps."""
    call = inspect.signature(original).bind(*positional, **named)
    on_epoch_end = call.arguments.get("on_epoch_end", True)  # sd-scripts 0.6 saves at the end of an epoch only
    return _save_both(original, call, ema_outputs.EPOCH if on_epoch_end else ema_outputs.STEP)


def save_at_end(original: Callable[..., Any], *positional: Any, **named: Any) -> Any:
    """Kohya's saver at the end of training; the accelerator is gone by then."""
    return _save_both(original, inspect.signature(original).bind(*positional, **named), ema_outputs.LAST)


def _save_both(original: Callable[..., Any], call: inspect.BoundArguments, default_name: str) -> Any:
    telemetry.report_skips()
    first = averaging.current()
    only = first is not None and first.options.save == "only"
    savers: dict[str, Any] = {
        name: call.arguments[name] for name in ("sd_saver", "diffusers_saver") if name in call.arguments
    }
    call.arguments.update({name: _noted(_raw_in_place(saver), "raw") for name, saver in savers.items()})
    ready = ema_outputs.ready_ones(say_so=only)
    raw: Callable[[], Any] = functools.partial(original, *call.args, **call.kwargs)
    if ready and only:
        instead = inspect.BoundArguments(call.signature, call.arguments.copy())
        raw = functools.partial(_save_average, original, instead, default_name, ready.pop(0), savers, only=True)
    # Kohya's function ends with the state: once that is there, nothing of this step is saved again after a resume
    state_last = run.resume is not None and default_name != ema_outputs.LAST
    result = None if state_last else raw()
    for average in ready:
        twin = inspect.BoundArguments(call.signature, call.arguments.copy())
        twin.arguments["args"] = ema_outputs.args_of_average(call.arguments["args"], default_name, average.suffix)
        _save_average(original, twin, default_name, average, savers, only=False)
    return raw() if state_last else result


def _save_average(
    original: Callable[..., Any],
    call: inspect.BoundArguments,
    default_name: str,
    average: Average,
    savers: dict[str, Callable[..., Any]],
    *,
    only: bool,
) -> Any:
    """Save the EMA by `savers`; where that fails, say so, and with `--ema_save only` save the raw weights instead."""
    call.arguments.update({name: _noted(_whole_or_nothing(saver), average.weights) for name, saver in savers.items()})
    # sd-scripts 0.6 gets no savers: it writes the files itself, in place
    whole = nullcontext() if savers else safe_save.whole_files()
    try:
        with unwinding_on_sigterm(), average.saving(), whole, safe_save.with_metadata(average.metadata()):
            result = original(*call.args, **call.kwargs)
    except Exception as error:  # a full disk, mostly
        if average.swapped:
            raise
        safe_save.tell_failure(call.arguments["args"].output_name or default_name, error, only=only)
        if not only:
            return None
        result = None
        instead = {name: _whole_or_nothing(_raw_in_place(saver)) for name, saver in savers.items()}
        call.arguments.update({name: _noted(saver, average.weights) for name, saver in instead.items()})
        whole = nullcontext() if savers else safe_save.whole_files()
        with safe_save.kept_going(unless=default_name == ema_outputs.LAST), unwinding_on_sigterm(), whole:
            result = original(*call.args, **call.kwargs)
        return result
    average.saved(last=default_name == ema_outputs.LAST)
    return result


def _noted(saver: Callable[..., Any], weights: str) -> Callable[..., Any]:
    """The saver, of whose files `--save_best` keeps the best."""
    if run.validation is None or run.validation.best is None:
        return saver
    noting: Callable[..., Any] = run.validation.best.noting(saver, weights)
    return noting


def _raw_in_place(saver: Callable[..., Any]) -> Callable[..., Any]:
    """The saver, to which the raw weights are shown in a form that can be written."""

    @functools.wraps(saver)
    def save(*given: Any, **named: Any) -> Any:
        with averaging.raw_for_saving():
            return saver(*given, **named)

    return save


def _whole_or_nothing(saver: Callable[..., Any]) -> Callable[..., Any]:
    """The saver, writing into a folder of its own first: a run that dies in a save leaves no half file."""

    @functools.wraps(saver)
    def save(file: str, *rest: Any, **named: Any) -> Any:
        with safe_save.moved_into_place(file) as temporary:
            return saver(temporary, *rest, **named)

    return save
