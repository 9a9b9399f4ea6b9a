"""What AdaCoor's accumulator holds after many steps, in each width.

    python -m benchmarks.accumulator [--steps 10000] [--elements 20000] [--plot FILE.svg]

Every element gets the same random gradients of 1e-4 (root mean square) as a float64 sum does. "sum" is the accumulator
by that sum, the mean over all elements; "step" the length of a step by that of exact arithmetic. A second table is for
8 bits where the gradients of one block differ in size, by so many decades, after 1,000 steps.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import table
from kohya_ext.optim import AdaCoor
from kohya_ext.optim.blockwise import decode

EPS = 1e-8
MODES: dict[str, dict[str, Any]] = {
    "32 bits": {"state_bits": 32},
    "16, nearest (default)": {},
    "16, stochastic": {"stochastic_state": True},
    "8": {"state_bits": 8},
}
LOOKED_AT = (1, 10, 100, 300, 1000, 2000, 3000, 5000, 7000, 10_000, 20_000, 50_000, 100_000)
CYCLE = 64  # gradients, which come round again


def held(state: dict[str, Any]) -> Tensor:
    """The sum of squares that a state stands for, float64."""
    if "scale" in state:
        return decode(state["vt"], state["scale"]).double()
    found: Tensor = state["vt"].double() / (EPS if state["vt"].dtype == torch.bfloat16 else 1.0)
    return found


def run(steps: int, elements: int, mode: dict[str, Any]) -> dict[int, tuple[float, float]]:
    """Step -> (sum, step), both by exact arithmetic."""
    generator = torch.Generator().manual_seed(0)
    gradients = [1e-4 * torch.randn(elements, generator=generator) for _ in range(CYCLE)]
    parameter = nn.Parameter(torch.zeros(elements))
    optimizer = AdaCoor([parameter], eps=EPS, **mode)
    exact = torch.zeros(elements, dtype=torch.float64)
    found = {}
    for step in range(1, steps + 1):
        parameter.grad = gradients[step % CYCLE]
        optimizer.step()
        exact += gradients[step % CYCLE].double().square()
        if step in LOOKED_AT:
            kept = held(optimizer.state[parameter])
            length = (exact.sqrt() + EPS**0.5) / (kept.sqrt() + EPS**0.5)
            found[step] = (float((kept / exact).mean()), float(length.mean()))
    return found


def spread_row(decades: int, steps: int = 1000, elements: int = 256 * 40) -> tuple[str, ...]:
    """8 bits: the sum by the true one, mean, least and largest; the weights' distance from those of the true sum."""
    generator = torch.Generator().manual_seed(0)
    size = 10 ** (-4 - decades * torch.rand(elements, generator=generator))
    fine, coarse = (nn.Parameter(torch.zeros(elements, dtype=dtype)) for dtype in (torch.float64, torch.float32))
    exact, eight = AdaCoor([fine], eps=1e-16, lr=1e4), AdaCoor([coarse], eps=1e-16, lr=1e4, state_bits=8)
    for _ in range(steps):
        coarse.grad = (torch.randn(elements, generator=generator) + 0.3) * size
        fine.grad = coarse.grad.double()
        exact.step()
        eight.step()
    ratio = held(eight.state[coarse]) / exact.state[fine]["vt"]
    error = float((coarse.detach().double() - fine.detach()).norm() / fine.detach().norm())
    return f"{decades}", f"{ratio.mean():.3f}", f"{ratio.min():.2f} to {ratio.max():.2f}", f"{100 * error:.1f} %"


def plot(path: Path, found: dict[str, dict[int, tuple[float, float]]]) -> None:
    """Needs matplotlib."""
    from benchmarks.study.figures import pyplot, save

    figure, axes = pyplot().subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, points in found.items():
        for axis, which in zip(axes, (0, 1), strict=True):
            axis.plot(list(points), [pair[which] for pair in points.values()], marker="o", markersize=3, label=name)
    axes[0].set(title="what the accumulator holds, by the true sum", xlabel="step", xscale="log", ylim=(0, 1.1))
    axes[1].set(title="length of a step, by exact arithmetic", xlabel="step", xscale="log", ylim=(0, None))
    axes[0].legend()
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--elements", type=int, default=20_000)
    parser.add_argument("--plot", type=Path, help="write the plot here (SVG)")
    options = parser.parse_args()
    found = {name: run(options.steps, options.elements, mode) for name, mode in MODES.items()}
    steps = next(iter(found.values()))
    rows = [(f"{step}", *(f"{found[name][step][which]:.3f}" for name in MODES for which in (0, 1))) for step in steps]
    print(table(rows, ("step", *(f"{name}: {what}" for name in MODES for what in ("sum", "step")))))
    columns = ("decades", "8 bits: sum", "least and largest", "error of the weights")
    print(table([spread_row(decades) for decades in (0, 2, 3, 4)], columns))
    if options.plot:
        plot(options.plot, found)


if __name__ == "__main__":
    main()
