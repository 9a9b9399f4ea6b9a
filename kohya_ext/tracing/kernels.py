"""Stand-ins for packages whose kernels need a GPU: they keep in memory what the kernels keep, and compute nothing."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

from kohya_ext.tracing.milestones import SCHEDULER, Reached

BLOCK = 256  # weights that share a scale in bitsandbytes' 8-bit states
SMALLEST = 4096  # weights of a tensor from which on its state has 8 bits
# bitsandbytes' optimizers -> how many states of a weight's size, and whether in 8 bits
OPTIMIZERS = {
    "Adam8bit": (2, True), "AdamW8bit": (2, True), "PagedAdam8bit": (2, True), "PagedAdamW8bit": (2, True),
    "Lion8bit": (1, True), "PagedLion8bit": (1, True), "SGDNesterov8bit": (1, True), "SGD8bit": (1, True),
    "RMSprop8bit": (1, True), "Adagrad8bit": (1, True), "AdamW": (2, False), "Adam": (2, False),
    "PagedAdamW": (2, False), "PagedAdamW32bit": (2, False), "Lion": (1, False), "PagedLion": (1, False),
}  # fmt: skip


class _Optimizer(torch.optim.Optimizer):  # type: ignore[misc]
    """An optimizer of bitsandbytes': its state, and no other tensor, as the kernels work in place."""

    states, in_8_bits = 2, True

    def __init__(self, params: Any, lr: float = 1e-3, **options: Any) -> None:
        super().__init__(params, {"lr": lr, **options})

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and not self.state[parameter]:
                    self._begin(parameter)

    def _begin(self, parameter: torch.Tensor) -> None:
        small = not self.in_8_bits or parameter.numel() < SMALLEST
        for number in range(1, self.states + 1):
            kind = torch.float32 if small else torch.uint8
            self.state[parameter][f"state{number}"] = torch.zeros_like(parameter, dtype=kind)
            if not small:
                scales = torch.zeros(-(-parameter.numel() // BLOCK), device=parameter.device)
                self.state[parameter][f"absmax{number}"] = scales


def _bitsandbytes() -> dict[str, ModuleType]:
    package, optim = _module("bitsandbytes"), _module("bitsandbytes.optim")
    for name, (states, in_8_bits) in OPTIMIZERS.items():
        setattr(optim, name, type(name, (_Optimizer,), {"states": states, "in_8_bits": in_8_bits}))

    def other(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise Reached(SCHEDULER, f"bitsandbytes' {name} is not traced")

    optim.__getattr__ = other  # type: ignore[method-assign]
    package.optim = optim  # type: ignore[attr-defined]
    package.__version__ = "0"  # type: ignore[attr-defined]
    return {"bitsandbytes": package, "bitsandbytes.optim": optim}


def _xformers() -> dict[str, ModuleType]:
    package, ops = _module("xformers"), _module("xformers.ops")

    def attention(query: Any, key: Any, value: Any, attn_bias: Any = None, p: float = 0.0, **_: Any) -> Any:
        """Keeps queries, keys, values, the result and a number a row, as the kernel does."""
        several = query.dim() == 4
        turned = [one.transpose(1, 2) if several else one.unsqueeze(1) for one in (query, key, value)]
        result = torch.nn.functional.scaled_dot_product_attention(*turned)
        return result.transpose(1, 2) if several else result.squeeze(1)

    ops.memory_efficient_attention = attention  # type: ignore[attr-defined]
    package.ops = ops  # type: ignore[attr-defined]
    return {"xformers": package, "xformers.ops": ops}


def _module(name: str) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, is_package="." not in name)
    module.__path__ = []
    return module


def replace_kernels(notes: list[str], wanted: str) -> None:
    """Put the stand-ins in the place of the packages, whether or not these are installed.

    Args:
        notes: gets a line for a package that is asked for and missing.
        wanted: the words of the commands; what they do not speak of is not asked for.
    """
    asked = wanted.casefold()
    for name, make, sign in (("xformers", _xformers, "xformers"), ("bitsandbytes", _bitsandbytes, "8bit")):
        if importlib.util.find_spec(name) is None and sign in asked:
            notes.append(f"the package {name} is not installed in this environment: where you train, it must be")
        sys.modules.update(make())
    try:
        from diffusers import ModelMixin
    except ImportError:
        return
    ModelMixin.set_use_memory_efficient_attention_xformers = lambda self, *_, **__: None
