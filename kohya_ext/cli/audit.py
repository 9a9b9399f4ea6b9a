"""`kohya-ext audit`: a data set against the guide's advice, and against what breaks runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kohya_ext.cli.common import IN_JSON_HELP, add_json
from kohya_ext.core.console import Output, Progress
from kohya_ext.core.errors import DONE, FOUND_PROBLEMS, UsageError
from kohya_ext.core.shell import pip_install

if TYPE_CHECKING:
    from kohya_ext.dataset.audit import Audit
    from kohya_ext.dataset.buckets import Bucketing

SHOWN = 40  # findings in the text report; --json and --html have all


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser("audit", help="check a data set: images, captions, buckets, duplicates")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder of training images, subfolders included")
    parser.add_argument("--token", default="", help="the concept's rare token, which every caption should contain")
    parser.add_argument(
        "--resolution", default="1024,1024", metavar="W,H", help="training resolution (default 1024,1024)"
    )
    parser.add_argument("--no-upscale", action="store_true", help="compute buckets with --bucket_no_upscale")
    parser.add_argument(
        "--old-buckets",
        action="store_true",
        help="as sd-scripts up to 0.7.0, which also has buckets below --min-bucket",
    )
    parser.add_argument("--bucket-step", type=int, metavar="N", help="as --bucket_reso_steps (default 64)")
    parser.add_argument("--min-bucket", type=int, metavar="N", help="as --min_bucket_reso (default 256)")
    parser.add_argument(
        "--max-bucket", type=int, metavar="N", help="as --max_bucket_reso (default 2048 as in the GUI; sd-scripts 1024)"
    )
    parser.add_argument(
        "--extension", default=".txt", metavar=".EXT", help="extension of the caption files (default .txt)"
    )
    parser.add_argument("--in-json", type=Path, metavar="FILE", help=IN_JSON_HELP)
    parser.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="folder of a CLIP tokenizer, for exact token counts"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write the report as a page with images")
    parser.add_argument("--all", action="store_true", help=f"print all findings, not only the first {SHOWN}")
    add_json(parser)
    parser.set_defaults(run=audit)


def audit(arguments: argparse.Namespace) -> int:
    """Look at everything; exit 1 when there is a problem."""
    try:
        from kohya_ext.dataset import audit as audits
    except ImportError as error:
        raise UsageError(f"audit needs Pillow to read images ({error}): run it with Kohya's Python") from error
    from kohya_ext.dataset import tokens
    from kohya_ext.dataset.layout import require_folder

    out = Output("audit", arguments.json)
    folder = require_folder(arguments.folder)
    bucketing = _bucketing(arguments)
    settings = audits.AuditSettings(bucketing, arguments.token, arguments.extension, arguments.in_json)
    if arguments.html:
        _check_page(arguments.html)
    with Progress() as progress:
        found = audits.audit(
            folder,
            settings,
            tokens.counter(arguments.tokenizer),
            lambda done, total: progress.show(done, total, f"{done} of {total} images"),
        )
    _report(out, found, every=arguments.all)
    if arguments.html:
        _write_page(arguments.html, found)
        out.item("page", str(arguments.html))
    return out.finish(FOUND_PROBLEMS if found.problems else DONE, **_document(found))


def _bucketing(arguments: argparse.Namespace) -> Bucketing:
    """The settings as Kohya takes them: sides that are not multiples of the step are made so."""
    from kohya_ext.dataset.buckets import Bucketing

    resolution = _resolution(arguments.resolution)
    step = 64 if arguments.bucket_step is None else arguments.bucket_step
    if not 8 <= step <= 512 or step % 8:
        raise UsageError(f"--bucket-step {step}: give a multiple of 8 from 8 to 512")
    smallest = 256 if arguments.min_bucket is None else arguments.min_bucket
    largest = 2048 if arguments.max_bucket is None else arguments.max_bucket
    if not 1 <= smallest <= largest <= 16384:
        raise UsageError(f"--min-bucket {smallest} --max-bucket {largest}: give pixels up to 16384, the minimum first")
    smallest, largest = max(step, smallest - smallest % step), largest + -largest % step
    if not arguments.no_upscale:
        if arguments.min_bucket is not None and smallest > min(resolution):
            raise UsageError(f"--min-bucket {smallest}: Kohya stops when it is larger than the resolution")
        if arguments.max_bucket is not None and largest < max(resolution):
            raise UsageError(f"--max-bucket {largest}: Kohya stops when it is smaller than the resolution")
    return Bucketing(resolution, smallest, largest, step, arguments.no_upscale, arguments.old_buckets)


def _resolution(text: str) -> tuple[int, int]:
    try:
        sides = [int(part) for part in text.replace("x", ",").split(",")]
        width, height = sides if len(sides) == 2 else (sides[0], sides[0])
    except (ValueError, IndexError):
        width = height = 0
    if not 64 <= min(width, height) <= max(width, height) <= 2048:
        raise UsageError(f"--resolution {text!r}: give width,height from 64 to 2048 pixels, as in 1024,1024")
    return width, height


def _report(out: Output, found: Audit, *, every: bool) -> None:
    from kohya_ext.dataset.balance import how_many
    from kohya_ext.dataset.findings import numbered

    readable = sum(one.readable for one in found.images)
    out.item("images", f"{len(found.images)}, {how_many(readable)}")
    out.item("buckets", ", ".join(_counted(found)) or "none")
    estimated = " (estimated: no tokenizer found)" if found.tokens_estimated else ""
    lengths = ", ".join(f"up to {limit}: {n}" if limit else f"more: {n}" for limit, n in found.tokens.items())
    out.item("tokens", f"{lengths or 'no captions'}{estimated}")
    for label, counts in (("styles", found.styles), ("views", found.views)):
        if counts:
            out.item(label, ", ".join(f"{kind}: {count}" for kind, count in counts.items()))
    if not found.near_duplicates_checked:
        out.item("not checked", f"images that look alike, which needs imagehash: {pip_install('imagehash')}")
    shown = found.findings if every else found.findings[:SHOWN]
    for finding in shown:
        out.item("PROBLEM" if finding.level == "problem" else finding.level, f"{finding.path} {finding.text}".strip())
    if len(shown) < len(found.findings):
        out.item("", f"and {len(found.findings) - len(shown)} more: --all, --html FILE or --json show them")
    out.line(f"{', '.join(numbered(found.findings))}.")


def _counted(found: Audit) -> list[str]:
    """`1024x1024: 23`, with repeats where folders ask for them."""
    return [
        f"{w}x{h}: {count}" + (f" ({times} with repeats)" if (times := found.samples[w, h]) != count else "")
        for (w, h), count in found.buckets.items()
    ]


def _check_page(path: Path) -> None:
    """Refuse early what could only fail after all images."""
    if not path.parent.is_dir():
        raise UsageError(f"the folder {path.parent} does not exist; create it first")
    if path.is_dir():
        raise UsageError(f"{path} is a folder: give the name of a page, such as audit.html")


def _write_page(path: Path, found: Audit) -> None:
    from kohya_ext.dataset.page import page
    from kohya_ext.files.atomic import write_atomic

    try:
        write_atomic(path, page(found).encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error


def _document(found: Audit) -> dict[str, Any]:
    return {
        "folder": str(found.folder),
        "images": [
            {"path": one.path, "width": one.width, "height": one.height, "sha256": one.digest} for one in found.images
        ],
        "buckets": [
            {"width": w, "height": h, "images": count, "with_repeats": found.samples[w, h]}
            for (w, h), count in found.buckets.items()
        ],
        "tokens": [{"limit": limit, "captions": count} for limit, count in found.tokens.items()],
        "tokens_estimated": found.tokens_estimated,
        "styles": found.styles,
        "views": found.views,
        "near_duplicates_checked": found.near_duplicates_checked,
        "findings": [finding.as_json() for finding in found.findings],
    }
