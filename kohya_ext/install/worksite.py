"""The folder in which an environment's package is replaced, so that a kill at any moment can be rolled back.

    .kohya_ext-work/            in site-packages, next to the package
        pending.json            what was there, and for which checkout; without it the folder is rubbish
        before/                 what was there: renamed to here and back, so that a full disk does not matter
        tmp/                    the wheel, and what pip and uv scratch

The journal of the checkout decides which side is right: while it is open, the environment is taken back to before; once
it is closed, what was begun here is complete.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kohya_ext.core import about, record
from kohya_ext.core.errors import ConflictError
from kohya_ext.files.atomic import clear_leftovers, write_atomic
from kohya_ext.files.faultpoints import crossed
from kohya_ext.files.folder import opened
from kohya_ext.files.regular import TEXT_LIMIT, NotReadableError, read_regular
from kohya_ext.files.transaction import DONE, Transaction
from kohya_ext.install.installed import PIP_LEFTOVERS, compare

FOLDER = ".kohya_ext-work"
PENDING = "pending.json"
BEFORE = "before"
PLACES = ("lib", "bin")
SCRATCH = "tmp"
FORMAT = 1

REGISTER = "kohya_ext-checkouts.json"


@dataclass(frozen=True)
class Site:
    """An environment's two folders that we write to: of packages, and of programs."""

    purelib: Path
    scripts: Path

    @property
    def work(self) -> Path:
        """The folder of an exchange under way."""
        return self.purelib / FOLDER

    @property
    def scratch(self) -> Path:
        """For temporary files while one is."""
        return self.work / SCRATCH

    def ours(self) -> list[Path]:
        """Everything of ours that is there, remains of a killed pip among them; the register is not."""
        patterns = (about.PACKAGE, record.INFO, *PIP_LEFTOVERS)
        found = [path for pattern in patterns for path in sorted(self.purelib.glob(pattern))]
        return found + [path for suffix in ("", ".exe") if (path := self.scripts / f"{about.NAME}{suffix}").exists()]


@dataclass(frozen=True)
class PendingExchange:
    """What was there before an exchange for the checkout at `root`.

    names: of `Site.ours`. register: its text, None for none. verb: install or remove. created: folders made for it.
    """

    root: str
    verb: str
    names: tuple[str, ...]
    register: str | None
    created: tuple[str, ...]


def begin(site: Site, root: Path, verb: str) -> None:
    """Open an exchange for the checkout `root` and move away what is there. The caller holds the lock of the purelib.

    Raises OSError; the environment is as before then, once `roll_back` has been called.
    """
    register_only(site, root, verb)
    for path in site.ours():
        crossed(f"before moving {path.name} away")
        _move(path, site.work / BEFORE / _key(site, path))
    crossed("moved away")


def register_only(site: Site, root: Path, verb: str) -> None:
    """The same for a change of nothing but the register."""
    crossed("before the work folder")
    if site.work.exists() or site.work.is_symlink():
        raise ConflictError(f"{site.work} is in the way: remove it and run again")
    created = [folder for folder in (site.purelib, site.scripts) if not folder.is_dir()]
    for folder in (site.work, *(site.work / BEFORE / place for place in PLACES), site.scratch):
        make_folder(folder)
    crossed("work folder made")
    pending = {
        "format": FORMAT,
        "root": str(root),
        "verb": verb,
        "names": [_key(site, path) for path in site.ours()],
        "register": _text(site.purelib / REGISTER),
        "created": [str(folder) for folder in created],
    }
    write_atomic(site.work / PENDING, json.dumps(pending, indent=1).encode("ascii"), mode=0o644)


def roll_back(site: Site, root: Path) -> None:
    """Bring the environment back to what it was before the exchange for `root`; nothing where there is none."""
    pending = _pending(site)
    if pending is not None and pending.root == str(root):
        _restore(site, pending)
    elif pending is None:
        _clear(site)


def finish(site: Site, root: Path) -> None:
    """The exchange for `root` is over: what was there before may go."""
    pending = _pending(site)
    if pending is None or pending.root == str(root):
        _clear(site)


def open_for(site: Site) -> Path | None:
    """The checkout whose exchange was interrupted, None where none was."""
    pending = _pending(site)
    return Path(pending.root) if pending is not None else None


def is_open(site: Site) -> bool:
    """Whether `recover` would find something to do."""
    return site.work.exists()


def recover(site: Site) -> bool:
    """End an exchange that was killed, the way the journal of its checkout says; False where there is none.

    The caller holds the lock of the purelib, so nothing else runs here.
    """
    if not site.work.is_dir() or site.work.is_symlink():
        return False
    pending = _pending(site)
    if pending is None:
        _clear(site)
        return True
    crossed("before recovering the package")
    complete = pending.verb == "remove" or compare(site.purelib).usable
    if _taken_back(Path(pending.root)) or not complete:
        _restore(site, pending)
    else:
        _clear(site)
    return True


