"""`kohya-ext grid`: contact sheets of what models make of a prompt file."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from kohya_ext.cli.common import add_json
from kohya_ext.core.console import Output, Progress
from kohya_ext.core.errors import DONE, ConflictError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kohya_ext.evaluation.grid import Grid, Renderer
    from kohya_ext.evaluation.held_out import PromptedImages
    from kohya_ext.evaluation.memorization import TrainingImages
    from kohya_ext.evaluation.models import Column
    from kohya_ext.evaluation.promptfile import Prompt

PAGE, SHEET = "grid.html", "grid.png"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser("grid", help="render prompts with several models, EMA next to raw")
    add = parser.add_argument
    add("models", type=Path, nargs="+", metavar="MODEL", help="checkpoints, LoRAs, diffusers folders, folders of them")
    add("--prompts", type=Path, required=True, metavar="FILE", help="a Kohya prompt file (.txt, .toml, .json)")
    add(
        "--output",
        type=Path,
        required=True,
        metavar="FOLDER",
        help=f"where {PAGE}, {SHEET} and images/ are written; an interrupted grid is resumed",
    )
    add("--images", type=Path, metavar="FOLDER", help="the training images: show the nearest one, and near copies")
    add(
        "--held-out",
        type=Path,
        metavar="DIR",
        help="images that were not trained on: are images nearer to the training images than to these?",
    )
    add("--clip", nargs="?", const="", metavar="DIR", help="compare by CLIP (in the local cache, or DIR), not by hash")
    add("--base", type=Path, metavar="MODEL", help="the model that LoRAs are applied to")
    add("--weight", type=float, default=1.0, metavar="X", help="weight of the LoRAs (default 1)")
    add(
        "--no-ema",
        "--no-average",
        dest="no_average",
        action="store_true",
        help="skip the -ema files next to the given models",
    )
    add("--limit", type=int, metavar="N", help="only the first N prompts of each section")
    add(
        "--config",
        type=Path,
        metavar="DIR",
        help="a diffusers folder with the configuration of single files, for offline use",
    )
    add("--device", default="auto", help="auto (CUDA if there is one), cpu, cuda, cuda:1, ...")
    add("--dtype", choices=("auto", "fp16", "bf16", "fp32"), default="auto", help="auto: fp16 on a GPU, fp32 on a CPU")
    add("--dry-run", action="store_true", help="list models and prompts, render nothing")
    add_json(parser)
    parser.set_defaults(run=grid)


def grid(arguments: argparse.Namespace) -> int:
    """List, render what is missing, compare, write the sheets."""
    try:
        from kohya_ext.evaluation import grid as grids
        from kohya_ext.evaluation import models
    except ImportError as error:
        raise UsageError(f"grid needs Pillow ({error}): run it with Kohya's Python") from error

    out = Output("grid", arguments.json)
    columns = models.columns(arguments.models, averages=not arguments.no_average)
    prompts = _prompts(arguments, out)
    for column in columns:
        out.item("model", f"{column.label} ({column.kind}): {column.path}")
    out.item("images", f"{len(prompts)} prompts by {len(columns)} models: {len(prompts) * len(columns)}")
    if arguments.dry_run:
        return out.finish(DONE, models=[str(column.path) for column in columns], prompts=len(prompts))
    training = _training(arguments, out)
    prompted = _prompted(arguments, prompts, training)
    renderer, salt = make_renderer(arguments, columns)
    with _made(arguments.output), Progress() as progress:
        shown = _counted(progress)
        made = grids.render(
            columns, prompts, renderer, arguments.output,
            training=training, prompted=prompted, salt=salt, progress=shown,
        )  # fmt: skip
    _write(made, arguments.output)
    judged = made.judged()
    for column, one in zip(columns, judged, strict=False):
        out.item("near copies", f"{one.copies} of {one.images}: {column.label}")
    if made.comparisons:
        out.item("memorizing", "images that are nearer to a training than to a held-out image:")
        for column, one in zip(columns, judged, strict=True):
            out.item("", f"{one.told()}: {column.label}")
    out.item("page", str(arguments.output / PAGE))
    out.item("sheet", str(arguments.output / SHEET))
    return out.finish(DONE, **_document(made, arguments.output))


def make_renderer(arguments: argparse.Namespace, columns: Sequence[Column]) -> tuple[Renderer, str]:
    """The renderer, and what its images depend on next to model and prompt."""
    from kohya_ext.evaluation.models import LORA
    from kohya_ext.evaluation.models import columns as columns_of

    base = columns_of([arguments.base], averages=False)[0] if arguments.base else None
    loras = [column for column in columns if column.kind == LORA]
    if loras and base is None:
        raise UsageError(f"{loras[0].path} is a LoRA: name the model it was trained on with --base")
    if base is not None and base.kind == LORA:
        raise UsageError(f"--base {arguments.base} is a LoRA itself")
    try:
        from kohya_ext.evaluation.diffusers_renderer import DiffusersRenderer, RenderSettings
    except ImportError as error:
        raise UsageError(f"grid needs torch and diffusers ({error}): run it with Kohya's Python") from error
    renderer = DiffusersRenderer(
        RenderSettings(base, arguments.config, arguments.device, arguments.dtype, arguments.weight)
    )
    on_base = f"{base.identity}|{arguments.weight}" if base and loras else ""
    return renderer, f"{renderer.dtype}|{on_base}"


def _prompts(arguments: argparse.Namespace, out: Output) -> list[Prompt]:
    from kohya_ext.evaluation.promptsource import read

    found = read(arguments.prompts)
    prompts = list(found.prompts)
    if found.ignored:
        out.warn(f"{arguments.prompts}: no script reads the keys {', '.join(found.ignored)}: they do nothing")
    if found.marked:
        out.warn(
            f"{arguments.prompts}: begins with a byte order mark, which Kohya takes for the first letter of the "
            "first prompt (here it is omitted): save it as UTF-8 without one"
        )
    if found.joined:
        out.warn(f"{arguments.prompts}: Kohya takes {found.joined[0]!r} for text, as there is no blank before it")
    if found.weighted:
        out.warn("Kohya reads brackets in prompts as weights; here they are rendered as plain text")
    if any(prompt.seed is None for prompt in prompts):
        out.warn("prompts without a seed get a different one for each model, so their images cannot be compared")
    if arguments.limit is None:
        return prompts
    seen: dict[str, int] = {}
    kept = []
    for prompt in prompts:
        seen[prompt.section] = seen.get(prompt.section, 0) + 1
        if seen[prompt.section] <= arguments.limit:
            kept.append(prompt)
    if not kept:
        raise UsageError(f"--limit {arguments.limit}: must be at least 1")
    return kept


def _training(arguments: argparse.Namespace, out: Output) -> TrainingImages | None:
    if arguments.images is None:
        return None
    from kohya_ext.dataset.layout import images_in, require_folder
    from kohya_ext.evaluation.memorization import CLIP_MODEL, Clip, Hash, TrainingImages

    folder = require_folder(arguments.images)
    measure = Hash() if arguments.clip is None else Clip(arguments.clip or CLIP_MODEL)
    with Progress() as progress:
        training = TrainingImages(folder, images_in(folder, recursive=True), measure, _counted(progress))
    if training.unreadable:
        out.warn(
            f"{len(training.unreadable)} training images cannot be read, e.g. {training.unreadable[0]}: see `audit`"
        )
    return training


def _prompted(
    arguments: argparse.Namespace, prompts: Sequence[Prompt], training: TrainingImages | None
) -> PromptedImages | None:
    if arguments.held_out is None:
        return None
    from kohya_ext.dataset.layout import require_folder
    from kohya_ext.evaluation.held_out import Colours, PromptedImages

    if training is None:
        raise UsageError("--held-out compares with the training images: give their folder with --images")
    measure = Colours() if arguments.clip is None else training.measure
    folder = require_folder(arguments.held_out)
    with Progress() as progress:
        return PromptedImages(training.folder, folder, prompts, measure, _counted(progress))


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make the folder; what is empty of it goes again when nothing is rendered. Raises ConflictError."""
    from kohya_ext.evaluation.grid import IMAGES

    before = next((parent for parent in (folder, *folder.parents) if _exists(parent)), folder)
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConflictError(
                f"{folder} cannot be created: {error.strerror or error}. Nothing was rendered"
            ) from error
        yield
    except BaseException:
        for made in (folder / IMAGES, folder, *folder.parents):
            if made == before:
                break
            with contextlib.suppress(OSError):
                made.rmdir()
        raise


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long
        return False


