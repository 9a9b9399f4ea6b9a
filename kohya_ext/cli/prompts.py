"""`kohya-ext prompts`: a sample-prompt file for Kohya, as the guide judges models."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kohya_ext.cli.common import add_json
from kohya_ext.core.console import Output
from kohya_ext.core.errors import DONE, ConflictError, KohyaExtError, UsageError

if TYPE_CHECKING:
    from kohya_ext.evaluation.prompts import CaptionedImage

FEW, MORE = 4, 8
MOST = 100  # prompts of a kind: with four seeds each, more is nobody's patience


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "prompts", help="write prompts to judge a model with: captions, variations, generic subjects"
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="folder of training images, subfolders included")
    add("--output", type=Path, metavar="FILE", help="a .txt for Kohya's sample prompts and for `grid`; else printed")
    add("--overwrite", action="store_true", help="replace FILE if it exists")
    add(
        "--count",
        type=int,
        metavar="N",
        help=f"prompts of each kind (default {FEW}, {MORE} with --held-out); generic ones get four seeds each",
    )
    add(
        "--held-out",
        type=Path,
        metavar="DIR",
        help="images that are not trained on: their captions as well, for `grid --held-out`",
    )
    add("--trigger", default="", metavar="WORDS", help="the concept's token, which is put into the near prompts")
    add("--seed", type=int, default=1, metavar="N", help="seed of the selection and of the images (default 1)")
    add("--size", default="1024x1024", metavar="WxH", help="size of the images (default 1024x1024)")
    add("--steps", type=int, default=30, metavar="N", help="default 30")
    add("--cfg", type=float, default=7.0, metavar="X", help="default 7")
    add("--negative", default="", metavar="PROMPT")
    add("--extension", default=".txt", metavar=".EXT", help="extension of the caption files (default .txt)")
    add_json(parser)
    parser.set_defaults(run=prompts)


def prompts(arguments: argparse.Namespace) -> int:
    """Read the captions, choose, write or print."""
    from kohya_ext.dataset.layout import require_folder
    from kohya_ext.evaluation import promptfile
    from kohya_ext.evaluation.prompts import PromptSettings, make

    out = Output("prompts", arguments.json)
    width, height = _size(arguments.size)
    if arguments.count is None:
        arguments.count = FEW if arguments.held_out is None else MORE
    _check(arguments)
    settings = PromptSettings(
        count=arguments.count, seed=arguments.seed, width=width, height=height, steps=arguments.steps,
        cfg=arguments.cfg, negative=arguments.negative, trigger=arguments.trigger.strip(),
    )  # fmt: skip
    captions = list(_captions(require_folder(arguments.folder), arguments.extension, out))
    held_out = arguments.held_out and list(_captions(require_folder(arguments.held_out), arguments.extension, out))
    made = make(captions, settings, held_out)
    text = promptfile.document(made)
    if arguments.output:
        _write(arguments.output, text, overwrite=arguments.overwrite)
        sections = list(dict.fromkeys(prompt.section for prompt in made))
        out.item("written", f"{arguments.output}: {len(made)} prompts from {len(captions)} captions")
        for section in sections:
            out.item("", f"{sum(prompt.section == section for prompt in made)} {section}")
    else:
        out.document(text)
    return out.finish(
        DONE,
        captions=len(captions),
        output=str(arguments.output) if arguments.output else None,
        prompts=[{**vars(prompt), "line": promptfile.line(prompt)} for prompt in made],
    )


def _captions(folder: Path, suffix: str, out: Output) -> Iterator[CaptionedImage]:
    """The captions of the images; an image without a caption file speaks by its name, as the guide has it."""
    from kohya_ext.dataset import texts
    from kohya_ext.dataset.captions import series_by_folder
    from kohya_ext.dataset.layout import images_in, require_extension
    from kohya_ext.dataset.names import caption_of, is_camera_name
    from kohya_ext.evaluation.prompts import CaptionedImage

    require_extension(suffix)
    images = images_in(folder, recursive=True)
    series = series_by_folder(images)
    for image in images:
        try:
            caption = texts.read(folder, image.with_suffix(suffix))
        except KohyaExtError as error:
            out.warn(f"skipped: {error}")
            continue
        if caption is None and is_camera_name(image.stem):
            out.warn(f"skipped: {image} has no caption, and its name comes from a camera or a program")
            continue
        # Kohya trains with the first line only
        text = caption.first_line if caption else caption_of(image.stem, series=series[image.parent])
        yield CaptionedImage(text, image.as_posix())


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{2,4})[x,](\d{2,4})", text.strip())
    if not match or not all(64 <= int(side) <= 4096 and int(side) % 8 == 0 for side in match.groups()):
        raise UsageError(f"--size {text!r}: give WxH from 64 to 4096 in multiples of 8, as in 1024x1024")
    return int(match[1]), int(match[2])


def _check(arguments: argparse.Namespace) -> None:
    if not 1 <= arguments.count <= MOST:
        raise UsageError(f"--count {arguments.count}: from 1 to {MOST}")
    if not 1 <= arguments.steps <= 1000:
        raise UsageError(f"--steps {arguments.steps}: must be from 1 to 1000, as in Kohya")
    if not 0 <= arguments.cfg <= 100:
        raise UsageError(f"--cfg {arguments.cfg}: from 0 to 100")
    if not 0 <= arguments.seed < 2**32:
        raise UsageError(f"--seed {arguments.seed}: from 0 to {2**32 - 1}")


def _write(path: Path, text: str, *, overwrite: bool) -> None:
    from kohya_ext.files.atomic import write_atomic

    if path.suffix != ".txt":
        raise UsageError(f"{path}: Kohya recognizes such a prompt file by its name: it must end in .txt")
    if not path.parent.is_dir():
        raise UsageError(f"the folder {path.parent} does not exist; create it first")
    if path.is_dir() or (path.exists() and not overwrite):
        raise ConflictError(f"{path} exists; give --overwrite to replace it, or another name. Nothing was written")
    try:
        write_atomic(path, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise ConflictError(f"{path} cannot be written: {error.strerror or error}. Nothing was written") from error
