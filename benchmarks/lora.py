"""Extraction and resizing next to sd-scripts' own routines, one run, one machine.

    SD_SCRIPTS_GIT=<git directory> python -m benchmarks.lora [extract|resize|both] [--rank 128] [--rounds 2]

Method. Two full SDXL models and their float32 differences, which sd-scripts holds in memory at once, exceed a small
machine; so each distinct shape of the layers that a LoRA of SDXL has (U-Net and both text encoders) is measured, and
counted as often as it occurs. A layer is a difference with falling singular values (j^-0.7) over a Gaussian noise
floor, rank 512 deep. The peer is the code of sd-scripts itself, read from git when the benchmark runs and called:
extract is the loop of extract_lora_from_models.py from the difference to the factors, resize are the functions that
resize_lora_model calls for a module. It works on one matrix after another with all threads; ours works on as many
matrices as there are workers, as it does in an extraction, and the time is divided by their number. Neither reads or
writes files here. "error" is what the module misses next to the optimal truncated SVD (float64, from the Gram matrix):
1.005 is half a percent more than possible.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import sdxl
from benchmarks.timing import table
from kohya_ext.lora import workers
from kohya_ext.lora.layout import Architecture, targets
from kohya_ext.lora.svd import LowRank, low_rank, low_rank_product


def _shapes() -> dict[tuple[int, int], int]:
    """(out, in) -> how often: what a LoRA of SDXL changes in its U-Net (70 transformer blocks) and text encoders."""
    counts: Counter[tuple[int, int]] = Counter()
    for key, shape in sdxl.tensors().items():
        for target in targets(key, Architecture.SDXL) if len(shape) > 1 else ():
            if not target.inner:
                counts[shape[0] // (1 if target.part is None else 3), shape[1]] += 1
    return dict(counts)


SHAPES = _shapes()
DEEP = sdxl.RANK
METHODS = ("auto", "exact")
PEER = "sd-scripts"

Spectrum = tuple[float, float]
"""How steeply singular values fall, and the noise below them."""


@dataclass(frozen=True)
class Row:
    """Seconds a layer, of the peer and of ours; error: next to the optimum."""

    shape: tuple[int, int]
    count: int
    peer: float
    ours: dict[str, float]
    worst: dict[str, float]


def layer(shape: tuple[int, int], seed: int, spectrum: Spectrum) -> Tensor:
    """A float32 difference."""
    return sdxl.difference(shape, torch.Generator().manual_seed(seed), *spectrum)


def upstream(path: str) -> str:
    """A file of sd-scripts at HEAD."""
    git = os.environ.get("SD_SCRIPTS_GIT")
    if not git:
        raise SystemExit("needs SD_SCRIPTS_GIT, a git directory of kohya-ss/sd-scripts")
    for revision in ("HEAD", "main", "origin/main"):
        command = ["git", "--git-dir", git, "show", f"{revision}:{path}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout
    raise SystemExit(f"{git} has no {path}")


def peer_extract(rank: int) -> Callable[[Tensor], object]:
    """The body of sd-scripts' loop over differences, cut out of its source between its own marks."""
    lines = upstream("networks/extract_lora_from_models.py").splitlines()
    begin = next(i for i, line in enumerate(lines) if "for lora_name, mat in" in line) + 1
    end = next(i for i, line in enumerate(lines) if "lora_weights[lora_name] = " in line and i > begin) + 1
    body = textwrap.indent(textwrap.dedent("\n".join(lines[begin:end])), "    ")
    arguments = "lora_name, mat, args, device, dim, conv_dim, clamp_quantile, work_device, save_dtype, lora_weights"
    scope: dict[str, object] = {"torch": torch}
    exec(f"def step({arguments}):\n{body}\n", scope)
    step = scope["step"]
    assert callable(step)
    args = argparse.Namespace(device=None)

    def run(matrix: Tensor) -> object:
        found: dict[str, object] = {}
        with torch.no_grad():
            step("m", matrix, args, None, rank, None, 0.99, "cpu", torch.float16, found)
        return found

    return run


