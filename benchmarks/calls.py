"""How many Python functions one step of an optimizer goes through, and in how many files.

    python -m benchmarks.calls [--shape 256 256] [--set foreach=True state_bits=32 ...]

One float32 parameter on the CPU, counted from the second step on: the first one makes the state and decides the path.
Calls of C functions (every operation of torch) are not counted. Deterministic, unlike a timing.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

import kohya_ext
from benchmarks.timing import table
from kohya_ext.optim import AdaCoor

PACKAGE = str(Path(kohya_ext.__file__).parent)

# (file, function) -> calls
Calls = Counter[tuple[str, str]]


def calls_of(action: Callable[[], object]) -> Calls:
    """The Python-level calls that `action` makes, itself included."""
    found: Calls = Counter()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            found[frame.f_code.co_filename, frame.f_code.co_name] += 1

    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(None)
    return found


def of_one_step(make: Callable[[list[nn.Parameter]], Any], shape: tuple[int, ...]) -> Calls:
    """The calls of the third step of an optimizer of one parameter."""
    parameter = nn.Parameter(torch.ones(shape))
    parameter.grad = torch.full(shape, 1e-4)
    optimizer = make([parameter])
    for _ in range(2):
        optimizer.step()
    return calls_of(optimizer.step)


def row(name: str, calls: Calls, folder: str) -> tuple[str, str, str, str]:
    """name, calls and files below `folder`, calls altogether (torch wraps every `step` in hooks and contexts)."""
    own = {place: count for place, count in calls.items() if place[0].startswith(folder)}
    return name, str(sum(own.values())), str(len({file for file, _ in own})), str(sum(calls.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs="*", default=[256, 256])
    parser.add_argument("--set", nargs="*", default=[], help="arguments of AdaCoor, as NAME=VALUE")
    options = parser.parse_args()
    settings = {name: ast.literal_eval(value) for name, _, value in (item.partition("=") for item in options.set)}
    shape = tuple(options.shape)
    own = of_one_step(lambda params: AdaCoor(params, **settings), shape)
    torchs = of_one_step(lambda params: torch.optim.Adagrad(params, foreach=False), shape)
    rows = [
        row("AdaCoor", own, PACKAGE),
        row("torch Adagrad, for-loop", torchs, str(Path(torch.optim.__file__).parent)),
    ]
    print(table(rows, ("", "calls", "files", "with torch's")))
    for (file, function), count in own.items():
        if file.startswith(PACKAGE):
            print(f"  {count:3d}  {Path(file).relative_to(PACKAGE)}: {function}")


if __name__ == "__main__":
    main()
