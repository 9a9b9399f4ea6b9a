"""`--optimizer_type AdaCoor`, and the place where an optimizer's weights begin to be averaged."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kohya_ext.runtime import averaging, legacy
from kohya_ext.runtime.report import stop
from kohya_ext.upstream import ADACOOR, ADACOOR_PATH

_NAMES = (ADACOOR.lower(), ADACOOR_PATH.lower())


def is_adacoor(args: argparse.Namespace) -> bool:
    """True when `--optimizer_type` names our optimizer, in any case and by either of its names."""
    return str(getattr(args, "optimizer_type", None) or "").lower() in _NAMES


def get_optimizer(original: Callable[..., Any], args: argparse.Namespace, *rest: Any, **named: Any) -> Any:
    """Kohya's `get_optimizer(args, trainable_params) -> (name, args, optimizer)`, which also knows AdaCoor."""
    if legacy.found():
        return original(args, *rest, **named)
    ours = is_adacoor(args)
    if ours:
        _check_adacoor(args)
    with _as_dotted_path(args) if ours else _unchanged():
        result = original(args, *rest, **named)
    # trainable_params may be a one-shot iterator and is used up by now: the optimizer knows its parameters
    averaging.follow(result[-1])
    return result


def _check_adacoor(args: argparse.Namespace) -> None:
    if getattr(args, "deepspeed", False):
        stop("AdaCoor does not work with DeepSpeed, which replaces the parameters it was given; leave one out")
    if not getattr(args, "fused_backward_pass", False):
        return
    if int(getattr(args, "gradient_accumulation_steps", 1) or 1) != 1:
        stop("--fused_backward_pass steps in the backward pass: set --gradient_accumulation_steps 1")
    if getattr(args, "mixed_precision", None) == "fp16":
        stop(
            "--fused_backward_pass with AdaCoor cannot undo the loss scaling of fp16: use --mixed_precision bf16 or no"
        )


@contextmanager
def _as_dotted_path(args: argparse.Namespace) -> Iterator[None]:
    """Kohya resolves `module.Class` in every release; its fused flag insists on Adafactor, so it is out of sight."""
    typed, fused = args.optimizer_type, getattr(args, "fused_backward_pass", None)
    args.optimizer_type = ADACOOR_PATH
    if fused is not None:
        args.fused_backward_pass = False
    try:
        yield
    finally:
        args.optimizer_type = typed
        if fused is not None:
            args.fused_backward_pass = fused


@contextmanager
def _unchanged() -> Iterator[None]:
    yield