def peer_resize(rank: int) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    """merge_linear and extract_linear of sd-scripts' resize_lora.py, with what they call."""
    import ast

    tree = ast.parse(upstream("networks/resize_lora.py"))
    wanted = {"MIN_SV"}
    kept = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        or (isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id in wanted for t in node.targets))
    ]
    for node in kept:
        if isinstance(node, ast.FunctionDef):
            node.decorator_list = []
    scope: dict[str, object] = {"torch": torch}
    module = ast.Module(body=[*kept], type_ignores=[])
    exec(compile(module, "resize_lora.py", "exec"), scope)
    merge, extract = scope["merge_linear"], scope["extract_linear"]
    assert callable(merge) and callable(extract)

    def run(up: Tensor, down: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            found: dict[str, Tensor] = extract(merge(down, up, "cpu"), rank, None, None, "cpu", 1.0)
        return found

    return run


def best_in_turn(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The best of a few rounds in seconds; all take turns, so that a busy machine disturbs all of them alike."""
    best = dict.fromkeys(candidates, float("inf"))
    for _ in range(rounds):
        for name, run in candidates.items():
            begin = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - begin)
    return best


def excess(matrix: Tensor, squares: Tensor, found: LowRank) -> float:
    """Error of the float32 factors, as a multiple of the optimal one."""
    rank = len(found.values)
    missing = float((matrix - found.up @ found.down).double().norm())
    return missing / float(squares[rank:].clamp(min=0).sum().sqrt())


def squared_values(matrix: Tensor) -> Tensor:
    """Squared singular values, descending, in float64."""
    double = matrix.double()
    gram = double @ double.T if matrix.shape[0] < matrix.shape[1] else double.T @ double
    return torch.linalg.eigvalsh(gram).flip(0)


def measure_extract(shape: tuple[int, int], rank: int, rounds: int, spectrum: Spectrum) -> Row:
    number = workers.count(shape[0] * shape[1], torch.device("cpu"))
    layers = [layer(shape, seed, spectrum) for seed in range(number)]
    squares = [squared_values(matrix) for matrix in layers]
    peer, worst = peer_extract(rank), {}
    candidates: dict[str, Callable[[], object]] = {PEER: lambda: peer(layers[0])}
    for method in METHODS:

        def run(method: str = method) -> list[LowRank]:
            jobs = [(matrix, f"{shape}-{index}") for index, matrix in enumerate(layers)] * 2
            return list(workers.in_order(lambda job: low_rank(job[0], rank, method, job[1]), jobs, number))

        found = run()
        worst[method] = max(excess(*row) for row in zip(layers, squares, found[:number], strict=True))
        candidates[method] = run
    peer(layers[0][:64, :64])
    best = best_in_turn(candidates, rounds)
    return Row(shape, SHAPES[shape], best[PEER], {name: best[name] / (2 * number) for name in METHODS}, worst)


def measure_resize(shape: tuple[int, int], rank: int, rounds: int, spectrum: Spectrum, orthogonal: bool) -> Row:
    number = workers.count(shape[0] * shape[1], torch.device("cpu"))
    pairs = [factors(shape, seed, spectrum, orthogonal) for seed in range(number)]
    peer = peer_resize(rank)

    def run() -> list[LowRank]:
        return list(workers.in_order(lambda pair: low_rank_product(*pair, rank), pairs * 2, number))

    found = run()
    product = peer(*pairs[0])
    sizes = product["lora_up"].double().norm(dim=0)
    off = float(((found[0].values[:rank] - sizes) / sizes).abs().max())
    best = best_in_turn({PEER: lambda: peer(*pairs[0]), "ours": run}, rounds)
    return Row(shape, SHAPES[shape], best[PEER], {"ours": best["ours"] / (2 * number)}, {"ours": off})


def factors(shape: tuple[int, int], seed: int, spectrum: Spectrum, orthogonal: bool) -> tuple[Tensor, Tensor]:
    """A LoRA of rank 512: as extracted (orthogonal, in float16), or as trained (any factors)."""
    inner = min(DEEP, *shape)
    if orthogonal:
        found = low_rank(layer(shape, seed, spectrum), inner, "exact", "m")
        return found.up.half().float(), found.down.half().float()
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(shape[0], inner, generator=generator) * torch.arange(1, inner + 1) ** -spectrum[0]
    return up, torch.randn(inner, shape[1], generator=generator)


def total(rows: list[Row], ours: str) -> tuple[float, float]:
    return sum(row.peer * row.count for row in rows), sum(row.ours[ours] * row.count for row in rows)


def report_extract(rows: list[Row], rank: int) -> None:
    lines = [
        (
            f"{row.shape[0]}x{row.shape[1]}", str(row.count), f"{row.peer * 1e3:.0f}",
            *(f"{row.ours[name] * 1e3:.0f}" for name in METHODS),
            *(f"{row.peer / row.ours[name]:.1f}" for name in METHODS),
            *(f"{row.worst[name]:.6f}" for name in METHODS),
        )
        for row in rows
    ]  # fmt: skip
    head = ("layer", "count", "sd-scripts ms", "auto ms", "exact ms", "auto x", "exact x", "auto error", "exact error")
    print(f"extract, rank {rank}")
    print(table(lines, head))
    count = sum(row.count for row in rows)
    for name in METHODS:
        peer, ours = total(rows, name)
        print(f"SDXL, {count} layers: {peer:.0f} s and {ours:.0f} s ({name}): {peer / ours:.1f} times")


def report_resize(rows: list[Row], rank: int, kind: str) -> None:
    lines = [
        (
            f"{row.shape[0]}x{row.shape[1]}", str(row.count), f"{row.peer * 1e3:.0f}", f"{row.ours['ours'] * 1e3:.0f}",
            f"{row.peer / row.ours['ours']:.1f}", f"{row.worst['ours']:.1e}",
        )
        for row in rows
    ]  # fmt: skip
    print(f"resize, {DEEP} to {rank}, {kind} factors")
    print(table(lines, ("layer", "count", "sd-scripts ms", "ours ms", "times", "singular values off by")))
    peer, ours = total(rows, "ours")
    print(f"SDXL, {sum(row.count for row in rows)} layers: {peer:.0f} s and {ours:.0f} s: {peer / ours:.1f} times")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("extract", "resize", "both"), default="both")
    parser.add_argument("--rank", type=int, default=128, help="of the extraction")
    parser.add_argument("--to", type=int, default=16, help="rank of the resized LoRA")
    parser.add_argument("--rounds", type=int, default=2, help="the best of them counts, for both (default 2)")
    parser.add_argument("--decay", type=float, default=sdxl.DECAY, help=f"of singular values (default {sdxl.DECAY})")
    parser.add_argument("--floor", type=float, default=sdxl.FLOOR, help=f"noise below them (default {sdxl.FLOOR})")
    parser.add_argument("--trained", action="store_true", help="resize: factors that are not orthogonal")
    arguments = parser.parse_args()
    spectrum = (arguments.decay, arguments.floor)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, singular values j^-{spectrum[0]:g}, "
        f"noise {spectrum[1]:g}"
    )
    if arguments.part != "resize":
        rank = arguments.rank
        report_extract([measure_extract(shape, rank, arguments.rounds, spectrum) for shape in SHAPES], rank)
    if arguments.part != "extract":
        kind = "trained" if arguments.trained else "extracted"
        to, orthogonal = arguments.to, not arguments.trained
        rows = [measure_resize(shape, to, arguments.rounds, spectrum, orthogonal) for shape in SHAPES]
        report_resize(rows, to, kind)


if __name__ == "__main__":
    main()
