"""`kohya-ext captions`: captions from file names, edits of all captions of a folder, and taking them back."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kohya_ext.cli.common import IN_JSON_HELP, add_json
from kohya_ext.core.console import Output
from kohya_ext.core.errors import (
    DONE,
    FOUND_PROBLEMS,
    RECOVERED,
    KohyaExtError,
    RecoveredError,
    UsageError,
    did_you_mean,
)

if TYPE_CHECKING:
    from kohya_ext.dataset.history import EditPlan
    from kohya_ext.files.transaction import Recovery

GROUP = "captions"
WRITE = "write"
VERBS = (WRITE, "undo", "to-names", "prefix", "replace", "check")
SHOWN = 5  # examples a plan shows; --dry-run shows all


def with_verb(argv: Sequence[str]) -> list[str]:
    """`captions FOLDER` is `captions write FOLDER`; a folder that is called like a verb is reached as ./undo."""
    words = list(argv)
    if words[:1] != [GROUP] or not words[1:] or words[1] in (*VERBS, "-h", "--help"):
        return words
    if did_you_mean(words[1], VERBS) and not os.path.lexists(words[1]):
        return words  # a misspelt verb: the parser names the right one
    words.insert(1, WRITE)
    return words


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the group."""
    group = subparsers.add_parser(
        GROUP,
        help="write captions from file names; edit all captions of a folder",
        usage="kohya-ext captions FOLDER [options]\n       kohya-ext captions VERB FOLDER [options]",
    )
    verbs = group.add_subparsers(title="verbs", metavar="VERB", required=True, prog=f"kohya-ext {GROUP}")
    write = _verb(
        verbs, WRITE, write_captions, "write a caption next to each image, from its file name (the default verb)"
    )
    write.add_argument("--overwrite", action="store_true", help="overwrite existing captions")
    write.add_argument("--keep-suffix", action="store_true", help='keep "(1)", "_2" and " - Copy" at the end of names')
    _verb(verbs, "to-names", rename_images, "rename each image, and its companion files, after its caption")
    prefix = _verb(verbs, "prefix", prefix_captions, "prepend a text to every caption that does not start with it")
    prefix.add_argument("text", help="the text, including the space or comma after it")
    prefix.add_argument("--remove", action="store_true", help="remove the text instead of adding it")
    replace = _verb(verbs, "replace", replace_in_captions, "replace a text in every caption")
    replace.add_argument("old")
    replace.add_argument("new")
    replace.add_argument("--regex", action="store_true", help="OLD is a regular expression, NEW may contain \\1")
    replace.add_argument("--words", action="store_true", help="only whole words")
    replace.add_argument("--ignore-case", action="store_true")
    undo = _verb(verbs, "undo", undo_last, "undo the last captions command on this folder", selects=False)
    undo.add_argument("--keep-edited", action="store_true", help="skip files that were edited since")
    check = _verb(verbs, "check", check_captions, "report captions that are missing, broken or against the guide")
    check.add_argument("--token", default="", help="the concept's rare token, which every caption should contain")
    check.add_argument("--in-json", type=Path, metavar="FILE", help=IN_JSON_HELP)


def _verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
    *,
    selects: bool = True,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the folder of training images")
    if selects:
        parser.add_argument("--recursive", action="store_true", help="include subfolders")
        parser.add_argument(
            "--extension", default=".txt", metavar=".EXT", help="extension of the caption files (default .txt)"
        )
    if name != "check":
        parser.add_argument("--dry-run", action="store_true", help="show what would be done, change nothing")
    add_json(parser)
    parser.set_defaults(run=run)
    return parser


def write_captions(arguments: argparse.Namespace) -> int:
    """Captions from file names."""
    from kohya_ext.dataset import captions

    return _do(
        arguments,
        lambda folder: captions.from_names(
            folder,
            recursive=arguments.recursive,
            overwrite=arguments.overwrite,
            keep_suffix=arguments.keep_suffix,
            suffix=arguments.extension,
        ),
    )


def rename_images(arguments: argparse.Namespace) -> int:
    """File names from captions."""
    from kohya_ext.dataset import captions

    return _do(
        arguments,
        lambda folder: captions.to_names(folder, recursive=arguments.recursive, suffix=arguments.extension),
    )


def prefix_captions(arguments: argparse.Namespace) -> int:
    """A text in front of every caption."""
    from kohya_ext.dataset import captions

    return _do(
        arguments,
        lambda folder: captions.prefixed(
            folder,
            arguments.text,
            recursive=arguments.recursive,
            suffix=arguments.extension,
            remove=arguments.remove,
        ),
    )


def replace_in_captions(arguments: argparse.Namespace) -> int:
    """A text replaced in every caption."""
    from kohya_ext.dataset import captions

    return _do(
        arguments,
        lambda folder: captions.replaced(
            folder,
            arguments.old,
            arguments.new,
            recursive=arguments.recursive,
            suffix=arguments.extension,
            regex=arguments.regex,
            ignore_case=arguments.ignore_case,
            words=arguments.words,
        ),
    )


