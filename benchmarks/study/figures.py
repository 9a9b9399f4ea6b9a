"""The study's plots."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

from benchmarks.study.intervals import Interval

Curves = dict[str, dict[float, Interval]]  # optimizer -> rate -> result


def pyplot() -> Any:
    """matplotlib's, writing SVG that is the same for the same numbers. Raises SystemExit that says what to install."""
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit("the plot needs matplotlib: pip install matplotlib") from error
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "study"
    return importlib.import_module("matplotlib.pyplot")


def save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def plot(path: Path, panels: dict[str, Curves], recommended: dict[str, float]) -> None:
    """One panel a task: result by rate as a multiple of the recommended one, with its 95 % band. Needs matplotlib."""
    figure, axes = pyplot().subplots(1, len(panels), figsize=(6 * len(panels) + 2, 5), layout="constrained")
    tops = (1.2, 0.5)  # what lies above has not learned anything
    for axis, top, (title, curves) in zip(axes, tops, panels.items(), strict=True):
        for number, (name, points) in enumerate(curves.items()):
            known = [(rate / recommended[name], one) for rate, one in points.items() if math.isfinite(one.mean)]
            x, y = [rate for rate, _ in known], [one.mean for _, one in known]
            line = axis.plot(x, y, marker="o", markersize=3, linestyle="-" if number < 4 else "--", label=name)[0]
            low, high = [one.mean - one.half for _, one in known], [one.mean + one.half for _, one in known]
            axis.fill_between(x, low, high, [value < top for value in y], color=line.get_color(), alpha=0.15)
        axis.axvline(1, color="grey", linewidth=0.5)
        axis.set(title=title, xscale="log", xlabel="learning rate, as a multiple of the recommended one")
    axes[0].set(ylabel="held-out loss by that before the fine-tune", ylim=(0, tops[0]))
    axes[-1].set(ylabel="log10 of f at the end by f at the start, mean of the zoo", ylim=(None, tops[1]))
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    save(figure, path)
