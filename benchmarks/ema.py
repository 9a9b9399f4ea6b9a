"""One EMA update next to its peers: torch's AveragedModel, diffusers, timm and ema-pytorch, as far as importable.

    python -m benchmarks.ema [--millions 100] [--rounds 31] [--threads N] [--clock wall|cpu] [--no-compile]

All average the same weights at a constant decay, taking turns. Ours keeps non-finite weights out, the others do not.
"ours" is what a run gets: compiled where torch can compile.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import Timing, table, take_turns
from kohya_ext.ema import Shadow, constant

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
DECAY = 0.9995
# no peer: the pass that most of them end in, without anything around it
BARE = "foreach lerp, bare"


class Weights(nn.Module):
    """A bag of parameters in the sizes of a U-Net."""

    def __init__(self, millions: float, dtype: torch.dtype) -> None:
        super().__init__()
        shapes = [(640, 640, 3, 3), (640,), (1280, 1280), (1280, 2048), (10240, 1280), (1280, 5120), (1280,), (1280,)]
        generator = torch.Generator().manual_seed(0)
        elements = 0
        while elements < millions * 1e6:
            for shape in shapes:
                parameter = nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
                self.register_parameter(f"p{len(self._parameters)}", parameter)
                elements += parameter.numel()
        self.elements = elements


def ours(model: Weights, dtype: torch.dtype = torch.float32, **options: Any) -> Callable[[], object]:
    """Our update, guard included unless `guarded=False`."""
    stochastic = dtype == torch.bfloat16
    shadow = Shadow(model.named_parameters(), constant(DECAY), dtype=dtype, stochastic=stochastic, **options)
    shadow.capture()
    return shadow.update


def two_widths(model: Weights) -> Callable[[], object]:
    """What a run with `--ema_sigma_rel A B` does after a step: both EMAs are updated."""
    first, second = (Shadow(model.named_parameters(), constant(decay)) for decay in (DECAY, 1 - 2 * (1 - DECAY)))
    first.capture()
    second.capture()
    return lambda: first.update(second)


def peers(model: Weights) -> dict[str, Callable[[], object]]:
    """Updates of other libraries, for float32 weights."""
    averages = torch.optim.swa_utils
    averaged = averages.AveragedModel(model, multi_avg_fn=averages.get_ema_multi_avg_fn(DECAY))
    found: dict[str, Callable[[], object]] = {
        BARE: _foreach(model),
        "torch AveragedModel foreach": lambda: averaged.update_parameters(model),
    }
    with contextlib.suppress(ImportError):
        from diffusers.training_utils import EMAModel

        for foreach in (False, True):
            ema = EMAModel(model.parameters(), decay=DECAY, min_decay=DECAY, foreach=foreach)
            found[f"diffusers EMAModel foreach={foreach}"] = _stepper(ema, model)
    with contextlib.suppress(ImportError):
        timm = _model_ema_of_timm()(model, decay=DECAY)
        found["timm ModelEmaV3"] = lambda: timm.update(model)
    with contextlib.suppress(ImportError):
        from ema_pytorch import EMA

        pytorch = EMA(model, beta=DECAY, update_every=1, update_after_step=0)
        found["ema-pytorch"] = pytorch.update
    return found


def _model_ema_of_timm() -> Callable[..., Any]:
    """From its file: the package around it needs torchvision, the class does not."""
    package = importlib.util.find_spec("timm")
    if package is None or package.origin is None:
        raise ImportError("timm is not installed")
    spec = importlib.util.spec_from_file_location("model_ema", Path(package.origin).parent / "utils" / "model_ema.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: Callable[..., Any] = module.ModelEmaV3
    return made


def _stepper(ema: object, model: nn.Module) -> Callable[[], object]:
    return lambda: ema.step(model.parameters())  # type: ignore[attr-defined]


def _foreach(model: nn.Module) -> Callable[[], object]:
    weights = [parameter.detach() for parameter in model.parameters()]
    shadows = [weight.clone() for weight in weights]
    return lambda: torch._foreach_lerp_(shadows, weights, 1 - DECAY)


def _naive_upcast(model: nn.Module) -> Callable[[], object]:
    weights = [parameter.detach() for parameter in model.parameters()]
    shadows: list[Tensor] = [weight.float() for weight in weights]

    def update() -> None:
        for weight, shadow in zip(weights, shadows, strict=True):
            shadow.mul_(DECAY).add_(weight.float(), alpha=1 - DECAY)

    return update


def _print(title: str, timings: Mapping[str, Timing], elements: int, against: str) -> None:
    rows = []
    for name, timing in timings.items():
        middle, low, high = timing.ratio_to(timings[against])
        best = f"{timing.best / elements * 1e9:.2f}"
        ratio = f"{1 / middle:.2f} ({1 / high:.2f}-{1 / low:.2f})"
        rows.append((name, f"{timing.median * 1e3:.1f}", best, ratio))
    print(title)
    print(table(rows, ("", "ms", "best ns/weight", f"time / {against}")), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, default=100)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-compile", action="store_true", help="leave out what takes a compiler")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: for one thread on a busy machine")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    setting = f"{options.threads} threads, {options.clock} clock, {options.rounds} rounds"
    for dtype in (torch.float32, torch.bfloat16):
        model = Weights(options.millions, dtype)
        mine = {} if options.no_compile else {"ours": ours(model), "ours, two widths": two_widths(model)}
        mine["ours, not compiled"] = ours(model, compiled=False)
        if dtype == torch.float32:
            mine["ours, unguarded"] = ours(model, guarded=False)
            others = peers(model)
        else:
            others = {"naive upcast": _naive_upcast(model)}
        timings = take_turns({**mine, **others}, options.rounds, CLOCKS[options.clock])
        best = min((name for name in others if name != BARE), key=lambda name: timings[name].median)
        _print(f"{dtype} weights, {model.elements / 1e6:.0f} M, {setting}", timings, model.elements, best)


if __name__ == "__main__":
    main()
