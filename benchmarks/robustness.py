"""Whether `auto_lr` at a learning rate of 1 holds everywhere: its loss by that of AdamW tuned for each setting.

    python -m benchmarks.robustness --out FILE.jsonl [--seeds 1] [--processes 2] [--report]

The fine-tune of `benchmarks.convergence` with batches of 1, 4 and 16 images, with clipping and without, in three widths
of the model, all weights and a LoRA of rank 4, over 150 and 3,000 steps; `auto_lr` with and without momentum, with
first guesses (eps) of 1e-12 to 1e-6, bfloat16 weights, and 16 and 8 bits of state. AdamW has the best of four rates in
each of these, float32 weights also where those of AdaCoor are bfloat16. Every run is a line of the file; a run that is
there is not done again, so the command can be stopped and started at any time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.study import diffusion
from benchmarks.study.grid import Run, runs
from benchmarks.timing import table

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A setting of AdaCoor: its loss, that of AdamW's best rate, whether that is the lowest or highest rate tried."""

    task: Row
    settings: Row
    losses: tuple[float, ...]
    peer: float
    rate: float
    at_edge: bool

    @property
    def ratio(self) -> float:
        return statistics.mean(self.losses) / self.peer


def one(run: Run) -> Row:
    """A run as a line of the file."""
    torch.set_num_threads(1)
    begin = time.process_time()
    loss = diffusion.fine_tune(run.make, run.rate, run.seed, run.task)
    return {**run.key(), "loss": loss, "seconds": round(time.process_time() - begin, 2)}


def read(path: Path) -> list[Row]:
    """The runs of a file, which is made where it is missing; a line that an interruption has cut off is removed."""
    path.touch()
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    return [json.loads(line) for line in whole.splitlines()]


def identity(row: Row) -> str:
    return json.dumps({name: row[name] for name in ("task", "settings", "rate", "seed")}, sort_keys=True)


def cases(rows: Iterable[Row]) -> list[Case]:
    """Every setting for which AdamW's runs are there, over the seeds that both have."""
    peers: dict[str, dict[float, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    own: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for row in rows:
        place = json.dumps({**row["task"], "coarse": False}, sort_keys=True)
        if row["settings"] is None:
            peers[place][row["rate"]][row["seed"]] = row["loss"]
        else:
            own[json.dumps(row["task"], sort_keys=True), json.dumps(row["settings"])][row["seed"]] = row["loss"]
    found = []
    for (task, settings), losses in own.items():
        rates = peers[json.dumps({**json.loads(task), "coarse": False}, sort_keys=True)]
        seeds = set(losses).intersection(*rates.values()) if len(rates) > 2 else set()
        if not seeds:
            continue
        means = {rate: statistics.mean(of[seed] for seed in seeds) for rate, of in rates.items()}
        best = min(means, key=means.__getitem__)
        edge = best in (min(means), max(means))
        mine = tuple(losses[seed] for seed in sorted(seeds))
        found.append(Case(json.loads(task), json.loads(settings), mine, means[best], best, edge))
    return found


AXES: dict[str, Callable[[Case], object]] = {
    "batch": lambda case: case.task["batch"],
    "clipping": lambda case: "off" if case.task["clip"] is None else "on",
    "steps": lambda case: case.task["steps"],
    "width": lambda case: case.task["width"],
    "trained": lambda case: "all" if case.task["rank"] is None else f"LoRA {case.task['rank']}",
    "eps": lambda case: f"{case.settings['eps']:g}",
    "weights": lambda case: "bfloat16" if case.task["coarse"] else "float32",
    "state bits": lambda case: case.settings.get("state_bits", 16),
    "momentum": lambda case: case.settings["momentum"],
}


def report(rows: list[Row], limit: float) -> None:
    found = cases(rows)
    if not found:
        raise SystemExit("no setting is complete yet: run the command without --report")
    header = ("", "settings", "mean ratio", "worst", f"above {limit:g}")
    lines = [_line("all", found, limit)]
    for axis, of in AXES.items():
        groups: dict[object, list[Case]] = defaultdict(list)
        for case in found:
            groups[of(case)].append(case)
        lines += [_line(f"{axis} {value}", groups[value], limit) for value in sorted(groups, key=str)]
    print(table(lines, header))
    losses = [row["loss"] for row in rows if row["settings"] is not None]
    diverged = sum(not loss < 1 for loss in losses)  # no better than not to train at all
    print(f"{len(losses)} runs of auto_lr, {diverged} diverged; {len(rows)} runs in all, ", end="")
    print(f"{sum(row['seconds'] for row in rows) / 60:.0f} CPU-minutes, torch {torch.__version__}")
    print("AdamW's best rate is the lowest or highest tried in", sum(case.at_edge for case in found), "settings")
    worst = sorted(found, key=lambda case: -case.ratio)[:12]
    names = ("ratio", *AXES, "loss", "AdamW", "its rate", "seeds")
    print()
    print(table([_details(case) for case in worst], names))


def _line(name: str, of: list[Case], limit: float) -> tuple[str, ...]:
    ratios = [case.ratio for case in of]
    above = sum(ratio > limit for ratio in ratios)
    return name, str(len(ratios)), f"{statistics.mean(ratios):.3f}", f"{max(ratios):.3f}", str(above)


def _details(case: Case) -> tuple[str, ...]:
    values = (str(of(case)) for of in AXES.values())
    losses = f"{statistics.mean(case.losses):.3f}"
    return f"{case.ratio:.3f}", *values, losses, f"{case.peer:.3f}", f"{case.rate:g}", str(len(case.losses))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the file of runs (JSON lines), which is continued")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--limit", type=float, default=1.15, help="the ratio that the report counts settings above")
    parser.add_argument("--report", action="store_true", help="run nothing, report what is there")
    options = parser.parse_args()
    rows = read(options.out)
    if not options.report:
        done = {identity(row) for row in rows}
        jobs = [run for seed in range(options.seeds) for run in runs(seed) if identity(run.key()) not in done]
        with ProcessPoolExecutor(options.processes) as pool, options.out.open("a") as file:
            for number, future in enumerate(as_completed([pool.submit(one, job) for job in jobs]), 1):
                rows.append(future.result())
                print(json.dumps(rows[-1]), file=file, flush=True)
                print(f"\r{number} of {len(jobs)} runs", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
    report(rows, options.limit)


if __name__ == "__main__":
    main()
