"""Which of Kohya's functions is wrapped by what. Light: a wrapper's module is imported at its first call."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

from kohya_ext.runtime import gui, legacy
from kohya_ext.upstream import GUI_PACKAGES, HOOKS, OWN_SAMPLER, TRAIN_UTIL, TRAINING_PACKAGE

MARK = "__kohya_ext__"

# key of the hook -> "module:function"; the function gets Kohya's own as its first argument
WRAPPERS = {
    "arguments": "flags:add_optimizer_arguments",
    "optimizer": "optimizers:get_optimizer",
    "accelerator": "accelerators:prepare_accelerator",
    "save_during": "checkpoints:save_during_training",
    "save_at_end": "checkpoints:save_at_end",
    "sample": "sampling:sample_images",
    "fused_backward": "fused:patch_fused_backward",
}


def wrap_module(namespace: dict[str, Any]) -> None:
    """Wrap every hook that the module with these globals defines itself; a second call changes nothing."""
    name = namespace.get("__name__", "")
    package = name.partition(".")[0]
    if package in GUI_PACKAGES:
        gui.offer_adacoor(namespace)
    if package != TRAINING_PACKAGE:
        return
    legacy.look_at(namespace)
    for key, function in _hooks_of(namespace):
        namespace[function] = _wrapped(namespace[function], WRAPPERS[key])


def wrap_sampler_of_script() -> None:
    """Wrap a sampler that the running script itself defines; one family (HunyuanImage) keeps it there."""
    script = vars(sys.modules["__main__"])
    if _defined_here(script, OWN_SAMPLER) and _is_sampler(script[OWN_SAMPLER]):
        script[OWN_SAMPLER] = _wrapped(script[OWN_SAMPLER], WRAPPERS["sample"])


def _hooks_of(namespace: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The key and the function's name of every hook that is this module's own and not wrapped yet."""
    older_count = namespace["__name__"].rpartition(".")[2] == TRAIN_UTIL
    for hook in HOOKS:
        names = hook.functions if older_count else hook.functions[:1]
        function = next((name for name in names if name in namespace), None)
        if function is not None and _defined_here(namespace, function):
            yield hook.key, function
    if _defined_here(namespace, OWN_SAMPLER) and _is_sampler(namespace[OWN_SAMPLER]):
        yield "sample", OWN_SAMPLER


def _defined_here(namespace: dict[str, Any], function: str) -> bool:
    value = namespace.get(function)
    return inspect.isfunction(value) and value.__module__ == namespace["__name__"] and not hasattr(value, MARK)


def _is_sampler(function: Callable[..., Any]) -> bool:
    """False for the thin `sample_images(*args, **kwargs)` of each family, which ends in the common one anyway."""
    return {"accelerator", "args", "epoch"} <= set(inspect.signature(function).parameters)


def _wrapped(original: Callable[..., Any], target: str) -> Callable[..., Any]:
    module_name, _, function_name = target.partition(":")

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        module = importlib.import_module(f"kohya_ext.runtime.{module_name}")
        return getattr(module, function_name)(original, *args, **kwargs)

    setattr(wrapper, MARK, target)
    return wrapper
