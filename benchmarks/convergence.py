"""How AdaCoor trains next to its peers: a small diffusion fine-tune and a zoo of quadratics.

    python -m benchmarks.convergence [--seeds 5] [--plot FILE.svg] [--json FILE] [--processes 2]

Every optimizer goes through its grid of learning rates, from each seed: AdaCoor in each mode, Adagrad and AdamW of
torch, Lion and Prodigy of pytorch_optimizer. The table has the best rate of each (by the mean over the seeds) and the
rate that its authors or the guide recommend, means with 95 % intervals. Nothing here is a claim about SDXL: the models
are tiny, and their gradients are larger than those of a large model clipped to the same norm.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.study import diffusion, quadratics
from benchmarks.study.candidates import Candidate, candidates
from benchmarks.study.figures import Curves, plot
from benchmarks.study.intervals import Interval, interval
from benchmarks.timing import table

FINE_TUNE, ZOO = "diffusion fine-tune", "quadratic zoo"


@dataclass(frozen=True)
class Outcome:
    """One run. loss: of the fine-tune; declines: of the zoo, log10. seconds: of CPU time."""

    name: str
    rate: float
    seed: int
    loss: float
    declines: tuple[float, ...]
    seconds: float


def one(job: tuple[int, float, int]) -> Outcome:
    """Both tasks with one optimizer, rate and seed."""
    number, rate, seed = job
    torch.set_num_threads(1)
    candidate = candidates()[number]
    begin = time.process_time()
    loss = diffusion.fine_tune(candidate.make, rate, seed)
    declines = [quadratics.decline(problem, candidate.make, rate, seed) for problem in quadratics.ZOO]
    logs = tuple(math.log10(value) if math.isfinite(value) else math.inf for value in declines)
    return Outcome(candidate.name, rate, seed, loss, logs, time.process_time() - begin)


def told(outcomes: Iterable[Outcome], total: int) -> Iterator[Outcome]:
    """The same, with a line on the terminal that says how many have come."""
    for number, outcome in enumerate(outcomes, 1):
        print(f"\r{number} of {total} runs", end="", file=sys.stderr, flush=True)
        yield outcome
    print(file=sys.stderr)


def curves(outcomes: list[Outcome], task: str) -> Curves:
    """Optimizer -> rate -> interval over the seeds."""
    values: dict[str, dict[float, list[float]]] = {}
    for outcome in outcomes:
        value = outcome.loss if task == FINE_TUNE else statistics.mean(outcome.declines)
        values.setdefault(outcome.name, {}).setdefault(outcome.rate, []).append(value)
    return {name: {rate: interval(found) for rate, found in rates.items()} for name, rates in values.items()}


def best(points: dict[float, Interval]) -> tuple[float, Interval]:
    return min(points.items(), key=lambda item: item[1].mean)


def report(outcomes: list[Outcome], chosen: list[Candidate]) -> None:
    fine, zoo = curves(outcomes, FINE_TUNE), curves(outcomes, ZOO)
    rows = []
    for candidate in chosen:
        name, rate = candidate.name, candidate.recommended
        (fine_rate, fine_best), (zoo_rate, zoo_best) = best(fine[name]), best(zoo[name])
        near = sum(one.mean <= 1.25 * fine_best.mean for one in fine[name].values())
        at_recommended = (f"{rate:g}", str(fine[name][rate]))
        at_best = (f"{fine_rate:g}", str(fine_best), f"{near} of {len(fine[name])}")
        rows.append((name, *at_recommended, *at_best, str(zoo[name][rate]), f"{zoo_rate:g}", str(zoo_best)))
    fine_columns = ("recommended", "loss there", "best rate", "loss there", "within 25 %")
    header = ("", *fine_columns, "zoo, recommended", "best rate", "zoo there")
    print(table(rows, header))
    seconds = sum(outcome.seconds for outcome in outcomes)
    print(f"{len(outcomes)} runs of each task, {seconds / 60:.1f} CPU-minutes, torch {torch.__version__}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--plot", type=Path, help="write the plot here (SVG)")
    parser.add_argument("--json", type=Path, help="write every run here; --from reads it back")
    parser.add_argument("--from", dest="source", type=Path, help="report and plot these runs, run nothing")
    options = parser.parse_args()
    chosen = candidates()
    if options.source:
        outcomes = [
            Outcome(**{**row, "declines": tuple(row["declines"])}) for row in json.loads(options.source.read_text())
        ]
    else:
        # seed by seed, so that a process pretrains each model once
        jobs = [(n, rate, s) for s in range(options.seeds) for n, one in enumerate(chosen) for rate in one.rates]
        with ProcessPoolExecutor(options.processes) as pool:
            outcomes = list(told(pool.map(one, jobs), len(jobs)))
    if options.json:
        options.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes]))
    report(outcomes, chosen)
    if options.plot:
        panels = {FINE_TUNE: curves(outcomes, FINE_TUNE), ZOO: curves(outcomes, ZOO)}
        plot(options.plot, panels, {candidate.name: candidate.recommended for candidate in chosen})


if __name__ == "__main__":
    main()
