"""`kohya-ext report`: one page about a training run, from what it has left."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kohya_ext.cli.common import add_json
from kohya_ext.core.console import Output
from kohya_ext.core.errors import DONE, UsageError
from kohya_ext.core.shell import pip_install

if TYPE_CHECKING:
    from kohya_ext.report.gather import Gathered
    from kohya_ext.validation.records import Row


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser("report", help="write a page about a run: losses, validation, samples, settings")
    add = parser.add_argument
    add("folder", type=Path, metavar="RUN", help="the run's output folder (--output_dir)")
    add("--name", metavar="NAME", help="the run's output name, where the folder holds several runs")
    add("--logs", type=Path, metavar="DIR", help="the run's --logging_dir (default: event files within RUN)")
    add("--html", type=Path, metavar="FILE", help="the page (default: NAME-report.html in RUN)")
    add_json(parser)
    parser.set_defaults(run=report)


def report(arguments: argparse.Namespace) -> int:
    """Gather, write the page, say what is best."""
    try:
        from kohya_ext.report.judging import checkpoints, document, memorizes_from, told
        from kohya_ext.report.page import best_row, costs, overfits, page
    except ImportError as error:
        raise UsageError(f"report needs Pillow to read images ({error}); {pip_install('pillow')}") from error
    from kohya_ext.files.disk import explained_target
    from kohya_ext.report.gather import gather

    out = Output("report", arguments.json)
    if arguments.logs is not None and not arguments.logs.is_dir():
        raise UsageError(f"{arguments.logs} is not a folder: give the run's --logging_dir")
    run = gather(arguments.folder, arguments.name, arguments.logs)
    target = arguments.html or arguments.folder / f"{run.name}-report.html"
    _check_page(target)
    from kohya_ext.files.atomic import write_atomic

    with explained_target(target):
        write_atomic(target, page(run).encode("utf-8", "backslashreplace"))
    best, turned = best_row(run), overfits(run.rows)
    if best is not None:
        out.item("lowest", f"{best.loss:.5g}, {best.weights}, epoch {best.epoch}, step {best.step}")
    if turned is not None:
        out.item(
            "rises", f"the validation loss of the raw weights is lowest after step {turned.step}, and has risen since"
        )
    judged = checkpoints(run)
    memorizes = memorizes_from(judged)
    if memorizes is not None:
        out.item("memorizing", told(memorizes))
    out.item("found", _found(run))
    out.item("page", str(target))
    return out.finish(
        DONE, name=run.name, page=str(target), best=None if best is None else _row(best),
        turned=None if turned is None else turned.step, judged=[document(one) for one in judged],
        validations=[_row(row) for row in run.rows],
        losses=len(run.losses), samples=len(run.samples), costs=costs(run), settings=dict(run.settings),
    )  # fmt: skip


def _found(run: Gathered) -> str:
    validations = len({row.step for row in run.rows})
    return (
        f"{validations} validations, {len(run.losses)} losses, {len(run.samples)} samples, "
        f"{len(run.checkpoints)} checkpoints"
    )


def _row(row: Row) -> dict[str, Any]:
    """As JSON, which knows no NaN."""
    values = {name: getattr(row, name) for name in ("step", "epoch", "weights", "loss", "low", "high", "train_loss")}
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }


def _check_page(path: Path) -> None:
    if not path.parent.is_dir():
        raise UsageError(f"the folder {path.parent} does not exist; create it first")
    if path.is_dir():
        raise UsageError(f"{path} is a folder: give the name of a page, such as report.html")
