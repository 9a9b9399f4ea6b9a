"""Which of Kohya's training functions is wrapped by what.

Loaded with the training code, and not by the GUI of v23 and later, which has none of it in its process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kohya_ext.runtime import accelerators, checkpoints, legacy, optimizers, options, sampling
from kohya_ext.runtime.guard import unwrapped_hooks, wrapped
from kohya_ext.runtime.run import run

# key of the hook -> the function that gets Kohya's own as its first argument
WRAPPERS: dict[str, Callable[..., Any]] = {
    "arguments": options.add_optimizer_arguments,
    "optimizer": optimizers.get_optimizer,
    "accelerator": accelerators.prepare_accelerator,
    "save_during": checkpoints.save_during_training,
    "save_at_end": checkpoints.save_at_end,
    "sample": sampling.sample_images,
    "fused_backward": optimizers.patch_fused_backward,
}

# Hooks that are called when weights have been trained, which must not be lost for a fault of ours.
DURING_TRAINING = ("save_during", "save_at_end", "sample")


def wrap_training(namespace: dict[str, Any]) -> None:
    """Wrap every hook that a module of the training code defines itself; a second call changes nothing."""
    try:
        legacy.look_at(namespace)
        for key, function in unwrapped_hooks(namespace):
            namespace[function] = wrapped(namespace[function], WRAPPERS[key], may_stop=key not in DURING_TRAINING)
    except Exception as error:
        run.faults.append(f"{namespace.get('__name__', '')}: {type(error).__name__}: {error}")
        raise
