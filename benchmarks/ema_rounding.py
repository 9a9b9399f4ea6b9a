"""What rounding costs an EMA in bfloat16, by learning rate, and what the forecast of a run says of it after 100 steps.

    python -m benchmarks.ema_rounding [--steps 6000]

AdamW steps weights of SDXL's size (root mean square .02) by gradients of three kinds: nothing but noise, noise about a
target, and a steady drift. The exact EMA of the same weights is in float64. All lengths are root mean squares.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.timing import table
from kohya_ext.ema import Shadow, debiased
from kohya_ext.ema.health import RoundingForecast

RATES = (1e-7, 3e-7, 1e-6, 3e-6, 1e-5, 1e-4, 1e-3)
KINDS = {"noise": (0.0, 1.0), "noise about a target": (0.3, 1.0), "drift": (1.0, 0.3)}  # shares of pull and of noise
DECAY = 0.9995
WEIGHTS = 2000
SIZE = 0.02
LOOKED_AT = 100


class Rounded(NamedTuple):
    """gap: between the weights and the exact EMA. error: of the rounded EMA, as part of it. forecast: of that error."""

    gap: float
    error: float
    forecast: float


def measure(rate: float, pull: float, noise: float, steps: int) -> Rounded:
    """Train, with the EMA in both dtypes."""
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(SIZE * torch.randn(WEIGHTS, generator=generator))
    target = SIZE * torch.randn(WEIGHTS, generator=generator)
    optimizer = torch.optim.AdamW([parameter], lr=rate)
    rounded = Shadow([parameter], debiased(DECAY), dtype=torch.bfloat16, stochastic=True, compiled=False)
    exact = Shadow([parameter], debiased(DECAY), dtype=torch.float64, compiled=False)
    watch = RoundingForecast(rounded, min(steps, 1 / (1 - DECAY)), LOOKED_AT)
    forecast = 0.0
    for _ in range(steps):
        away = (parameter.detach() - target) / SIZE
        parameter.grad = pull * away + noise * torch.randn(WEIGHTS, generator=generator)
        optimizer.step()
        for shadow in (rounded, exact):
            shadow.update()
        forecast = watch.after_step(1.0) or forecast
    [(_, weights, ours)], [(_, _, truth)] = rounded.pairs(), exact.pairs()
    gap = _size(weights.double() - truth)
    return Rounded(gap, _size(ours.double() - truth) / gap, forecast)


def _size(tensor: Tensor) -> float:
    return float(tensor.square().mean().sqrt())


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6000)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    rows = []
    for kind, (pull, noise) in KINDS.items():
        for rate in RATES:
            found = measure(rate, pull, noise, steps)
            verdict = "refused" if found.forecast >= 1 else ""
            cells = (f"{found.gap:.1e}", f"{found.error:.2f}", f"{found.forecast:.2f}", verdict)
            rows.append((kind, f"{rate:g}", *cells))
    print(table(rows, ("gradients", "rate", "weights - EMA", "error by that", "forecast", "")))


if __name__ == "__main__":
    main()
