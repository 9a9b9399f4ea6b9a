"""`--optimizer_type` with one of ours, where an optimizer's weights begin to be averaged, and `--fused_backward_pass`.

In a fused backward pass a parameter is stepped, averaged and freed as soon as its gradient is there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from kohya_ext.runtime import averaging, guard, legacy, options, telemetry
from kohya_ext.runtime.run import stop
from kohya_ext.spec.optimizers import ours

if TYPE_CHECKING:
    from kohya_ext.runtime.average import Average


def get_optimizer(original: Callable[..., Any], args: argparse.Namespace, *rest: Any, **named: Any) -> Any:
    """Kohya's `get_optimizer(args, trainable_params) -> (name, args, optimizer)`, which also knows ours."""
    if legacy.found():
        return original(args, *rest, **named)
    options.check(args)
    if guard.asks_for_us(args):
        guard.stop_at_faults()
        if averaging.current() is None and options.read(args) is not None:
            stop("--enable_ema cannot be used: prepare_accelerator, where the EMA starts, was not found in this Kohya")
    optimizer = ours(args.optimizer_type)
    with nullcontext() if optimizer is None else _as_dotted_path(args, optimizer.path):
        result = original(args, *rest, **named)
    # trainable_params may be a one-shot iterator and is used up by now: the optimizer knows its parameters
    averaging.follow(result[-1])
    telemetry.follow(result[-1])
    telemetry.count_skips(result[-1])
    return result


@contextmanager
def _as_dotted_path(args: argparse.Namespace, path: str) -> Iterator[None]:
    """Kohya resolves `module.Class` in every release; its fused flag insists on Adafactor, so it is out of sight."""
    typed, fused = args.optimizer_type, getattr(args, "fused_backward_pass", None)
    args.optimizer_type = path
    if fused is not None:
        args.fused_backward_pass = False
    try:
        yield
    finally:
        args.optimizer_type = typed
        if fused is not None:
            args.fused_backward_pass = fused


def patch_fused_backward(original: Callable[..., Any], optimizer: Any) -> Any:
    """Kohya's `patch_adafactor_fused(optimizer)`: gives the (accelerated) optimizer a `step_param(tensor, group)`."""
    inner = getattr(optimizer, "optimizer", optimizer)
    result = None
    if hasattr(inner, "step_param"):
        # AdaCoor's own looks the group up again: the one in the caller's hand is stale once a state has been loaded
        optimizer.step_param = inner.step_param
    else:
        result = original(optimizer)
    optimizer.step_param = telemetry.around(optimizer.step_param)
    for average in averaging.kept():
        optimizer.step_param = _then_average(optimizer.step_param, average)
    return result


def _then_average(step_param: Callable[..., None], average: Average) -> Callable[..., None]:
    def step_and_average(parameter: Any, group: dict[str, Any]) -> None:
        average.before_step_of(parameter)
        step_param(parameter, group)
        average.after_step_of(parameter)

    return step_and_average
