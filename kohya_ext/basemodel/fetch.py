"""Downloads a file, which gets its name only once it is verified; an existing one is verified, not downloaded again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kohya_ext.basemodel import transfer
from kohya_ext.basemodel.remote import Remote, Wanted, look_up
from kohya_ext.basemodel.transfer import Part
from kohya_ext.core.errors import ConflictError
from kohya_ext.files.atomic import owner_for
from kohya_ext.files.disk import explained_target, sha256_of
from kohya_ext.files.lock import locked

LEFT_FREE = 100 << 20  # bytes that a download leaves on the disk


@dataclass(frozen=True)
class Fetched:
    """How it went. resumed: bytes that were there from an earlier run; reused: the whole file was."""

    path: Path
    size: int
    sha256: str
    reused: bool = False
    resumed: int = 0


@dataclass(frozen=True)
class Voice:
    """How the work is shown. say: a line; bytes: how far, for (what, done, all); pause: waits between connections."""

    say: Callable[[str], None] = lambda _: None
    bytes: Callable[[str, int, int], None] = lambda *_: None
    pause: Callable[[float], None] = time.sleep


def part_of(target: Path, sha256: str) -> Path:
    """Where a download waits until it is whole; another version of the file has another part."""
    return target.with_name(f".{target.name}.{sha256[:12]}.incomplete")


def fetch(wanted: Wanted, folder: Path, *, overwrite: bool = False, voice: Voice | None = None) -> Fetched:
    """The file in `folder`, which must exist, verified.

    Raises ConflictError (offline, disk, another file of that name, a server that serves something else), UsageError.
    """
    voice = voice or Voice()
    target = folder / wanted.name
    if target.is_dir():
        raise ConflictError(f"{target} is a folder; nothing was downloaded")
    with locked(folder, wait_seconds=0.0):
        if target.exists():
            known = wanted if wanted.sha256 else _filled(wanted, look_up(wanted))
            found = _digest(target, known, voice)
            if found == known.sha256:
                return Fetched(target, target.stat().st_size, found, reused=True)
            if not overwrite:
                what = f"its SHA-256 is {found}" if found else f"it has {target.stat().st_size} bytes"
                raise ConflictError(
                    f"{target} is not the file that {wanted.repository} publishes ({what}): an incomplete download, "
                    "or a file of yours. Move it away, or give --overwrite"
                )
        with explained_target(target):
            return _download(wanted, target, voice)


def _filled(wanted: Wanted, remote: Remote) -> Wanted:
    return Wanted(wanted.repository, wanted.name, wanted.revision, remote.sha256, remote.size)


def _digest(path: Path, wanted: Wanted, voice: Voice) -> str:
    """SHA-256 of `path`, "" where its size tells already that it is not the one."""
    if wanted.size is not None and path.stat().st_size != wanted.size:
        return ""
    return sha256_of(path, lambda done, total: voice.bytes("checking", done, total))


def _download(wanted: Wanted, target: Path, voice: Voice) -> Fetched:
    remote = look_up(wanted)
    part = Part(part_of(target, remote.sha256))
    resumed = part.size()
    if resumed:
        voice.say(f"resuming after {resumed} of {remote.size} bytes from an earlier run")
    _check_room(target, remote.size - resumed)
    for attempt in range(2):
        remote = transfer.complete(
            part, lambda: look_up(wanted), lambda done, total: voice.bytes("fetching", done, total), voice.pause
        )
        found = sha256_of(part.path, lambda done, total: voice.bytes("checking", done, total))
        if found == remote.sha256:
            break
        part.remove()
        if attempt:
            raise ConflictError(
                "the server twice sent something other than the published file "
                f"(SHA-256 {found} instead of {remote.sha256}): a broken proxy or mirror? It was discarded; "
                "nothing was changed"
            )
        voice.say("the download is not the published file (its SHA-256 differs): discarded, downloading it again")
        resumed = 0
    part.become(target.name, owner_for(target))
    return Fetched(target, remote.size, remote.sha256, resumed=resumed)


def _check_room(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < needed + LEFT_FREE:
        raise ConflictError(
            f"{target.parent} has {free / 1e9:.1f} GB free, and {needed / 1e9:.1f} GB are needed: free some space, "
            "or choose another folder with --to. Nothing was downloaded"
        )
