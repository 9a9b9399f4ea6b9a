"""What is installed in a checkout, and what has drifted since: reads only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kohya_ext import errors
from kohya_ext.errors import ConflictError, KohyaExtError
from kohya_ext.files.atomic import sha256
from kohya_ext.files.journal import read_state
from kohya_ext.files.transaction import Transaction
from kohya_ext.install import git, legacy, manifest, patchset, pending, scan, states
from kohya_ext.install.checkout import Checkout
from kohya_ext.install.manifest import PATCHED, Entry, Manifest
from kohya_ext.install.plan import relative, unrecorded
from kohya_ext.install.sources import Sources
from kohya_ext.install.states import State

REINSTALL = "run `kohya-ext install`"


@dataclass(frozen=True)
class FileStatus:
    """One file of ours. state: a value of `State`. problem: what is wrong, None when nothing is. cure: what to do."""

    path: str
    kind: str
    state: str
    problem: str | None = None
    cure: str | None = None


@dataclass(frozen=True)
class Status:
    """What `kohya-ext status` reports.

    release: of the checkout now; installed_release: when the patch was put on; both as `Checkout.release` says it.
    problems: everything that needs a cure, each with it. notes: what is worth knowing and needs none.
    """

    root: str
    release: str
    installed: bool
    version: str | None
    patch_set: str | None
    installed_release: str | None
    interrupted: bool
    files: tuple[FileStatus, ...]
    hooks: tuple[scan.Found, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    package: dict[str, Any] | None = None

    @property
    def clean(self) -> bool:
        """True when nothing needs a cure."""
        return not self.problems

    @property
    def exit_code(self) -> int:
        """What the command ends with."""
        return errors.DONE if self.clean else errors.FOUND_PROBLEMS

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "clean": self.clean}


def status(checkout: Checkout) -> Status:
    """Look at `checkout` and change nothing. Raises ConflictError when the manifest is damaged."""
    recorded = manifest.read(checkout.root)
    sources = Sources()
    problems: list[str] = []
    notes: list[str] = []
    hooks: Sequence[scan.Found] = ()
    interrupted = Transaction(checkout.root).interrupted()
    if interrupted:
        problems.append("an install or uninstall was interrupted here: run `kohya-ext doctor`")
    if pending.read(checkout.root) is not None:
        problems.append("an update was interrupted here, our files may be off: run `kohya-ext doctor`")
    try:
        hooks = scan.scan(checkout, sources)
        scan.require(hooks, checkout)
        if found := legacy.find(checkout.training_root, sources):
            problems.append(legacy.message(checkout, found))
    except KohyaExtError as error:
        problems.append(str(error))
    files: tuple[FileStatus, ...] = ()
    if recorded is not None:
        files = tuple(_file(checkout, entry, recorded) for entry in recorded.files)
        problems += [f"{file.path}: {file.problem}. {file.cure}" for file in files if file.problem and file.cure]
        notes += [f"{file.path}: {file.problem}" for file in files if file.problem and not file.cure]
        problems += _moved(checkout, recorded, hooks)
        if recorded.release != checkout.release:
            notes.append(f"installed on {recorded.release}, the checkout is at {checkout.release} now")
    elif not interrupted and (strays := unrecorded(checkout)):
        problems.append(f"{', '.join(strays)}: patched, but there is no record of it; {REINSTALL}")
    return Status(
        root=str(checkout.root),
        release=checkout.release,
        installed=recorded is not None,
        version=recorded.version if recorded else None,
        patch_set=recorded.patch_set if recorded else None,
        installed_release=recorded.release if recorded else None,
        interrupted=interrupted,
        files=files,
        hooks=tuple(hooks),
        problems=tuple(problems),
        notes=tuple(notes),
        package=dict(recorded.package) if recorded and recorded.package else None,
    )


def _file(checkout: Checkout, entry: Entry, recorded: Manifest) -> FileStatus:
    return _patched(checkout, entry, recorded) if entry.kind == PATCHED else _preset(checkout.root, entry)


def _preset(root: Path, entry: Entry) -> FileStatus:
    found = read_state(root / entry.path)
    if found is None:
        return FileStatus(entry.path, entry.kind, State.MISSING.value, "was removed", REINSTALL)
    if sha256(found.data) != entry.sha256_after:
        return FileStatus(entry.path, entry.kind, State.EDITED.value, "edited by you; it stays as it is")
    return FileStatus(entry.path, entry.kind, State.OURS.value)


def _patched(checkout: Checkout, entry: Entry, recorded: Manifest) -> FileStatus:
    try:
        seen = states.inspect(checkout.root, entry.path, entry)
    except ConflictError as error:
        return FileStatus(entry.path, entry.kind, State.FOREIGN.value, "is no regular file any more", str(error))
    problem, cure = _drift(checkout.root, seen)
    if problem is None and seen.state is State.OURS:
        problem, cure = _backup(checkout.root, seen, entry) or _flag(checkout.root, entry, recorded) or (None, None)
    return FileStatus(entry.path, entry.kind, seen.state.value, problem, cure)


def _drift(root: Path, seen: states.Inspected) -> tuple[str | None, str | None]:
    if seen.state is State.PRISTINE:
        return "upstream's again, so the hook is off", REINSTALL
    if seen.state is State.MISSING:
        return "gone", f"bring it back ({states.git_restore(root, seen.path)}), then {REINSTALL}"
    if seen.state in (State.EDITED, State.FOREIGN):
        restore = states.git_restore(root, seen.path)
        return "edited since it was patched", f"keep your version elsewhere, restore ({restore}), then {REINSTALL}"
    return None, None


def _backup(root: Path, seen: states.Inspected, entry: Entry) -> tuple[str, str] | None:
    try:
        before = states.original(root, seen, entry)
    except ConflictError as error:
        return "its backup is damaged", str(error)
    if sha256(before) != entry.sha256_before:
        return "patched in the form of another release", REINSTALL
    return None


def _flag(root: Path, entry: Entry, recorded: Manifest) -> tuple[str, str] | None:
    flagged = {Path(folder, path).as_posix() for folder, paths in recorded.skip_worktree.items() for path in paths}
    known = git.tracked(root / entry.path)
    if entry.path in flagged and known is not None and not known.skipped:
        return "works, but git shows it as modified (its skip-worktree flag is gone)", REINSTALL
    return None


def _moved(checkout: Checkout, recorded: Manifest, hooks: Sequence[scan.Found]) -> list[str]:
    """Files that the patch set would edit in the release that is there now, and that carry nothing of ours."""
    try:
        targets = patchset.load(recorded.patch_set).targets(checkout, hooks)
        wanted = [relative(checkout.root, target.path) for target in targets]
    except KohyaExtError as error:
        return [str(error)]
    present = {entry.path for entry in recorded.files}
    return [f"{path}: not patched yet in this release. {REINSTALL}" for path in wanted if path not in present]
