"""Puts this very copy of kohya_ext into the Python that runs Kohya, and takes it out again.

Nothing else in that environment may move: no dependency is resolved, no index is asked, and the versions of all other
packages are compared before and after. A small register next to the package names the checkouts that use it, so that
the last one to go takes it along. Each change is an effect of the transaction on the checkout, and taken back with it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kohya_ext.checkout.environment import Environment, inspect
from kohya_ext.core import about, record
from kohya_ext.core.errors import ConflictError, UsageError
from kohya_ext.files.atomic import give_tree, owner_for, write_atomic
from kohya_ext.files.faultpoints import crossed
from kohya_ext.files.journal import Effect
from kohya_ext.files.lock import locked
from kohya_ext.files.regular import read_text
from kohya_ext.files.transaction import DONE, JOURNAL, STATE_FOLDER
from kohya_ext.install import installer, manifest, worksite
from kohya_ext.install.installed import compare, is_link
from kohya_ext.install.installer import package_files, write_wheel
from kohya_ext.install.manifest import rows
from kohya_ext.install.worksite import REGISTER, Site, make_folder

State = Literal["absent", "same", "other", "editable"]
Action = Literal["installed", "replaced", "unchanged", "removed", "kept", "absent"]

EFFECT = "package"
INSTALL = "install"
REMOVE = "remove"
REGISTER_FORMAT = 1
LOCK_SECONDS = 120.0


@dataclass(frozen=True)
class PackageResult:
    """What was done to the package in an environment, and one sentence about it."""

    action: Action
    detail: str


@dataclass(frozen=True)
class Register:
    """Which checkouts use the package. ours: we put it there, so the last checkout takes it along."""

    ours: bool
    checkouts: tuple[str, ...]


def site_of(environment: Environment) -> Site:
    """The folders of `environment` that we write to."""
    return Site(environment.purelib, environment.scripts)


def state(environment: Environment) -> State:
    """How the package in `environment` compares with this copy. "editable": a developer's link to a source tree."""
    folder = environment.purelib / about.PACKAGE
    infos = sorted(environment.purelib.glob(record.INFO))
    if any(is_link(info) for info in infos):
        return "editable"
    if not folder.is_dir() or not infos:
        return "absent"
    found = compare(environment.purelib)
    same = found.condition == "intact" and found.version == about.VERSION and found.digest == digest()
    return "same" if same else "other"


def digest() -> str:
    """What `compare` says of the files of this copy."""
    lines = []
    for name, data in package_files().items():
        value = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode("ascii")
        lines.append(f"{name} sha256={value}")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


