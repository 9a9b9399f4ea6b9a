"""Sample images from the raw weights, the EMA, or both, as `--ema_sample` says."""

from __future__ import annotations

import argparse
import functools
import inspect
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kohya_ext.runtime import averaging, ema_outputs, randomness
from kohya_ext.runtime.guard import unwrapped_hooks, wrapped
from kohya_ext.runtime.interruption import Abandoned, Interruption
from kohya_ext.runtime.run import run, say
from kohya_ext.spec.hooks import SAMPLE

if TYPE_CHECKING:
    from kohya_ext.runtime.average import Average


def sample_images(original: Callable[..., Any], *positional: Any, **named: Any) -> Any:
    """Kohya's sampler, whatever its family: it has parameters `args`, `epoch` and `steps` (or `global_step`)."""
    if run.joint_states is not None:
        run.joint_states.go_on()
    if run.resume is not None and run.resume.stands_still():
        return None  # of --sample_at_first: a resumed run is not at its first step
    average = averaging.current()
    if run.resume is None and (average is None or average.options.sample == "raw"):
        return original(*positional, **named)
    call = inspect.signature(original).bind(*positional, **named)
    call.apply_defaults()
    args = call.arguments["args"]
    steps = call.arguments["steps" if "steps" in call.arguments else "global_step"]
    if not _due(args, call.arguments["epoch"], steps):
        return original(*positional, **named)
    if run.resume is None:
        return _draw(original, call, average)
    return _draw_unless_asked_to_stop(functools.partial(_draw, original, call, average), run.resume.interruption)


def _draw(original: Callable[..., Any], call: inspect.BoundArguments, average: Average | None) -> Any:
    """Samples that are due, of the weights that --ema_sample names."""
    if average is None or average.options.sample == "raw" or not average.ready():
        return _abandonable(original, call)
    if average.options.sample == "both":
        _abandonable(original, call)
    call.arguments["args"] = ema_outputs.args_of_average(call.arguments["args"], ema_outputs.LAST)
    with average.in_place():
        return _abandonable(original, call)


def _draw_unless_asked_to_stop(draw: Callable[[], Any], interruption: Interruption | None) -> Any:
    """A rented machine that is taken away gives seconds: samples do not delay the state.

    What a run draws, or does not, changes none of the random numbers behind it.
    """
    states = randomness.kept()
    try:
        if interruption is None or interruption.asked_by is None:
            return draw()
    except Abandoned:
        pass
    finally:
        randomness.put_back(states)
    say("samples are skipped: a signal has asked for a state")
    return None


def _abandonable(original: Callable[..., Any], call: inspect.BoundArguments) -> Any:
    """Call Kohya's sampler, which a signal may end; not while weights are exchanged around it."""
    interruption = None if run.resume is None else run.resume.interruption
    if interruption is None:
        return original(*call.args, **call.kwargs)
    if interruption.asked_by is not None:
        raise Abandoned
    with interruption.abandonable():
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
