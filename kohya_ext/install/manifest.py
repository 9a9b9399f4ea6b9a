"""The record of an installation, `.kohya_ext/manifest.json`: what was changed, and what it was before.

It also remembers the environments that our package was put into, `--python` or found.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kohya_ext.checkout.environment import Environment, inspect
from kohya_ext.core.about import MANIFEST, VERSION
from kohya_ext.core.bundle import PACKAGE_DIR
from kohya_ext.core.errors import ConflictError, UsageError
from kohya_ext.core.shell import INSTALLER
from kohya_ext.files.folder import leads_elsewhere
from kohya_ext.files.paths import checked
from kohya_ext.files.transaction import STATE_FOLDER

FORMAT = 1
NAME = MANIFEST
BACKUP = f"{STATE_FOLDER}/backup"

PATCHED: Literal["patched"] = "patched"
PRESET: Literal["preset"] = "preset"
ENVIRONMENTS = "environments"


@dataclass(frozen=True)
class ManifestEntry:
    """One file of ours. kind: patched, upstream's file with our block, or preset, a file we added.

    path: relative to the checkout, posix. sha256_before: None for a file that was not there. mode: permission bits.
    backup: where the original lies, relative to the checkout.
    """

    path: str
    kind: Literal["patched", "preset"]
    sha256_before: str | None
    sha256_after: str
    mode: int
    backup: str | None = None


@dataclass(frozen=True)
class Exclusion:
    """Our lines in `.git/info/exclude`. before: its bytes without them, None when there was no such file."""

    lines: tuple[str, ...]
    before: bytes | None
    sha256_after: str


@dataclass(frozen=True)
class Manifest:
    """What is installed in one checkout.

    skip_worktree: for each repository (its folder, relative to the checkout) the files whose flag we set.
    package: the environments that our package was put into for this checkout, see `known`. root: where the checkout lay
    then, None in the records of older versions; elsewhere it is in a copy. commits: of the checkout and its training
    code, see `revision.commits`; empty in the records of older versions.
    """

    patch_set: str
    release: str
    files: tuple[ManifestEntry, ...]
    skip_worktree: Mapping[str, tuple[str, ...]]
    exclusion: Exclusion | None
    created_dirs: tuple[str, ...]
    package: Mapping[str, Any] | None = None
    version: str = VERSION
    root: str | None = None
    commits: tuple[str, ...] = ()

    def entry(self, path: str) -> ManifestEntry | None:
        """The record of `path`."""
        return next((entry for entry in self.files if entry.path == path), None)

    def to_json(self) -> bytes:
        """The manifest as it is written: the same installation gives the same bytes."""
        exclusion = None
        if self.exclusion is not None:
            before = self.exclusion.before
            exclusion = {
                "lines": list(self.exclusion.lines),
                "before": None if before is None else base64.b64encode(before).decode("ascii"),
                "sha256_after": self.exclusion.sha256_after,
            }
        document = {
            "format": FORMAT,
            "version": self.version,
            "root": self.root,
            "release": self.release,
            "commits": list(self.commits),
            "patch_set": self.patch_set,
            "package": None if self.package is None else dict(self.package),
            "files": [
                {
                    "path": entry.path,
                    "kind": entry.kind,
                    "sha256_before": entry.sha256_before,
                    "sha256_after": entry.sha256_after,
                    "mode": f"{entry.mode:04o}",
                    "backup": entry.backup,
                }
                for entry in self.files
            ],
            "skip_worktree": {folder: list(paths) for folder, paths in sorted(self.skip_worktree.items())},
            "exclude": exclusion,
            "created_dirs": list(self.created_dirs),
        }
        return json.dumps(document, indent=2, ensure_ascii=True).encode("ascii") + b"\n"


def read(root: Path) -> Manifest | None:
    """The manifest of the checkout `root`, None when nothing is installed there.

    Raises ConflictError when it is damaged, of another format, or names a path outside the checkout.
    """
    path = root / NAME
    if leads_elsewhere(path.parent) or leads_elsewhere(path):
        raise ConflictError(f"{path} is reached through a link, which kohya_ext never makes; nothing was changed")
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConflictError(f"{path} cannot be read: {error.strerror}; run as the user that owns it") from error
    try:
        document = json.loads(data)
        if document["format"] != FORMAT:
            raise ConflictError(
                f"{path} has format {document['format']!r}, this version reads {FORMAT}; use the one that wrote it"
            )
        return _manifest(document, f"the manifest {path}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConflictError(
            f"{path} is damaged ({error!r}); nothing was changed. The originals are in {root / BACKUP}: put them back "
            f"(or use `git checkout --ignore-skip-worktree-bits -- FILE`), then remove {root / STATE_FOLDER}"
        ) from error


def _manifest(document: Mapping[str, Any], source: str) -> Manifest:
    skip = {
        _folder(folder, source): tuple(checked(path, source) for path in paths)
        for folder, paths in document["skip_worktree"].items()
    }
    package = document["package"]
    return Manifest(
        patch_set=str(document["patch_set"]),
        release=str(document["release"]),
        files=tuple(_entry(row, source) for row in document["files"]),
        skip_worktree=skip,
        exclusion=_exclusion(document["exclude"]),
        created_dirs=tuple(checked(folder, source) for folder in document["created_dirs"]),
        package=None if package is None else dict(package),
        version=str(document["version"]),
        root=None if document.get("root") is None else str(document["root"]),
        commits=tuple(map(str, document.get("commits", ()))),
    )


def _entry(row: Mapping[str, Any], source: str) -> ManifestEntry:
    kind = row["kind"]
    if kind not in (PATCHED, PRESET):
        raise ValueError(f"unknown kind {kind!r}")
    path = checked(row["path"], source)
    backup = None if row["backup"] is None else checked(row["backup"], source)
    if path.split("/")[0] == STATE_FOLDER or (backup is not None and not backup.startswith(f"{BACKUP}/")):
        raise ConflictError(
            f"{source} names {path!r} with the backup {backup!r}, which is not valid; nothing was changed"
        )
    before = row["sha256_before"]
    return ManifestEntry(
        path=path,
        kind=kind,
        sha256_before=None if before is None else str(before),
        sha256_after=str(row["sha256_after"]),
        mode=int(row["mode"], 8),
        backup=backup,
    )


def _exclusion(row: Mapping[str, Any] | None) -> Exclusion | None:
    if row is None:
        return None
    before = None if row["before"] is None else base64.b64decode(row["before"], validate=True)
    return Exclusion(tuple(str(line) for line in row["lines"]), before, str(row["sha256_after"]))


def _folder(folder: str, source: str) -> str:
    return folder if folder == os.curdir else checked(folder, source)


@dataclass(frozen=True)
class Known:
    """present: can be used, each with the digest of the package that was put there. gone: interpreters that cannot be
    run any more, each with the reason.
    """

    present: tuple[tuple[Environment, str | None], ...] = ()
    gone: tuple[str, ...] = ()

    @property
    def environments(self) -> list[Environment]:
        """Those that can be used."""
        return [environment for environment, _ in self.present]


def rows(package: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """What a manifest remembers: [{"python": interpreter, "home": HOME to run it with or None, "digest": ...}]."""
    found = (package or {}).get(ENVIRONMENTS)
    return [dict(row) for row in found if isinstance(row, dict) and "python" in row] if isinstance(found, list) else []


def known(root: Path, recorded: Manifest | None) -> Known:
    """The environments in `recorded`, of the checkout that is at `root` now."""
    return remembered(root, recorded.package, recorded.root) if recorded else Known()


def remembered(root: Path, package: Mapping[str, Any] | None, old_root: str | None) -> Known:
    """The environments that `package` names, of a checkout that lay at `old_root` and is at `root` now."""
    present, gone = [], []
    for row in rows(package):
        home, digest = row.get("home"), row.get("digest")
        try:
            environment = inspect(_here(Path(str(row["python"])), root, old_root), home=home and str(home))
        except UsageError as error:
            gone.append(str(error))
        else:
            present.append((environment, digest and str(digest)))
    return Known(tuple(present), tuple(gone))


def package_entry(
    root: Path, recorded: Manifest | None, put: Iterable[tuple[Environment, str | None]]
) -> dict[str, Any]:
    """What the manifest shall remember once the package is in the environments of `put` as well (and its digest)."""
    kept = {str(environment.python): (environment, digest) for environment, digest in known(root, recorded).present}
    kept |= {str(environment.python): (environment, digest) for environment, digest in put}
    environments = [
        {"python": python, "home": environment.home, "digest": digest} for python, (environment, digest) in kept.items()
    ]
    # our lines in Kohya's files name it where the package does not work
    installer = PACKAGE_DIR.parent / INSTALLER
    return {ENVIRONMENTS: environments, **({"installer": str(installer)} if installer.is_file() else {})}


def _here(python: Path, root: Path, old_root: str | None) -> Path:
    """In a tree that was copied or moved, the environment that came along, not the one of the old place."""
    old = Path(old_root) if old_root else root
    if old == root or not python.is_relative_to(old):
        return python
    moved = root / python.relative_to(old)
    return moved if moved.exists() or moved.is_symlink() else python