@contextlib.contextmanager
def held(environments: Sequence[Environment], wait_seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """The locks of `environments`, always taken in the same order and after that of a checkout; what a killed command
    left in them is recovered first.
    """
    with contextlib.ExitStack() as stack:
        for environment in sorted(environments, key=lambda one: str(one.purelib)):
            if environment.kind == "user-site":
                make_folder(environment.purelib)
            stack.enter_context(locked(environment.purelib, wait_seconds))
            worksite.recover(site_of(environment))
        yield


def effects(verb: str, environments: Sequence[Environment], root: Path) -> tuple[list[Effect], list[PackageResult]]:
    """What brings the package of this copy into each of `environments` for the checkout `root`, or out of it.

    The results are those of environments in which nothing is to be done. The caller holds their locks.
    Raises ConflictError when one cannot be written or has no installer.
    """
    steps, results = [], []
    for environment in environments:
        nothing = _nothing_to_install(environment, root) if verb == INSTALL else _nothing_to_remove(environment)
        if nothing is not None:
            results.append(nothing)
            continue
        if verb == INSTALL and state(environment) in ("absent", "other"):
            installer.chosen(environment)
        site = site_of(environment)
        arguments = {"purelib": str(site.purelib), "scripts": str(site.scripts), "verb": verb}
        steps.append(Effect(EFFECT, arguments))
    return steps, results


class Packages:
    """The effect on environments. Arguments: purelib and scripts, its folders; verb.

    Only the environments that were given can be applied to: a journal is never asked which Python to run.
    """

    def __init__(self, environments: Sequence[Environment] = ()) -> None:
        self.environments = {str(environment.purelib): environment for environment in environments}
        self.results: list[PackageResult] = []

    def apply(self, root: Path, arguments: Mapping[str, Any]) -> None:
        """Put the package in, or take it out."""
        environment = self.environments[arguments["purelib"]]
        act = _install if arguments["verb"] == INSTALL else _remove
        self.results.append(act(environment, root))

    def revert(self, root: Path, arguments: Mapping[str, Any]) -> None:
        """Bring the environment back to before."""
        site = self._site(arguments)
        if site.work.is_dir():
            with locked(site.purelib, LOCK_SECONDS):
                worksite.roll_back(site, root)

    def finish(self, root: Path, arguments: Mapping[str, Any]) -> None:
        """Remove what was there before."""
        site = self._site(arguments)
        if site.work.is_dir():
            with locked(site.purelib, LOCK_SECONDS):
                worksite.finish(site, root)

    @staticmethod
    def _site(arguments: Mapping[str, Any]) -> Site:
        site = Site(Path(str(arguments["purelib"])), Path(str(arguments["scripts"])))
        if not (site.purelib.is_absolute() and site.scripts.is_absolute()):
            raise ConflictError(f"the journal names {site.purelib} as an environment, which is not valid")
        return site


def users(environment: Environment, root: Path) -> list[str]:
    """The other checkouts that use the package in `environment`: registered, still there, and installed into it."""
    registered = read_register(environment).checkouts
    return [user for user in registered if user != str(root) and _uses(Path(user), environment)]


def _uses(root: Path, environment: Environment) -> bool:
    if not root.is_dir():
        return False
    if (root / STATE_FOLDER / JOURNAL).exists() or (root / STATE_FOLDER / DONE).exists():
        return True  # on its way to one side or the other
    try:
        recorded = manifest.read(root)
    except ConflictError:
        return True
    if recorded is None or not rows(recorded.package):
        return recorded is not None  # a record of nothing in particular: rather keep than break
    folders = {os.path.dirname(str(row["python"])) for row in rows(recorded.package)}  # noqa: PTH120 - never resolved
    return any(os.path.realpath(folder) == os.path.realpath(environment.python.parent) for folder in folders)


def read_register(environment: Environment, *, ours_by_default: bool = False) -> Register:
    """The register of `environment`; an empty one when there is none or it cannot be read."""
    try:
        content = json.loads(read_text(environment.purelib / REGISTER))
        return Register(bool(content["ours"]), tuple(str(path) for path in content["checkouts"]))
    except (UsageError, ValueError, KeyError, TypeError):
        return Register(ours_by_default, ())


def _write_register(environment: Environment, register: Register | None) -> None:
    path = environment.purelib / REGISTER
    if register is None:
        path.unlink(missing_ok=True)
        return
    content = {"format": REGISTER_FORMAT, "ours": register.ours, "checkouts": list(register.checkouts)}
    write_atomic(path, (json.dumps(content, indent=2) + "\n").encode("ascii"), mode=0o644)


def _nothing_to_install(environment: Environment, root: Path) -> PackageResult | None:
    """The result where all is in place; None where there is something to do. Raises ConflictError when it cannot be."""
    present = state(environment)
    there = f"{about.NAME} {about.VERSION} is in {environment.place} already"
    linked = f"{about.NAME} is linked into {environment.place} from a source tree: unchanged"
    unchanged = PackageResult("unchanged", linked if present == "editable" else there)
    if present in ("same", "editable"):
        if str(root) in read_register(environment).checkouts:
            return unchanged
        if not environment.writable:  # a package that somebody else keeps for us: nothing to register
            return unchanged
        return None
    _require_writable(environment)
    return None


def _nothing_to_remove(environment: Environment) -> PackageResult | None:
    present = state(environment)
    registered = (environment.purelib / REGISTER).exists()
    if not registered and present in ("absent", "editable"):
        return PackageResult("absent", f"{about.NAME}: it was not in {environment.place}")
    if not environment.writable:
        return PackageResult("kept", f"{about.NAME} stays in {environment.place}: no permission to write there")
    if not registered:
        return PackageResult(
            "kept", f"{about.NAME}: it was there before kohya_ext was installed: kept in {environment.place}"
        )
    return None


def _install(environment: Environment, root: Path) -> PackageResult:
    site = site_of(environment)
    before = state(environment)
    register = read_register(environment, ours_by_default=before == "absent")
    checkouts = tuple(sorted({*register.checkouts, str(root)}))
    if before in ("same", "editable"):
        worksite.register_only(site, root, INSTALL)
        _write_register(environment, Register(register.ours, checkouts))
        crossed("registered")
        unchanged = _nothing_to_install(environment, root)
        assert unchanged is not None
        return unchanged
    worksite.begin(site, root, INSTALL)
    _write_register(environment, Register(register.ours, checkouts))
    crossed("registered")
    wheel = write_wheel(site.scratch)
    # pip runs as the owner of the environment, who must be able to read it whatever root's umask is
    give_tree(wheel.parent.resolve() / wheel.name, owner_for(site.purelib))
    crossed("wheel written")
    installer.run(environment, wheel, site.scratch)
    crossed("installed")
    _settle(site)
    _require_whole(environment)
    crossed("package verified")
    if before == "other":
        return PackageResult("replaced", f"{about.NAME} {about.VERSION} replaced the copy in {environment.place}")
    return PackageResult("installed", f"{about.NAME} {about.VERSION} installed into {environment.place}")


def _remove(environment: Environment, root: Path) -> PackageResult:
    site = site_of(environment)
    register = read_register(environment)
    present = state(environment)
    others = users(environment, root)
    leaves = not others and register.ours and present != "editable" and bool(site.ours())
    (worksite.begin if leaves else worksite.register_only)(site, root, REMOVE)
    _write_register(environment, Register(register.ours, tuple(others)) if others else None)
    crossed("registered")
    if others:
        return PackageResult("kept", f"{about.NAME} stays in {environment.place}: {', '.join(others)} uses it")
    if leaves:
        return PackageResult("removed", f"{about.NAME} removed from {environment.place}")
    if not site.ours():
        return PackageResult("absent", f"{about.NAME}: it was not in {environment.place}")
    return PackageResult(
        "kept", f"{about.NAME}: it was there before kohya_ext was installed: kept in {environment.place}"
    )


def _require_writable(environment: Environment) -> None:
    if not environment.writable:
        owner = owner_for(environment.purelib)
        raise ConflictError(
            f"no permission to write {environment.purelib} (it belongs to user {owner[0] if owner else '?'}): "
            "run as that user or with sudo, or name another Python with --python PATH"
        )


def _require_whole(before: Environment) -> None:
    """Raise ConflictError when any other package changed, or when ours is not what the wheel holds."""
    after = inspect(before.python, home=before.home)
    names = (before.packages.keys() | after.packages.keys()) - {about.NAME}
    moved = [name for name in sorted(names) if before.packages.get(name) != after.packages.get(name)]
    if moved:
        raise ConflictError(
            f"the installer changed other packages in {before.place}, which it must not: {', '.join(moved)}"
        )
    found = compare(before.purelib)
    if found.condition != "intact" or found.digest != digest():
        raise ConflictError(
            f"{about.NAME} is incomplete in {before.place}: {found.said or 'other files than ours'}. "
            "Nothing was changed. Is the disk full?"
        )
    if not after.modules.get(about.PACKAGE):
        raise ConflictError(f"{about.NAME} was installed for {before.python}, which still cannot import it")


def _settle(site: Site) -> None:
    """As root, in an environment that belongs to somebody: our files belong to them as well."""
    for top in site.ours():
        give_tree(top.parent.resolve() / top.name, owner_for(top.parent))
