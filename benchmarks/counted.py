"""What a step of AdaCoor and its peers does, counted instead of timed: kernels, and bytes read and written a weight.

    python -m benchmarks.counted [--compile] [--markdown FILE]

Counted are the operations that torch dispatches in one step, without those that make views: each is one kernel on a
GPU, where torch's own fused optimizers take one for some dozens of tensors at a time. Bytes are those of the tensors
that an operation reads and writes, as if nothing were kept in a cache: on a GPU that is what moves, on a CPU, where
slices stay in the cache, an upper bound. Compiled steps are counted by inductor's own figures. The same on any machine.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.optimizer import Published, state_bytes
from benchmarks.timing import table
from kohya_ext.optim import AdaCoor, blockwise, compiled_codes, distance, quick_random, settings
from kohya_ext.optim import compiled as compiled_path
from kohya_ext.tensors.compiled import WIDTH

Maker = Callable[[list[nn.Parameter]], Any]

# A block of SDXL's U-Net at a quarter of its width.
_BLOCK = [(160, 160, 3, 3), (160,), (320, 320), (320, 320), (320, 512), (2560, 320), (2560,), (320, 1280)]
_BLOCK += [(320,)] * 8


class Count(TorchDispatchMode):
    """Counts what is dispatched while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = 0
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        moved = _moved(func, args, kwargs, result)
        self.bytes += moved
        self.kernels += moved > 0
        return result


