"""Which of Kohya's functions is wrapped by what. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kohya_ext.runtime import accelerators, checkpoints, flags, fused, gui, legacy, optimizers, sampling
from kohya_ext.runtime.guard import unwrapped_hooks, wrapped
from kohya_ext.runtime.run import run
from kohya_ext.spec.hooks import GUI_PACKAGES, TRAINING_PACKAGE

# key of the hook -> the function that gets Kohya's own as its first argument
WRAPPERS: dict[str, Callable[..., Any]] = {
    "arguments": flags.add_optimizer_arguments,
    "optimizer": optimizers.get_optimizer,
    "accelerator": accelerators.prepare_accelerator,
    "save_during": checkpoints.save_during_training,
    "save_at_end": checkpoints.save_at_end,
    "sample": sampling.sample_images,
    "fused_backward": fused.patch_fused_backward,
}

# Hooks that are called when weights have been trained, which must not be lost for a fault of ours.
DURING_TRAINING = ("save_during", "save_at_end", "sample")


def wrap_module(namespace: dict[str, Any]) -> None:
    """Wrap every hook that the module with these globals defines itself; a second call changes nothing."""
    name = namespace.get("__name__", "")
    package = name.partition(".")[0]
    if package in GUI_PACKAGES:
        gui.offer_ours(namespace)
    if package != TRAINING_PACKAGE:
        return
    try:
        legacy.look_at(namespace)
        for key, function in unwrapped_hooks(namespace):
            namespace[function] = wrapped(namespace[function], WRAPPERS[key], may_stop=key not in DURING_TRAINING)
    except Exception as error:
        run.faults.append(f"{name}: {type(error).__name__}: {error}")
        raise