def undo_last(arguments: argparse.Namespace) -> int:
    """The last command on the folder, backwards."""
    from kohya_ext.dataset import history
    from kohya_ext.dataset.layout import require_folder

    out = Output("captions undo", arguments.json)
    folder = require_folder(arguments.folder)
    recovered = _recovered(out, folder) if not arguments.dry_run else None
    if recovered and history.has_undone(recovered):
        had = "was undone" if recovered.verb else "had not begun"
        out.item("done", f"the interrupted command {had}; run undo again for the one before it")
        return out.finish(
            RECOVERED,
            recovered=recovered.side,
            dry_run=False,
            verb=recovered.verb,
            paths=[],
            edited=list(recovered.kept),
        )
    try:
        undone = history.undo(folder, keep_edited=arguments.keep_edited, dry_run=arguments.dry_run)
    except KohyaExtError as error:
        if recovered is None:
            raise
        raise RecoveredError(f"{recovered}. After that: {error}") from error
    out.item("would undo" if arguments.dry_run else "undone", f"{undone.verb}: {len(undone.paths)} changes")
    for path in undone.kept:
        out.item("edited since", path)
    document = {"verb": undone.verb, "paths": list(undone.paths), "edited": list(undone.kept)}
    side = recovered.side if recovered else None
    return out.finish(RECOVERED if recovered else DONE, recovered=side, dry_run=arguments.dry_run, **document)


def check_captions(arguments: argparse.Namespace) -> int:
    """The findings; exit 1 when one of them is a problem."""
    from kohya_ext.dataset import caption_check
    from kohya_ext.dataset.findings import numbered
    from kohya_ext.dataset.layout import concepts, images_in, require_folder

    out = Output("captions check", arguments.json)
    folder = require_folder(arguments.folder)
    if not arguments.recursive and not images_in(folder, recursive=False) and concepts(folder):
        raise UsageError(f"{folder}: contains no images; add --recursive to include its subfolders")
    findings = caption_check.check(
        folder, recursive=arguments.recursive, suffix=arguments.extension, token=arguments.token,
        in_json=arguments.in_json,
    )  # fmt: skip
    for finding in findings:
        out.item("PROBLEM" if finding.level == "problem" else finding.level, f"{finding.path} {finding.text}")
    problems = sum(finding.level == "problem" for finding in findings)
    out.line(f"{', '.join(numbered(findings))}.")
    return out.finish(FOUND_PROBLEMS if problems else DONE, findings=[finding.as_json() for finding in findings])


def _do(arguments: argparse.Namespace, planned: Callable[[Path], EditPlan]) -> int:
    from kohya_ext.dataset import history
    from kohya_ext.dataset.layout import require_extension, require_folder

    folder = require_folder(arguments.folder)
    require_extension(arguments.extension)
    out = Output(GROUP, arguments.json)
    recovered = None if arguments.dry_run else _recovered(out, folder)
    try:
        plan = planned(folder)
        out.command = plan.verb
        if not arguments.dry_run:
            history.apply(folder, plan)
    except KohyaExtError as error:
        if recovered is None:
            raise
        raise RecoveredError(f"{recovered}. After that: {error}") from error
    _report(out, plan, every=arguments.dry_run)
    return out.finish(
        RECOVERED if recovered else DONE,
        folder=str(folder),
        dry_run=arguments.dry_run,
        recovered=recovered.side if recovered else None,
        written=[{"path": path, "before": old, "after": new} for path, (old, new) in plan.written.items()],
        renamed=[{"from": old, "to": new} for old, new in plan.renamed],
        kept=[{"path": path, "why": why} for path, why in plan.kept],
        notes=[{"path": path, "note": note} for path, note in plan.notes],
        unchanged=plan.unchanged,
    )


def _recovered(out: Output, folder: Path) -> Recovery | None:
    from kohya_ext.dataset import history

    recovery = history.recover(folder)
    if recovery is None:
        return None
    out.item("recovered", str(recovery))
    return recovery


def _report(out: Output, plan: EditPlan, *, every: bool) -> None:
    lines = [
        f"{path}: {new}" if old is None else f"{path}: {old} -> {new}" for path, (old, new) in plan.written.items()
    ]
    lines += [f"{old} -> {new}" for old, new in plan.renamed]
    counts = f"{len(plan.written)} captions written, {len(plan.renamed)} files renamed"
    out.item("dry run" if every else "done", f"would be: {counts}" if every else counts)
    _some(out, "", lines, every)
    _some(out, "note", [f"{path}: {note}" for path, note in plan.notes], every)
    _some(out, "kept", [f"{path}: {why}" for path, why in plan.kept], every)
    if plan.unchanged:
        out.item("unchanged", str(plan.unchanged))


def _some(out: Output, label: str, lines: list[str], every: bool) -> None:
    shown = lines if every else lines[:SHOWN]
    for line in shown:
        out.item(label, line)
    if len(shown) < len(lines):
        out.item(label, f"and {len(lines) - len(shown)} more")