def _write(made: Grid, folder: Path) -> None:
    from kohya_ext.evaluation import sheet
    from kohya_ext.files.atomic import write_atomic
    from kohya_ext.spec import judged

    names = sorted({column.name for column in made.columns})
    title = f"Grid of {', '.join(names[:3])}" + (" and others" if len(names) > 3 else "")
    try:
        write_atomic(folder / SHEET, sheet.draw(made, folder))
        write_atomic(folder / judged.FILE, judged.encoded(made.judged()).encode())
        write_atomic(folder / PAGE, sheet.page(made, folder, title).encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise ConflictError(f"{folder} cannot be written to: {error.strerror or error}") from error


def _document(made: Grid, folder: Path) -> dict[str, object]:
    judged = made.judged()

    def cell(place: int, row: int) -> dict[str, object]:
        one = made.cells[row][place]
        return {"image": one.path, "nearest": vars(one.nearest) if one.nearest else None}

    return {
        "page": str(folder / PAGE),
        "sheet": str(folder / SHEET),
        "prompts": [vars(prompt) for prompt in made.prompts],
        "models": [
            {
                "path": str(column.path), "label": column.label, "average": column.average,
                "near_copies": judged[place].copies if judged else None,
                "held_out": vars(made.comparisons[place]) if made.comparisons else None,
                "images": [cell(place, row) for row in range(len(made.prompts))],
            }
            for place, column in enumerate(made.columns)
        ],
    }  # fmt: skip


def _counted(progress: Progress) -> Callable[[str, int, int], None]:
    return lambda what, done, total: progress.show(done, total, f"{done} of {total}: {what}")
