"""Which of Kohya's functions is wrapped by what. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from kohya_ext.runtime import accelerators, checkpoints, flags, fused, gui, legacy, optimizers, sampling
from kohya_ext.runtime.guard import defined_here, faults, wrapped
from kohya_ext.spec.hooks import GUI_PACKAGES, HOOKS, OWN_SAMPLER, TRAIN_UTIL, TRAINING_PACKAGE

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
        gui.offer_adacoor(namespace)
    if package != TRAINING_PACKAGE:
        return
    try:
        legacy.look_at(namespace)
        for key, function in _hooks_of(namespace):
            namespace[function] = wrapped(namespace[function], WRAPPERS[key], may_stop=key not in DURING_TRAINING)
    except Exception as error:
        faults.append(f"{name}: {type(error).__name__}: {error}")
        raise


def _hooks_of(namespace: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The key and the function's name of every hook that is this module's own and not wrapped yet."""
    older_count = namespace["__name__"].rpartition(".")[2] == TRAIN_UTIL
    for hook in HOOKS:
        names = hook.functions if older_count else hook.functions[:1]
        function = next((name for name in names if name in namespace), None)
        if function is not None and defined_here(namespace, function):
            yield hook.key, function
    if defined_here(namespace, OWN_SAMPLER) and sampling.is_sampler(namespace[OWN_SAMPLER]):
        yield "sample", OWN_SAMPLER