def _taken_back(root: Path) -> bool:
    """Whether the journal of the checkout at `root` is open, so that all of its transaction goes back to before."""
    transaction = Transaction(root)
    try:
        return bool(transaction.open_effects()) and not (transaction.state / DONE).exists()
    except (ConflictError, OSError):  # damaged: what it would have said is not known, before is the safe side
        return True


def make_folder(folder: Path) -> None:
    """Make `folder`, and those around it, with the owner and the permissions of the nearest that exists."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with opened(folder.parent.resolve()) as parent:
        parent.make_folder(folder.name, parent.owner())


def _restore(site: Site, pending: PendingExchange) -> None:
    """Repeatable at any point: what is in before/ has not been moved back yet, what is not is in its place."""
    for path in site.ours():
        key = _key(site, path)
        if key not in pending.names:
            crossed(f"before removing {path.name}")
            _remove(path)
    for key in pending.names:
        kept = site.work / BEFORE / key
        if not _exists(kept):
            continue
        target = _target(site, key)
        crossed(f"before moving {target.name} back")
        if _exists(target):
            _remove(target)
        make_folder(target.parent)
        _move(kept, target)
    crossed("moved back")
    register = site.purelib / REGISTER
    if pending.register is None:
        register.unlink(missing_ok=True)
    elif _text(register) != pending.register:
        write_atomic(register, pending.register.encode("utf-8"), mode=0o644)
    _clear(site)
    for name in pending.created:
        with contextlib.suppress(OSError):
            Path(name).rmdir()


def _clear(site: Site) -> None:
    """From its first step on, the exchange is over."""
    with opened(site.purelib.resolve()) as folder:
        clear_leftovers(folder, REGISTER)
    crossed("before closing the work folder")
    (site.work / PENDING).unlink(missing_ok=True)
    crossed("work folder closed")
    if site.work.is_dir() and not site.work.is_symlink():
        shutil.rmtree(site.work)
    crossed("work folder gone")


def _pending(site: Site) -> PendingExchange | None:
    if site.work.is_symlink():
        raise ConflictError(f"{site.work} is a link, which kohya_ext never makes: remove it and run again")
    _require_one_owner(site)
    path = site.work / PENDING
    try:
        text = _text(path)
        if text is None:
            return None
        document: dict[str, Any] = json.loads(text)
        if document["format"] != FORMAT:
            raise ConflictError(f"{path} was written by another version of kohya_ext: run doctor with that one")
        return PendingExchange(
            root=str(document["root"]),
            verb=str(document["verb"]),
            names=tuple(_checked(name, path) for name in document["names"]),
            register=None if document["register"] is None else str(document["register"]),
            created=tuple(str(name) for name in document["created"] if Path(name) in (site.purelib, site.scripts)),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConflictError(
            f"{path} is damaged ({error!r}); what was there before is in {site.work / BEFORE}: "
            f"move it back or remove {site.work}, then run again"
        ) from error


def _require_one_owner(site: Site) -> None:
    """What a journal in a user's tree says must not make root write into the folders of others."""
    folders = [folder for folder in (site.purelib, site.work, site.scripts) if folder.exists()]
    if len({folder.stat().st_uid for folder in folders}) > 1 and hasattr(os, "geteuid") and os.geteuid() == 0:
        raise ConflictError(
            f"{site.work} and {site.scripts} belong to different users: nothing was changed there. "
            f"If no installer is running, inspect {site.work / BEFORE}, then remove {site.work}"
        )


def _checked(name: object, source: Path) -> str:
    """Only what we move ourselves: one of our names, below one of the two folders."""
    place, _, rest = str(name).partition("/")
    if place not in PLACES or not rest or {*"/\\:"} & {*rest} or rest in (".", ".."):
        raise ConflictError(
            f"{source} contains {name!r}, which is not valid; nothing was changed. Remove {source.parent}"
        )
    return str(name)


def _key(site: Site, path: Path) -> str:
    """The name under which `path` is in before/."""
    return f"{'bin' if path.parent == site.scripts else 'lib'}/{path.name}"


def _target(site: Site, key: str) -> Path:
    place, _, name = key.partition("/")
    return (site.scripts if place == "bin" else site.purelib) / name


def _exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _move(old: Path, new: Path) -> None:
    try:
        old.replace(new)
    except OSError as error:
        if error.errno != errno.EXDEV:  # programs may lie on another file system than packages
            raise
        shutil.copy2(old, new, follow_symlinks=False)
        old.unlink()


def _text(path: Path) -> str | None:
    if not _exists(path):
        return None
    try:
        return read_regular(path, TEXT_LIMIT).decode("utf-8")
    except NotReadableError as error:
        raise ConflictError(f"{error}; remove it and run again") from error
