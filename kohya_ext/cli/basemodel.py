"""`kohya-ext base-model`: fetch the model the guide trains from, or put another VAE into a checkpoint."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from kohya_ext.cli.common import add_json
from kohya_ext.core.console import Output, Progress
from kohya_ext.core.errors import DONE, ConflictError, UsageError
from kohya_ext.files.regular import folder_fault

DEFAULT_FOLDER = Path("pretrained")


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the group; without a verb it fetches."""
    group = subparsers.add_parser(
        "base-model", help="download SDXL 1.0 with the 0.9 VAE, or replace a checkpoint's VAE"
    )
    add = group.add_argument
    add(
        "--to",
        type=Path,
        default=DEFAULT_FOLDER,
        metavar="FOLDER",
        help=f"target folder (default {DEFAULT_FOLDER}/), created if missing",
    )
    add("--overwrite", action="store_true", help="replace another file of that name")
    add("--dry-run", action="store_true", help="show what would be downloaded, write nothing")
    add("--repo", metavar="OWNER/NAME", help="another Hugging Face repository (needs --file)")
    add("--file", metavar="NAME", help="a file in that repository")
    add("--revision", default="main", metavar="REV", help="branch, tag or commit (default main)")
    add("--sha256", default="", metavar="HEX", help="expected SHA-256 (default: the one that the hub publishes)")
    add_json(group)
    group.set_defaults(run=fetch)
    verbs = group.add_subparsers(title="verbs", metavar="VERB")
    build_verb = verbs.add_parser("build", help="replace the VAE of a local checkpoint")
    add = build_verb.add_argument
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="a .safetensors checkpoint")
    add("--vae", type=Path, required=True, metavar="VAE", help="a VAE file, another checkpoint, or a diffusers folder")
    add("--out", type=Path, required=True, metavar="FILE", help="the .safetensors file to write")
    add("--overwrite", action="store_true", help="replace FILE if it exists")
    add("--dry-run", action="store_true", help="check that the two files match, write nothing")
    add_json(build_verb)
    build_verb.set_defaults(run=build)


def fetch(arguments: argparse.Namespace) -> int:
    """Look, fetch what is missing, verify."""
    from kohya_ext.basemodel import fetch as fetching
    from kohya_ext.basemodel.remote import SDXL, Wanted, look_up

    out = Output("base-model", arguments.json)
    if bool(arguments.repo) != bool(arguments.file):
        raise UsageError("--repo and --file go together: give both or neither")
    wanted = SDXL
    if arguments.repo:
        wanted = Wanted(arguments.repo, arguments.file, arguments.revision, _digest(arguments))
    folder = arguments.to
    target = folder / wanted.name
    if arguments.dry_run:
        if target.exists():
            out.item("would check", str(target))
            return out.finish(DONE, path=str(target), exists=True)
        remote = look_up(wanted)
        out.item("would fetch", f"{wanted.repository}: {wanted.name}, {_bytes(remote.size)}, to {folder}")
        return out.finish(DONE, path=str(target), exists=False, bytes=remote.size, sha256=remote.sha256)
    with _made(folder), Progress() as progress:
        voice = fetching.Voice(say=lambda text: out.item("note", text), bytes=_Transfer(progress).show)
        found = fetching.fetch(wanted, folder, overwrite=arguments.overwrite, voice=voice)
    if found.reused:
        out.item("there already", f"{found.path}: the published file, SHA-256 {found.sha256}")
    else:
        out.item("fetched", f"{found.path}: {_bytes(found.size)}, SHA-256 {found.sha256} as published")
    return out.finish(
        DONE, path=str(found.path), bytes=found.size, sha256=found.sha256, reused=found.reused, resumed=found.resumed
    )


def build(arguments: argparse.Namespace) -> int:
    """Match, copy."""
    from kohya_ext.basemodel import exchange
    from kohya_ext.files.disk import check_target

    out = Output("base-model build", arguments.json)
    check_target(arguments.out, arguments.overwrite or arguments.dry_run)
    made = exchange.plan(arguments.checkpoint, arguments.vae)
    if arguments.out.exists() and any(arguments.out.samefile(one.path) for one in (made.checkpoint, made.vae)):
        raise UsageError(f"{arguments.out} is one of the inputs: give another name")
    out.item("VAE", f"{made.weights} weights from {made.vae.path}, {made.dtype}")
    if made.changed:
        out.item("note", f"{made.changed} of them have another dtype in the checkpoint; the VAE's dtype is kept")
    document = {"weights": made.weights, "dtype": made.dtype, "changed_type": made.changed, "path": str(arguments.out)}
    if arguments.dry_run:
        out.item("would write", str(arguments.out))
        return out.finish(DONE, **document)
    with Progress() as progress:
        shown = _Transfer(progress)
        exchange.write(made, arguments.out, lambda done, total: shown.show("writing", done, total))
    out.item("written", f"{arguments.out}: {_bytes(arguments.out.stat().st_size)}")
    return out.finish(DONE, **document)


def _digest(arguments: argparse.Namespace) -> str:
    digest: str = arguments.sha256.strip().lower()
    if digest and (len(digest) != 64 or set(digest) - set("0123456789abcdef")):
        raise UsageError(f"--sha256 {arguments.sha256!r}: give 64 hexadecimal digits")
    return digest


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """`folder`, made where it is missing; gone again when an error leaves nothing in it."""
    if folder.exists() and (fault := folder_fault(folder)) is not None:
        raise UsageError(f"{folder}: {fault}")
    try:
        missing = [one for one in (folder, *folder.parents) if not one.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConflictError(f"{folder} cannot be created: {error.strerror or error}") from error
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # something has come already, and stays for the next run
            for one in missing:
                one.rmdir()
        raise


def _bytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


class _Transfer:
    """Bytes on their way: the part that has come, and how fast."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._begun: dict[str, tuple[float, int]] = {}

    def show(self, what: str, done: int, total: int) -> None:
        """`done` of `total` bytes."""
        now = time.monotonic()
        begun, first = self._begun.setdefault(what, (now, done))
        rate = (done - first) / max(1e-9, now - begun)
        part = done / max(1, total)
        line = f"{what}: {part:.0%} of {_bytes(total)}, {rate / 1e6:.1f} MB/s"
        self._progress.show(done, total, line, what)
