"""`kohya-ext ema`: EMAs of other lengths from the files that a run has saved."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kohya_ext.cli.common import add_json
from kohya_ext.core.console import Output, Progress
from kohya_ext.core.errors import DONE, ConflictError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kohya_ext.posthoc.reconstruction import MixturePlan
    from kohya_ext.posthoc.snapshots import RunFiles

MOST_FILES = 64  # of a sweep


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the group."""
    group = subparsers.add_parser("ema", help="choose the length of the EMA after the training")
    verbs = group.add_subparsers(title="commands", metavar="COMMAND", required=True)

    verb = verbs.add_parser("list", help="what the saved files of a run hold")
    _add_run(verb)
    verb.set_defaults(run=list_snapshots)

    verb = verbs.add_parser("reconstruct", help="an EMA of another length from the EMAs that were saved")
    _add_run(verb)
    _add_length(verb)
    _add_writing(verb)
    verb.set_defaults(run=reconstruct)

    verb = verbs.add_parser("sweep", help="EMAs of several lengths, to compare them with `kohya-ext grid`")
    _add_run(verb)
    verb.add_argument("--sigma-rel", required=True, metavar="FROM:TO:COUNT", help="widths, such as 0.03:0.25:6")
    _add_step(verb)
    _add_writing(verb, folder=True)
    verb.set_defaults(run=sweep)

    verb = verbs.add_parser("merge", help="approximate an EMA from raw checkpoints or LoRA files of several epochs")
    _add_run(verb)
    _add_length(verb)
    _add_writing(verb)
    verb.set_defaults(run=merge)


