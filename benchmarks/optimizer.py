"""AdaCoor next to its peers: time a step, bytes a parameter, peak extra memory, share of the machine's bandwidth.

    python -m benchmarks.optimizer [--millions 109] [--rounds 7] [--device cpu|cuda] [--only WORD ...] [--compile]

All candidates step the same gradients on SDXL-shaped tensors, taking turns. Ratios are medians over rounds with their
quartiles; they hold for one machine and one moment, absolute times even less.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.timing import Timing, copy_bandwidth, table, take_turns
from kohya_ext.optim import AdaCoor, torch_adagrad

# Convolutions, attention and feed-forward matrices, norms and biases in the proportions of SDXL's U-Net.
_BLOCK = [(640, 640, 3, 3), (640,), (1280, 1280), (1280, 1280), (1280, 2048), (10240, 1280), (10240,), (1280, 5120)]
_BLOCK += [(1280,)] * 8

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Maker = Callable[[list[nn.Parameter]], Any]


class Published(torch.optim.Optimizer):
    """The published loop: its operations on whole tensors, one after the other, no copies beyond what they need."""

    def __init__(self, params: list[nn.Parameter], eps: float = 1e-8) -> None:
        super().__init__(params, {"eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            eps = group["eps"]
            rounded = torch.tensor(eps, dtype=torch.bfloat16).float().item()
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["vt"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
                gradient = parameter.grad
                state["vt"].add_((gradient**2).mul_(rounded).to(torch.bfloat16))
                denominator = state["vt"].sqrt().add_(eps).to(torch.float32)
                parameter.addcdiv_(gradient * rounded, denominator, value=-1)


class Unguarded(AdaCoor):
    """AdaCoor that takes every gradient for finite: what the check costs is the difference."""

    def step(self, closure: None = None) -> None:
        with mock.patch.object(torch_adagrad, "usable", lambda gradient: True):
            super().step()


def candidates(compiled: bool) -> dict[str, Maker]:
    """Name -> how to make it. Only what is importable here."""
    optim = torch.optim
    makers: dict[str, Maker] = {
        "published loop": Published,
        "AdaCoor 16 plain": lambda p: AdaCoor(p, foreach=False, fused=False),
        "AdaCoor 16 foreach": lambda p: AdaCoor(p, foreach=True),
        "AdaCoor 16 stochastic state": lambda p: AdaCoor(p, stochastic_state=True),
        "AdaCoor 32 plain": lambda p: AdaCoor(p, state_bits=32, fused=False),
        "AdaCoor 32 torch kernel": lambda p: AdaCoor(p, state_bits=32),
        "AdaCoor 32 torch kernel, no guard": lambda p: Unguarded(p, state_bits=32),
        "AdaCoor 8": lambda p: AdaCoor(p, state_bits=8),
        "AdaCoor 16 auto_lr": lambda p: AdaCoor(p, auto_lr=True),
        "Adagrad for-loop": lambda p: optim.Adagrad(p, lr=1e-4, eps=1e-4, foreach=False),
        "Adagrad foreach": lambda p: optim.Adagrad(p, lr=1e-4, eps=1e-4, foreach=True),
        "Adagrad fused": lambda p: optim.Adagrad(p, lr=1e-4, eps=1e-4, fused=True),
        "AdamW for-loop": lambda p: optim.AdamW(p, foreach=False),
        "AdamW foreach": lambda p: optim.AdamW(p, foreach=True),
        "AdamW fused": lambda p: optim.AdamW(p, fused=True),
    }
    if compiled:
        makers["AdaCoor 16 compiled"] = lambda p: AdaCoor(p, fused=True)
        makers["AdaCoor 8 compiled"] = lambda p: AdaCoor(p, state_bits=8, fused=True)
        makers["AdaCoor 32 compiled"] = lambda p: AdaCoor(p, state_bits=32, fused=True)
        makers["AdaCoor 16 compiled, auto_lr"] = lambda p: AdaCoor(p, fused=True, auto_lr=True)
        makers["AdaCoor 16 compiled, auto_lr, momentum"] = lambda p: AdaCoor(p, fused=True, auto_lr=True, momentum=0.9)
        makers["AdaCoor 16 compiled, momentum"] = lambda p: AdaCoor(p, fused=True, momentum=0.9)
        makers["AdaCoor 16 compiled, stochastic state"] = lambda p: AdaCoor(p, fused=True, stochastic_state=True)
    for module, name in (
        ("bitsandbytes.optim", "AdamW8bit"),
        ("bitsandbytes.optim", "Adagrad8bit"),
        ("pytorch_optimizer", "CAME"),
        ("pytorch_optimizer", "SM3"),
        ("pytorch_optimizer", "AdaFactor"),
    ):
        with contextlib.suppress(ImportError, AttributeError):
            makers[f"{name} ({module.partition('.')[0]})"] = getattr(importlib.import_module(module), name)
    return makers


def make_model(millions: float, device: str) -> tuple[list[nn.Parameter], int]:
    """Parameters of about so many millions of elements, with gradients of a clipped training run's size."""
    generator = torch.Generator(device).manual_seed(0)
    params: list[nn.Parameter] = []
    elements = 0
    while elements < millions * 1e6:
        for shape in _BLOCK:
            parameter = nn.Parameter(0.02 * torch.randn(shape, generator=generator, device=device))
            parameter.grad = 1e-4 * torch.randn(shape, generator=generator, device=device)
            params.append(parameter)
            elements += parameter.numel()
    return params, elements


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors in the state."""
    tensors = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def peak_extra(step: Callable[[], object], device: str) -> int:
    """Bytes allocated at the peak of a step beyond what was there before and what is given back by its end."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    params, elements = make_model(options.millions, options.device)
    gradients = [parameter.grad for parameter in params]
    runs: dict[str, Callable[[], object]] = {}
    memory: dict[str, tuple[int, int]] = {}
    for name, make in candidates(options.compile).items():
        if options.only and name != "published loop" and not any(word in name for word in options.only):
            continue
        own = [nn.Parameter(parameter.detach().clone()) for parameter in params] if options.own else params
        for parameter, gradient in zip(own, gradients, strict=True):
            parameter.grad = gradient
        optimizer = make(own)
        try:
            optimizer.step()
        except (RuntimeError, NotImplementedError) as error:
            print(f"{name}: skipped: {str(error).splitlines()[0]}")
            continue
        memory[name] = (state_bytes(optimizer), 0 if options.no_memory else peak_extra(optimizer.step, options.device))
        runs[name] = optimizer.step
        gc.collect()
    timings = take_turns(runs, options.rounds, CLOCKS[options.clock])
    bandwidth = copy_bandwidth(1 << 26, options.device)
    rows = []
    for name, timing in timings.items():
        faster, low, high = timing.ratio_to(timings["published loop"])
        state, extra = memory[name]
        touched = 12 * elements + 2 * state  # weights read and written, gradient read, state read and written
        rows.append(
            (
                name,
                f"{timing.median * 1e3:.0f}",
                f"{timing.best * 1e3:.0f}",
                f"{timing.best / elements * 1e9:.2f}",
                f"{faster:.2f} ({low:.2f}-{high:.2f})",
                _time_beside(timing, timings.get("Adagrad fused")),
                f"{state / elements:.2f}",
                f"{extra / 2**20:.0f}",
                f"{touched / timing.best / bandwidth:.0%}",
            )
        )
    print(
        f"{elements / 1e6:.0f} M parameters, {options.device}, {options.threads} threads, torch {torch.__version__}, "
    )
    print(f"copy bandwidth {bandwidth / 1e9:.1f} GB/s, {options.rounds} rounds, {options.clock} clock")
    header = ("", "ms", "best ms", "best ns/p", "x published", "time / Adagrad fused", "B/p", "extra MB", "of copy")
    print(table(rows, header))


def _time_beside(timing: Timing, other: Timing | None) -> str:
    """How many times as long as `other`, median and quartiles over the rounds."""
    if other is None:
        return ""
    faster, low, high = timing.ratio_to(other)
    return f"{1 / faster:.2f} ({1 / high:.2f}-{1 / low:.2f})"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, default=109)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="*", default=[], help="only candidates whose name holds one of these")
    parser.add_argument("--compile", action="store_true", help="also the compiled path")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: for one thread on a busy machine")
    parser.add_argument("--no-memory", action="store_true", help="do not measure the peak of extra memory")
    parser.add_argument("--own", action="store_true", help="a copy of the weights for each candidate")
    return parser.parse_args()


if __name__ == "__main__":
    main()
