"""The environments that a checkout's manifest remembers: those that our package was put into, `--python` or found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kohya_ext.checkout.environment import Environment, inspect
from kohya_ext.core.bundle import PACKAGE_DIR
from kohya_ext.core.errors import UsageError
from kohya_ext.core.shell import INSTALLER
from kohya_ext.install.manifest import Manifest

ENVIRONMENTS = "environments"


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


def record(root: Path, recorded: Manifest | None, put: Iterable[tuple[Environment, str | None]]) -> dict[str, Any]:
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