def _add_run(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("models", type=Path, nargs="+", metavar="RUN", help="the run's files, or the folder they are in")
    verb.add_argument("--name", help="the run's output name, where a folder holds several runs")
    add_json(verb)


def _add_length(verb: argparse.ArgumentParser) -> None:
    length = verb.add_mutually_exclusive_group(required=True)
    length.add_argument("--sigma-rel", type=float, metavar="X", help="relative width of the EMA, 0 to 0.28 (power EMA)")
    length.add_argument("--decay", type=float, metavar="D", help="decay of the EMA for each optimizer step")
    _add_step(verb)


def _add_step(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--step", type=int, metavar="N", help="as of step N (default: the last snapshot's)")


def _add_writing(verb: argparse.ArgumentParser, *, folder: bool = False) -> None:
    what = "the folder for the new files" if folder else "the new file (.safetensors)"
    verb.add_argument("--out", type=Path, required=True, metavar="DIR" if folder else "FILE", help=what)
    verb.add_argument("--overwrite", action="store_true", help="replace existing files")
    verb.add_argument("--force", action="store_true", help="write an EMA even where its error is large")
    verb.add_argument("--dry-run", action="store_true", help="say how exact the EMA would be, write nothing")


def list_snapshots(arguments: argparse.Namespace) -> int:
    """A line for each file."""
    out = Output("ema list", arguments.json)
    run = _run_of(arguments)
    for one in run.files:
        out.item("epoch" if run.in_epochs else f"step {one.step}", f"{one.path}: {one.kind}")
    rows = [{"path": str(one.path), "step": None if run.in_epochs else one.step, "kind": one.kind} for one in run.files]
    return out.finish(DONE, snapshots=rows)


def reconstruct(arguments: argparse.Namespace) -> int:
    """One EMA from the EMAs, and the raw weights too where they are given."""
    return _one(arguments, "ema reconstruct", need_ema=True)


def merge(arguments: argparse.Namespace) -> int:
    """One EMA from raw weights; EMAs among the files are left aside."""
    return _one(arguments, "ema merge", need_ema=False)


def sweep(arguments: argparse.Namespace) -> int:
    """Several EMAs, a file each."""
    out = Output("ema sweep", arguments.json)
    widths = _widths(arguments.sigma_rel)
    if not arguments.dry_run and not arguments.out.is_dir():
        raise UsageError(f"the folder {arguments.out} does not exist; create it first")
    run = _run_of(arguments)
    from kohya_ext.posthoc.reconstruction import plans, target_of

    made = plans(run, [target_of(run, sigma_rel=width, step=arguments.step) for width in widths])
    name = run.snapshots[0].name
    targets = [arguments.out / f"{name}-sigma{width:.3f}.safetensors" for width in widths]
    return _written(arguments, out, made, targets)


def _one(arguments: argparse.Namespace, command: str, *, need_ema: bool) -> int:
    from kohya_ext.files.disk import check_target

    out = Output(command, arguments.json)
    if not arguments.dry_run:
        check_target(arguments.out, arguments.overwrite)
    run = _run_of(arguments)
    from kohya_ext.posthoc.reconstruction import plan, target_of
    from kohya_ext.posthoc.snapshots import RunFiles

    if not need_ema:
        run = RunFiles(tuple(one for one in run.files if one.ema is None), run.in_epochs)
    if not run.snapshots:
        raise UsageError("no raw weights are among these files: use `kohya-ext ema reconstruct`")
    if need_ema and not any(one.ema is not None for one in run.snapshots):
        raise UsageError("no EMA is among these files: `kohya-ext ema merge` works with raw weights")
    target = target_of(run, sigma_rel=arguments.sigma_rel, decay=arguments.decay, step=arguments.step)
    return _written(arguments, out, [plan(run, target)], [arguments.out])


def _run_of(arguments: argparse.Namespace) -> RunFiles:
    try:
        from kohya_ext.posthoc.snapshots import read_run
    except ImportError as error:
        raise UsageError(f"ema needs torch ({error}): run it with Kohya's Python") from error
    return read_run(arguments.models, name=arguments.name)


def _widths(text: str) -> list[float]:
    parts = text.split(":")
    try:
        first, last, count = float(parts[0]), float(parts[1]), int(parts[2])
    except (ValueError, IndexError) as error:
        raise UsageError(f"--sigma-rel {text}: expected FROM:TO:COUNT, such as 0.03:0.25:6") from error
    if len(parts) != 3 or not 1 < count <= MOST_FILES or not 0 < first < last < 1:
        raise UsageError(f"--sigma-rel {text}: expected two widths, the smaller first, and 2 to {MOST_FILES} files")
    return [round(first * (last / first) ** (place / (count - 1)), 3) for place in range(count)]


def _written(arguments: argparse.Namespace, out: Output, plans: list[MixturePlan], targets: list[Path]) -> int:
    from kohya_ext.files.disk import check_target
    from kohya_ext.posthoc.reconstruction import MOST_ERROR, write

    rows: list[dict[str, Any]] = []
    for one, path in zip(plans, targets, strict=True):
        key, number = one.target.number
        made = one.mixture
        out.item(
            f"{key} {number:g}",
            f"from {len(one.sources)} files up to step {one.target.step}: expected error {_percent(made.error)}, "
            f"{_percent(made.worst)} in the worst case (of the distance between EMA and raw weights)",
        )
        figures = {"error": made.error, "bound": made.bound, "rounding": made.rounding}
        rows.append({"path": str(path), key: number, "step": one.target.step, **figures})
        if not made.error <= MOST_ERROR and not arguments.force and not arguments.dry_run:
            raise ConflictError(
                f"{key} {number:g}: the expected error of {_percent(made.error)} is above {_percent(MOST_ERROR)}. Save "
                "more snapshots, choose a width nearer to theirs, or give --force. Nothing was written"
            )
        if not arguments.dry_run:
            check_target(path, arguments.overwrite)
    coarse = max(one.mixture.rounding for one in plans)
    if coarse > MOST_ERROR:
        out.warn(
            f"the files' dtype rounds away {coarse:.2g} times the distance between EMA and raw weights: lengths "
            "hardly differ in such files. Train with --save_precision float to choose a length afterwards"
        )
    if not arguments.dry_run:
        for one, path in zip(plans, targets, strict=True):
            with Progress(shown=not arguments.json) as progress:
                write(one, path, _shown(progress, path))
            out.item("written", str(path))
    return out.finish(DONE, files=rows, written=not arguments.dry_run)


def _shown(progress: Progress, path: Path) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        progress.show(done, total, f"{done / max(1, total):.0%} of {path.name}", path.name)

    return show


def _percent(part: float) -> str:
    return f"{100 * part:.2g}%" if part < 1 else f"{part:.0%}"
