"""How far a step of AdaCoor goes: by the size of a gradient, by eps, by the number of steps, by the batch size.

    python -m benchmarks.steps [--steps 10000] [--plot FILE.svg]

Everything is measured on AdaCoor itself. Gradients are random where they are not single numbers. The learning rate has
no panel: it multiplies the step, whatever else.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.timing import table
from kohya_ext.optim import AdaCoor

EPSILONS = (1e-10, 1e-8, 1e-6)
GRADIENTS = torch.logspace(-8, 0, 49)
SIZES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)  # root mean square of a gradient
LOOKED_AT = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
NOISES = (1e-6, 1e-4, 1e-2)  # root mean square of the noise in the gradient of one image
SIGNAL = 1 / 30  # what all images agree on, by that noise
ELEMENTS = 4000

Curve = dict[float, float]


def first_steps() -> dict[float, Curve]:
    """eps -> size of a gradient -> length of the first step."""
    found = {}
    for eps in EPSILONS:
        parameter = nn.Parameter(torch.zeros_like(GRADIENTS))
        parameter.grad = GRADIENTS.clone()
        AdaCoor([parameter], eps=eps).step()
        found[eps] = dict(zip(GRADIENTS.tolist(), parameter.detach().abs().tolist(), strict=True))
    return found


def later_steps(steps: int) -> dict[float, Curve]:
    """Size of the gradients -> step -> length of that step, both root mean square."""
    sizes = torch.tensor(SIZES)[:, None]
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.zeros(len(SIZES), ELEMENTS))
    optimizer = AdaCoor([parameter])
    found: dict[float, Curve] = {size: {} for size in SIZES}
    for step in range(1, steps + 1):
        before = parameter.detach().clone()
        parameter.grad = sizes * torch.randn(parameter.shape, generator=generator)
        optimizer.step()
        if step in LOOKED_AT:
            for size, length in zip(SIZES, _rms(parameter.detach() - before), strict=True):
                found[size][step] = length
    return found


def progress(steps: int = 300) -> dict[float, Curve]:
    """Noise of one image -> batch size -> way along the signal in `steps` steps, by that with single images."""
    found: dict[float, Curve] = {}
    batches = torch.tensor(BATCHES, dtype=torch.float32)[:, None]
    for noise in NOISES:
        generator = torch.Generator().manual_seed(0)
        parameter = nn.Parameter(torch.zeros(len(BATCHES), ELEMENTS))
        optimizer = AdaCoor([parameter])
        for _ in range(steps):
            random = torch.randn(parameter.shape, generator=generator) / batches.sqrt()
            parameter.grad = noise * (SIGNAL + random)
            optimizer.step()
        way = -parameter.detach().mean(dim=1)
        found[noise] = dict(zip(BATCHES, (way / way[0]).tolist(), strict=True))
    return found


def _rms(rows: Tensor) -> list[float]:
    lengths: list[float] = rows.square().mean(dim=1).sqrt().tolist()
    return lengths


def plot(path: Path, first: dict[float, Curve], later: dict[float, Curve], batch: dict[float, Curve]) -> None:
    """Needs matplotlib."""
    from benchmarks.study.figures import pyplot, save

    figure, (left, middle, right) = pyplot().subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    for eps, curve in first.items():
        left.plot(list(curve), list(curve.values()), label=f"eps {eps:g}")
    left.set(title="first step", xlabel="gradient element", ylabel="step at lr 1", xscale="log", yscale="log")
    for size, curve in later.items():
        middle.plot(list(curve), list(curve.values()), marker="o", markersize=3, label=f"gradients of {size:g}")
    middle.set(title="later steps, eps 1e-8", xlabel="step", ylabel="its length at lr 1", xscale="log", yscale="log")
    for noise, curve in batch.items():
        right.plot(list(curve), list(curve.values()), marker="o", markersize=3, label=f"gradients of {noise:g}")
    right.set(title="way along the signal, eps 1e-8", xlabel="batch size", ylabel="by that of single images")
    right.set(xscale="log", yscale="log", xticks=BATCHES, xticklabels=BATCHES, yticks=(1, 2, 4, 8))
    right.set(yticklabels=(1, 2, 4, 8))
    right.minorticks_off()
    for axis in (left, middle, right):
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--plot", type=Path, help="write the plot here (SVG)")
    options = parser.parse_args()
    first, later, batch = first_steps(), later_steps(options.steps), progress()
    shown = [size for size in GRADIENTS.tolist() if abs(round(torch.tensor(size).log10().item(), 3) % 1) < 1e-3]
    rows = [(f"{size:.0e}", *(f"{first[eps][size]:.2e}" for eps in EPSILONS)) for size in shown]
    print(table(rows, ("gradient", *(f"first step, eps {eps:g}" for eps in EPSILONS))), end="\n\n")
    rows = [(f"{step}", *(f"{later[size][step]:.2e}" for size in SIZES)) for step in next(iter(later.values()))]
    print(table(rows, ("step", *(f"gradients of {size:g}" for size in SIZES))), end="\n\n")
    rows = [(f"{size}", *(f"{batch[noise][size]:.2f}" for noise in NOISES)) for size in BATCHES]
    print(table(rows, ("batch size", *(f"gradients of {noise:g}" for noise in NOISES))))
    if options.plot:
        plot(options.plot, first, later, batch)


if __name__ == "__main__":
    main()
