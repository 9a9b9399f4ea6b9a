"""Sample images from the raw weights, the EMA, or both, as `--ema_sample` says."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable
from typing import Any

from kohya_ext.runtime import averaging, ema_outputs
from kohya_ext.runtime.guard import unwrapped_hooks, wrapped
from kohya_ext.runtime.run import run
from kohya_ext.spec.hooks import SAMPLE


def sample_images(original: Callable[..., Any], *positional: Any, **named: Any) -> Any:
    """Kohya's sampler, whatever its family: it has parameters `args`, `epoch` and `steps` (or `global_step`)."""
    if run.resume is not None and run.resume.stands_still():
        return None  # of --sample_at_first: a resumed run is not at its first step
    average = averaging.current()
    if average is None or average.options.sample == "raw":
        return original(*positional, **named)
    call = inspect.signature(original).bind(*positional, **named)
    call.apply_defaults()
    args = call.arguments["args"]
    steps = call.arguments["steps" if "steps" in call.arguments else "global_step"]
    if not _due(args, call.arguments["epoch"], steps) or not average.ready():
        return original(*positional, **named)
    if average.options.sample == "both":
        original(*positional, **named)
    call.arguments["args"] = ema_outputs.args_of_average(args, ema_outputs.LAST)
    with average.in_place():
        return original(*call.args, **call.kwargs)


def wrap_sampler_of_script() -> None:
    """Wrap a sampler that the running script itself defines; one family (HunyuanImage) keeps it there."""
    script = vars(sys.modules["__main__"])
    for key, name in unwrapped_hooks(script):
        if key == SAMPLE.key:
            script[name] = wrapped(script[name], sample_images, may_stop=False)


def _due(args: argparse.Namespace, epoch: int | None, steps: int) -> bool:
    """Whether this call will draw: upstream's own early returns, so that weights are not exchanged at every step."""
    if steps == 0:
        return bool(getattr(args, "sample_at_first", False))
    if args.sample_every_n_epochs is not None:
        return epoch is not None and epoch % args.sample_every_n_epochs == 0
    if args.sample_every_n_steps is not None:
        return epoch is None and steps % args.sample_every_n_steps == 0
    return False
