"""`kohya-ext card`: the page of a model for CivitAI or Hugging Face."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kohya_ext.cli.common import add_json
from kohya_ext.cli.preset_lookup import NAME_HELP, preset_named
from kohya_ext.core.console import Output, Progress
from kohya_ext.core.errors import DONE, ConflictError, UsageError

if TYPE_CHECKING:
    from kohya_ext.card.page import Author, Page

MOST_BYTES = 10_000_000  # of a text file that we read


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser("card", help="write a model card for CivitAI or Hugging Face, as Markdown")
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL", help="a .safetensors file, checkpoint or LoRA")
    add("--for", dest="site", choices=("civitai", "huggingface"), default="civitai", help="default: civitai")
    add("--output", type=Path, metavar="FILE", help="output file (default: print the card)")
    add("--overwrite", action="store_true", help="regenerate FILE; your edits between its markers are kept")
    add("--preset", metavar="NAME", help=f"{NAME_HELP}: the one of the training, for what MODEL does not record")
    add(
        "--changelog",
        type=Path,
        metavar="FILE",
        help="Markdown with one heading per version; older major versions are condensed",
    )
    add("--hash", action="store_true", help="compute the file's SHA-256 as well")
    about = parser.add_argument_group("what only you know (or write it into the page afterwards)")
    add = about.add_argument
    add("--title", default="")
    add("--description", default="", help="one or two sentences; they come first")
    add("--trigger", action="append", default=[], metavar="WORDS", help="once for each trigger")
    add("--sampler", default="", metavar="NAME")
    add("--steps", type=int, metavar="N")
    add("--cfg", type=float, metavar="X")
    add("--size", default="", metavar="WxH", help="default: the resolution of the training")
    add("--negative", default="", metavar="PROMPT")
    add("--weight", default="", metavar="X", help="of a LoRA, e.g. 0.8 to 1")
    add("--notes", default="", help="usage notes")
    add("--license", default="", metavar="NAME", help="default: the file's own")
    add("--allow", action="append", default=[], metavar="WHAT", help="no-credit, sell-images, services, ...")
    add("--deny", action="append", default=[], metavar="WHAT", help="the same names")
    add_json(parser)
    parser.set_defaults(run=card)


def card(arguments: argparse.Namespace) -> int:
    """Read the model's header, make the page, write or print it."""
    from dataclasses import replace

    from kohya_ext.card import model as models
    from kohya_ext.card import training
    from kohya_ext.card.page import page, title
    from kohya_ext.files.disk import sha256_of

    out = Output("card", arguments.json)
    before = _check_target(arguments.output, arguments.model, arguments.overwrite)
    author = _author(arguments)
    preset = _preset(arguments.preset)
    model = models.read(arguments.model)
    if arguments.hash:
        with Progress() as progress:
            digest = sha256_of(
                arguments.model, lambda done, total: progress.show(done, total, f"SHA-256: {done / max(1, total):.0%}")
            )
        model = replace(model, sha256=digest)
    made = page(model, author, arguments.site, preset=preset, before=before)
    if arguments.output:
        _write(arguments.output, made, out)
    else:
        out.document(made.text)
    return out.finish(
        DONE,
        title=title(model, author), kind=model.kind, family=model.family.name, weights=model.weights, bytes=model.size,
        sha256=model.sha256 or None, training=training.summary(model, preset),
        output=str(arguments.output) if arguments.output else None,
        page=made.text, kept=list(made.kept), missing=list(made.missing),
    )  # fmt: skip


def _check_target(path: Path | None, model: Path, overwrite: bool) -> str:
    """The page as it is now, "" where there is none."""
    if path is None:
        return ""
    if not path.parent.is_dir():
        raise UsageError(f"the folder {path.parent} does not exist; create it first")
    if not path.exists():
        return ""
    if path.is_dir() or (model.exists() and path.samefile(model)):
        raise UsageError(f"{path} is not a page: give the name of a Markdown file")
    if not overwrite:
        raise ConflictError(f"{path} exists; --overwrite regenerates it and keeps your edits between its markers")
    return _text(path)


def _author(arguments: argparse.Namespace) -> Author:
    from kohya_ext.card.changelog import parse
    from kohya_ext.card.page import PERMISSIONS, Author

    said = {**dict.fromkeys(arguments.allow, True), **dict.fromkeys(arguments.deny, False)}
    if unknown := [name for name in said if name not in PERMISSIONS]:
        raise UsageError(f"{unknown[0]!r} is not a permission; known ones: {', '.join(PERMISSIONS)}")
    if both := set(arguments.allow) & set(arguments.deny):
        raise UsageError(f"{', '.join(sorted(both))}: give either --allow or --deny")
    versions = parse(_text(arguments.changelog)) if arguments.changelog else []
    if arguments.changelog and not versions:
        raise UsageError(f'{arguments.changelog} has no heading with a version, such as "## 1.2 (2023-12-05)"')
    return Author(
        title=arguments.title, description=arguments.description, triggers=arguments.trigger,
        sampler=arguments.sampler, steps=arguments.steps, cfg=arguments.cfg, size=arguments.size,
        negative=arguments.negative, weight=arguments.weight, notes=arguments.notes, licence=arguments.license,
        permissions=said, versions=versions,
    )  # fmt: skip


def _preset(name: str | None) -> Mapping[str, Any]:
    return preset_named(name, None).values if name is not None else {}


def _text(path: Path) -> str:
    from kohya_ext.files.regular import read_text

    return read_text(path, MOST_BYTES)


def _write(path: Path, made: Page, out: Output) -> None:
    from kohya_ext.files.atomic import write_atomic

    try:
        write_atomic(path, made.text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise ConflictError(f"{path} cannot be written: {error.strerror or error}. Nothing was changed") from error
    out.item("written", str(path))
    if made.kept:
        out.item("kept", f"your text: {', '.join(made.kept)}")
    if made.missing:
        out.item("to fill in", ", ".join(made.missing))
