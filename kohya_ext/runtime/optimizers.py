"""`--optimizer_type` with one of ours, and the place where an optimizer's weights begin to be averaged."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from kohya_ext.runtime import averaging, guard, legacy, options, skips, telemetry
from kohya_ext.runtime.report import stop
from kohya_ext.spec.optimizers import ours


def get_optimizer(original: Callable[..., Any], args: argparse.Namespace, *rest: Any, **named: Any) -> Any:
    """Kohya's `get_optimizer(args, trainable_params) -> (name, args, optimizer)`, which also knows ours."""
    if legacy.found():
        return original(args, *rest, **named)
    options.check(args)
    if guard.asks_for_us(args):
        guard.stop_at_faults()
        if averaging.current() is None and options.read(args) is not None:
            stop("--enable_ema cannot be honoured: prepare_accelerator of this Kohya was not met, where the EMA begins")
    optimizer = ours(args.optimizer_type)
    with nullcontext() if optimizer is None else _as_dotted_path(args, optimizer.path):
        result = original(args, *rest, **named)
    # trainable_params may be a one-shot iterator and is used up by now: the optimizer knows its parameters
    averaging.follow(result[-1])
    telemetry.follow(result[-1])
    skips.follow(result[-1])
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
