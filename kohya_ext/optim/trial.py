"""Whether the compiled path may be the default on a device: tried once, on tensors that nobody needs.

On a GPU compiled steps move a quarter of the bytes, so they are the default there; but they need a working Triton, and
a torch that compiles divisions and roots as it computes them. Both are found out by a few steps next to eager ones. If
they cannot be made, or have other bits, one line says so and the process continues eagerly: the weights are the same.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
from torch import Tensor

from kohya_ext.optim import blockwise, compiled, distance
from kohya_ext.optim.eager import Job, Kind, SkipCount, SlicedStep
from kohya_ext.optim.functional import Rule, momentum_dtype
from kohya_ext.optim.kernel_arguments import shape_of

# Types of devices whose default is the compiled path. Not the CPU: there a compiler takes longer than it saves.
DEVICES = {"cuda"}
# Smaller tensors are gathered there: four of them are not worth a compiled call of their own.
SMALLEST = 1 << 16

_SIZES = (compiled.SMALLEST, compiled.SMALLEST + 5, (1 << 15) + 3, compiled.SMALLEST + 64, 1 << 14)
_STEPS = 3

_failed: set[torch.device] = set()


def passed(rule: Rule, kind: Kind) -> bool:
    """Whether tensors of this kind may be stepped by compiled kernels without having been asked for."""
    device = kind[3]
    if device.type not in DEVICES or device in _failed:
        return False
    failure = _failure(shape_of(rule), kind)
    if failure is not None and device not in _failed:
        _failed.add(device)
        print(f"AdaCoor: steps on {device} are not compiled, so they take longer ({failure}); same results", flush=True)
    return failure is None


@functools.lru_cache(maxsize=64)
def _failure(rule: Rule, kind: Kind) -> str | None:
    """Why kernels of this kind cannot be used; None where they can. Waits for the device."""
    rule = replace(rule, lr=0.7, eps=1e-8)
    ours, eager = _jobs(rule, kind), _jobs(rule, kind)
    sliced = SlicedStep(SkipCount())
    try:
        for step in range(1, _STEPS + 1):
            together, (alone,) = ours[step - 1][:-1], ours[step - 1][-1:]
            compiled.step_many(rule, together)
            compiled.step_many(rule, [alone])
            for job in eager[step - 1]:
                sliced.step(rule, job.weights, job.gradient, job.state, job.step, job.place)
    except Exception as error:  # compilers raise whatever they like
        reason = error.__cause__ or error
        return f"{type(reason).__name__}: {(str(reason).strip() or 'no reason given').splitlines()[0][:200]}"
    same = all(_same(one, other) for one, other in zip(ours[0], eager[0], strict=True))
    return None if same else f"what torch {torch.__version__} compiles computes other bits"


def _jobs(rule: Rule, kind: Kind) -> list[list[Job]]:
    """For each step: tensors of several sizes, the last to be stepped by itself. The same ones at each call."""
    weights_dtype, gradient_dtype, state_dtype, device = kind
    generator = torch.Generator().manual_seed(0)
    steps: list[list[Job]] = [[] for _ in range(_STEPS)]
    for place, size in enumerate(_SIZES):
        weights = torch.randn(size, generator=generator).to(weights_dtype).to(device)
        state = {"vt": torch.zeros_like(weights, dtype=state_dtype)}
        if state_dtype == torch.uint8:
            state["scale"] = torch.zeros(blockwise.blocks_of(size), device=device)
        if rule.auto_lr:
            state["factor"] = distance.fresh(weights)["factor"].fill_(7.3 + place)
        if rule.momentum:
            state["momentum"] = torch.zeros_like(weights, dtype=momentum_dtype(state_dtype))
        for number, jobs in enumerate(steps, start=1):
            jobs.append(Job(weights, _gradient(size, generator).to(gradient_dtype).to(device), state, number, place))
    return steps


def _gradient(size: int, generator: torch.Generator) -> Tensor:
    """Of all sizes from 1e-7 to 10, and some elements that cannot be used."""
    exponents = torch.rand(size, generator=generator) * 8 - 7
    gradient = torch.randn(size, generator=generator) * 10**exponents
    gradient[3], gradient[size // 2], gradient[-1] = float("nan"), float("inf"), 0.0
    return gradient


def _same(one: Job, other: Job) -> bool:
    """Whether weights and state are the same; where a root has more than 16 bits, but for its last ones."""
    exact = one.state["vt"].dtype == torch.bfloat16
    pairs = [(one.weights, other.weights), *((one.state[name], other.state[name]) for name in one.state)]
    return all(torch.equal(a, b) or (not exact and _alike(a, b)) for a, b in pairs)


def _alike(one: Tensor, other: Tensor) -> bool:
    """To rounding: 16 bits, if they are rounded at random, may be their neighbours then."""
    if not one.is_floating_point():
        return False
    relative = 1e-5 if one.dtype.itemsize > 2 else 1e-2
    return torch.allclose(one, other, rtol=relative, atol=1e-5)