def _moved(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """Bytes that an operation reads and writes; 0 for one that makes a view or only looks at a tensor's shape."""
    schema = func._schema
    named = {**dict(zip((one.name for one in schema.arguments), args, strict=False)), **kwargs}
    writes = any(one.alias_info and one.alias_info.is_write for one in schema.arguments)
    if not writes and any(one.alias_info for one in schema.returns):
        return 0
    if schema.name in {"aten::empty", "aten::empty_like", "aten::new_empty", "aten::resize_"}:
        return 0
    total = 0
    for one in schema.arguments:
        size = _bytes(named.get(one.name))
        if schema.name == "aten::index_select" and one.name == "self":  # of which no more is read than is selected
            size = min(size, _bytes(result))
        written = one.alias_info is not None and one.alias_info.is_write
        if "_fused_" in schema.name and one.name == "grads":  # written only with a loss scale
            written = False
        filled = written and (one.is_out or schema.name in {"aten::copy_", "aten::fill_", "aten::zero_"})
        total += size if not written or filled else 2 * size
    if not writes:
        total += _bytes(result)
    return total


def _bytes(value: Any) -> int:
    """Of the tensors in an argument, those of an expanded one only once; a single number is none."""
    if isinstance(value, Tensor):
        places = 1
        for length, stride in zip(value.shape, value.stride(), strict=True):
            places *= length if stride else 1
        return places * value.element_size() if places > 1 else 0
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0


def candidates() -> dict[str, Maker]:
    """Name -> how to make it. Only what is importable here; a GPU's default path is the gathered one."""
    optim = torch.optim
    makers: dict[str, Maker] = {
        "published loop": Published,
        "AdaCoor 16, slice by slice": lambda p: AdaCoor(p, foreach=False),
        "AdaCoor 16, gathered": lambda p: AdaCoor(p, foreach=True),
        "AdaCoor 16, stochastic state, gathered": lambda p: AdaCoor(p, foreach=True, stochastic_state=True),
        "AdaCoor 16, auto_lr, gathered": lambda p: AdaCoor(p, foreach=True, auto_lr=True),
        "AdaCoor 16, auto_lr, momentum, gathered": lambda p: AdaCoor(p, foreach=True, auto_lr=True, momentum=0.9),
        "AdaCoor 32, gathered": lambda p: AdaCoor(p, foreach=True, state_bits=32),
        "AdaCoor 32, torch's kernel (CPU)": lambda p: AdaCoor(p, state_bits=32),
        "AdaCoor 8": lambda p: AdaCoor(p, state_bits=8),
        "torch Adagrad, for-loop": lambda p: optim.Adagrad(p, foreach=False),
        "torch Adagrad, foreach": lambda p: optim.Adagrad(p, foreach=True),
        "torch Adagrad, fused": lambda p: optim.Adagrad(p, fused=True),
        "torch AdamW, foreach": lambda p: optim.AdamW(p, foreach=True),
        "torch AdamW, fused": lambda p: optim.AdamW(p, fused=True),
    }
    for name in ("Adagrad8bit", "AdamW8bit"):
        with contextlib.suppress(ImportError, AttributeError):
            makers[f"bitsandbytes {name}"] = getattr(importlib.import_module("bitsandbytes.optim"), name)
    return makers


COMPILED: dict[str, dict[str, Any]] = {
    "AdaCoor 16": {},
    "AdaCoor 16, stochastic state": {"stochastic_state": True},
    "AdaCoor 16, auto_lr": {"auto_lr": True},
    "AdaCoor 16, auto_lr, momentum": {"auto_lr": True, "momentum": 0.9},
    "AdaCoor 16, momentum": {"momentum": 0.9},
    "AdaCoor 32": {"state_bits": 32},
    "AdaCoor 8": {"state_bits": 8},
}


def counted(make: Maker, params: list[nn.Parameter], elements: int) -> tuple[float, float, float]:
    """Kernels of a step by tensor, bytes moved and bytes of state by weight, from the second step on."""
    optimizer = make(params)
    optimizer.step()
    with Count() as count:
        optimizer.step()
    return count.kernels / len(params), count.bytes / elements, state_bytes(optimizer) / elements


def compiled(arguments: dict[str, Any]) -> tuple[float, float, float]:
    """The same of a compiled step of one tensor: inductor's figures, plus what stays eager.

    The sample of `auto_lr` is not compiled; it is counted as everything else is.
    """
    from torch._inductor import metrics

    size = 1 << 22
    parameter = nn.Parameter(torch.zeros(size))
    parameter.grad = torch.full((size,), 1e-4)
    torch._dynamo.reset()
    metrics.reset()
    with _figures():
        optimizer = AdaCoor([parameter], fused=True, **arguments)
        optimizer.step()
    # inductor counts for what the first call is given
    first = compiled_path.FIRST_ROWS * WIDTH
    if arguments.get("state_bits") == 8:
        first = compiled_codes.FIRST_BLOCKS * blockwise.BLOCK
    kernels, moved = metrics.generated_kernel_count, metrics.num_bytes_accessed / first
    if arguments.get("auto_lr"):
        state = optimizer.state[parameter]
        state = {**state, "vt": state["vt"].view(-1)}
        if "momentum" in state:
            state["momentum"] = state["momentum"].view(-1)
        with Count() as count:
            distance.note(settings.rule_of(optimizer.param_groups[0]), [(parameter.grad.view(-1), state)])
        kernels, moved = kernels + count.kernels, moved + count.bytes / size
    return kernels, moved, state_bytes(optimizer) / size


@contextlib.contextmanager
def _figures() -> Iterator[None]:
    """Have inductor count bytes, which it does for its log alone, and compile anew."""
    from torch._inductor import compile_fx, config

    log = compile_fx.inductor_metrics_log
    before, propagates = log.level, log.propagate
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        with config.patch(force_disable_caches=True):
            yield
    finally:
        log.setLevel(before)
        log.propagate = propagates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true", help="also the compiled path")
    parser.add_argument("--markdown", type=Path, help="write the table here as well")
    options = parser.parse_args()
    params = [nn.Parameter(torch.ones(shape)) for shape in _BLOCK]
    for parameter in params:
        parameter.grad = torch.full_like(parameter, 1e-4)
    elements = sum(parameter.numel() for parameter in params)
    with mock.patch.object(quick_random, "step_", lambda *_: 0):  # which no GPU has
        rows = [(name, *_shown(counted(make, params, elements))) for name, make in candidates().items()]
    for name, arguments in COMPILED.items() if options.compile else ():
        rows.append((f"{name}, compiled", *_shown(compiled(arguments))))
    header = ("", "kernels a tensor", "bytes moved a weight", "bytes of state a weight")
    print(f"{elements / 1e6:.1f} M float32 weights in {len(params)} tensors, torch {torch.__version__}")
    print(table(rows, header))
    if options.markdown:
        lines = [header, ("---",) * len(header), *rows]
        options.markdown.write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))


def _shown(figures: tuple[float, float, float]) -> tuple[str, str, str]:
    kernels, moved, state = figures
    return f"{kernels:.1f}", f"{moved:.1f}", f"{state:.2f}"


if __name__ == "__main__":
    main()
