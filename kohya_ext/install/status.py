"""What is installed in a checkout, and what has drifted since: reads only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kohya_ext import presets
from kohya_ext.checkout import git, legacy, merging, scan
from kohya_ext.checkout.checkout import Checkout
from kohya_ext.checkout.environment import Environment
from kohya_ext.checkout.sources import SourceFiles
from kohya_ext.core import about, errors, shell
from kohya_ext.core.errors import ConflictError, KohyaExtError
from kohya_ext.core.shell import command
from kohya_ext.files.atomic import sha256
from kohya_ext.files.journal import read_state
from kohya_ext.files.revision import commits, moved
from kohya_ext.files.transaction import Transaction
from kohya_ext.install import manifest, patchset, pending, states
from kohya_ext.install.installed import Condition, Installed, examine
from kohya_ext.install.manifest import PATCHED, PRESET, Known, Manifest, ManifestEntry
from kohya_ext.install.plan import relative, unrecorded
from kohya_ext.install.states import State, is_blank, is_damaged_preset
from kohya_ext.presets.machine import has_xformers
from kohya_ext.spec import second_gui
from kohya_ext.spec.hooks import REPOSITORIES

PRESETS_ONLY = "presets"  # the patch set without lines: nothing there imports our package

SECOND_GUI = (
    f"this checkout has the second GUI as well: python {second_gui.START}. It reads TOML files of settings, and gets "
    "AdaCoor and the fields of the EMA as the first one does"
)
ONLY_SECOND_GUI = (
    f"this checkout has the second GUI alone (python {second_gui.START}), which reads TOML files of settings: there is "
    "no GUI that reads JSON presets, and none are installed"
)

PACKAGE_FAULTS: dict[Condition, str] = {
    "absent": "is not in {place}: Kohya runs there without kohya_ext",
    "partial": "is half in {place} ({faults})",
    "damaged": "is damaged in {place} ({faults})",
    "unimportable": "is in {place}, but {faults}",
}


def reinstall(root: Path) -> str:
    """What mends most: to install again. A command that can be pasted."""
    return f"Run: {command('install', root)}"


@dataclass(frozen=True)
class FileStatus:
    """One file of ours. state: a value of `State`. problem: what is wrong, None when nothing is. fix: the fix."""

    path: str
    kind: str
    state: str
    problem: str | None = None
    fix: str | None = None


@dataclass(frozen=True)
class PackageStatus:
    """Our package in one environment. condition: see `Installed`. problem: what is wrong, None when nothing is."""

    python: str
    place: str
    condition: str
    version: str | None
    problem: str | None = None


@dataclass(frozen=True)
class Status:
    """What `kohya-ext status` reports.

    release: of the checkout now; installed_release: when the patch was installed; both as `Checkout.release` says it.
    problems: everything that is to be fixed, each with the command that does it. notes: what is worth knowing besides.
    package: what the manifest remembers; packages: what is there now, empty when nobody looked.
    """

    root: str
    release: str
    installed: bool
    version: str | None
    patch_set: str | None
    installed_release: str | None
    interrupted: bool
    files: tuple[FileStatus, ...]
    hooks: tuple[scan.HookRow, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    package: dict[str, Any] | None = None
    packages: tuple[PackageStatus, ...] = ()

    @property
    def clean(self) -> bool:
        """True when nothing is to be fixed."""
        return not self.problems

    @property
    def exit_code(self) -> int:
        """What the command ends with."""
        return errors.DONE if self.clean else errors.FOUND_PROBLEMS

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "clean": self.clean}


def status(checkout: Checkout, environments: Known | None = None) -> Status:
    """Look at `checkout` and change nothing. Raises ConflictError when the manifest is damaged.

    environments: where the package must be; None does not look into any.
    """
    recorded = manifest.read(checkout.root)
    problems = _interruptions(checkout)
    interrupted = Transaction(checkout.root).interrupted()
    notes: list[str] = []
    hooks = _hooks(checkout, problems, notes)
    if checkout.second_gui:
        notes.append(SECOND_GUI if checkout.gui_root is not None else ONLY_SECOND_GUI)
    files: tuple[FileStatus, ...] = ()
    packages: tuple[PackageStatus, ...] = ()
    if recorded is not None:
        files = tuple(_file(checkout, entry, recorded) for entry in recorded.files)
        if recorded.release != checkout.release or recorded.version == about.VERSION:
            files = _refitted(checkout, files, recorded, environments)
        if recorded.release != checkout.release:
            notes.append(f"installed on {recorded.release}, the checkout is at {checkout.release} now")
        if recorded.version != about.VERSION:
            notes.append(f"installed by kohya_ext {recorded.version}; this command is of {about.VERSION}")
        problems += [f"{file.path}: {file.problem}. {file.fix}" for file in files if file.problem and file.fix]
        notes += [f"{file.path}: {file.problem}" for file in files if file.problem and not file.fix]
        if not any(file.kind == PATCHED and file.state == State.MISSING.value for file in files):  # said already
            problems += _moved(checkout, recorded, hooks)
        if environments is not None and recorded.patch_set != PRESETS_ONLY:
            packages = tuple(_package(one, digest, recorded) for one, digest in environments.present)
            problems += _package_problems(checkout, environments, packages, notes)
    elif not interrupted and (strays := unrecorded(checkout)):
        problems.append(f"{', '.join(strays)}: patched, but there is no record of it. {reinstall(checkout.root)}")
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
        packages=packages,
    )


def _interruptions(checkout: Checkout) -> list[str]:
    problems = []
    recover = f"Run: {command('doctor', checkout.root)}"
    if Transaction(checkout.root).interrupted():
        problems.append(f"an install or uninstall was interrupted here. {recover}")
    if pending.half_written(checkout.root):
        problems.append(f"an update was interrupted here before it had begun. {recover}")
    if pending.read(checkout.root) is not None:
        problems.append(f"an update was interrupted here, the files of kohya_ext may be missing. {recover}")
    return problems


def _hooks(checkout: Checkout, problems: list[str], notes: list[str]) -> Sequence[scan.HookRow]:
    """The functions found; what stops us is added to `problems`, what a fork lacks to `notes`."""
    unfinished = list(merging.problems(checkout))
    if unfinished:
        problems += unfinished
        return ()
    sources = SourceFiles()
    hooks: Sequence[scan.HookRow] = ()
    try:
        hooks = scan.scan(checkout, sources)
        scan.require(hooks, checkout)
        if found := legacy.find(checkout.training_root, sources):
            problems.append(legacy.message(checkout, found))
        else:
            notes += scan.flags_of_fork(checkout, sources)
    except KohyaExtError as error:
        problems.append(str(error))
    return hooks


def _package(environment: Environment, digest: str | None, recorded: Manifest) -> PackageStatus:
    found = examine(environment)
    return PackageStatus(
        python=str(environment.python),
        place=str(environment.place),
        condition=found.condition,
        version=found.version,
        problem=_package_fault(found, environment, digest, recorded),
    )


def _package_fault(found: Installed, environment: Environment, digest: str | None, recorded: Manifest) -> str | None:
    if found.condition in PACKAGE_FAULTS:
        said = PACKAGE_FAULTS[found.condition].format(place=environment.place, faults=found.said)
        return f"the kohya_ext package {said}"
    if found.version != recorded.version and found.condition == "intact":
        where = f"the kohya_ext package in {environment.place}"
        return f"{where} is {found.version}, the patch in Kohya's files is {recorded.version}"
    if digest is not None and found.digest is not None and digest != found.digest:
        return f"the kohya_ext package in {environment.place} is from another build than the patch in Kohya's files"
    return None


def _package_problems(
    checkout: Checkout, environments: Known, packages: Sequence[PackageStatus], notes: list[str]
) -> list[str]:
    problems = [f"{package.problem}. {_put_in(checkout, package)}" for package in packages if package.problem]
    gone = [f"the Python that kohya_ext was installed into is gone: {reason}" for reason in environments.gone]
    if environments.gone and not packages:
        problems += [f"{reason}. Finish Kohya's own setup; then {_lower(reinstall(checkout.root))}" for reason in gone]
    else:
        notes += gone
    if not packages and not environments.gone:
        notes.append("no Python that runs Kohya was found, so kohya_ext cannot be looked for")
    return problems


def _put_in(checkout: Checkout, package: PackageStatus) -> str:
    return f"Run: {command('install', '--python', package.python, checkout.root)}"


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


def _file(checkout: Checkout, entry: ManifestEntry, recorded: Manifest) -> FileStatus:
    return _patched(checkout, entry, recorded) if entry.kind == PATCHED else _preset(checkout.root, entry)


def _preset(root: Path, entry: ManifestEntry) -> FileStatus:
    found = read_state(root / entry.path)
    if found is None:
        return FileStatus(entry.path, entry.kind, State.MISSING.value, "was removed", reinstall(root))
    if sha256(found.data) == entry.sha256_after:
        return FileStatus(entry.path, entry.kind, State.OURS.value)
    if is_damaged_preset(found.data, entry.path):
        away = shell.move(root / entry.path, f"{root / entry.path}.damaged")
        fix = reinstall(root) if is_blank(found.data) else f"Run: {shell.in_turn(away, command('install', root))}"
        return FileStatus(entry.path, entry.kind, State.DAMAGED.value, "cannot be read as a preset", fix)
    return FileStatus(entry.path, entry.kind, State.EDITED.value, "edited by you; kept")


def _refitted(
    checkout: Checkout, files: Sequence[FileStatus], recorded: Manifest, environments: Known | None
) -> tuple[FileStatus, ...]:
    """`files` with a problem at each preset that would differ for the release and the environment that are there now.

    Where no environment can be looked into, it fits with either attention.
    """
    has = has_xformers(environments.environments if environments else ())
    try:
        answers = (None, False) if has is None else (has,)
        wanted = [presets.collect(checkout, xformers=one) for one in answers]
    except KohyaExtError:  # said by the scan of the checkout
        return tuple(files)
    other = "environment"
    if moved(recorded.commits, commits(checkout.root / folder for folder in REPOSITORIES)):
        other = "commit of the GUI"
    if recorded.release != checkout.release:
        other = "release of the GUI"
    stale = []
    for file in files:
        expected = [files[file.path] for files in wanted if file.path in files]
        ours = file.kind == PRESET and file.state == State.OURS.value
        if ours and expected and (checkout.root / file.path).read_bytes() not in expected:
            what, fix = f"fitted to another {other}", reinstall(checkout.root)
            file = FileStatus(file.path, file.kind, State.STALE.value, what, fix)
        stale.append(file)
    return tuple(stale)


def _patched(checkout: Checkout, entry: ManifestEntry, recorded: Manifest) -> FileStatus:
    try:
        seen = states.inspect(checkout.root, entry.path, entry)
    except ConflictError as error:
        return FileStatus(entry.path, entry.kind, State.FOREIGN.value, "is not a regular file any more", str(error))
    problem, fix = _drift(checkout.root, seen)
    if problem is None and seen.state is State.OURS:
        problem, fix = _backup(checkout.root, seen, entry) or _flag(checkout.root, entry, recorded) or (None, None)
    return FileStatus(entry.path, entry.kind, seen.state.value, problem, fix)


def _drift(root: Path, seen: states.Inspected) -> tuple[str | None, str | None]:
    if seen.state is State.PRISTINE:
        return "upstream's version again, so the hook is missing", reinstall(root)
    if seen.state is State.MISSING:
        return "gone", _restore(root, seen.path)
    if seen.state in (State.EDITED, State.FOREIGN):
        return "edited since it was patched", f"Keep your version elsewhere. {_restore(root, seen.path)}"
    return None, None


def _restore(root: Path, path: str) -> str:
    command_line = states.git_restore(root, path)
    if command_line is None:
        return f"Copy {path} from the same release (this is not a git repository); then {_lower(reinstall(root))}"
    return f"Run: {shell.in_turn(command_line, command('install', root))}"


def _backup(root: Path, seen: states.Inspected, entry: ManifestEntry) -> tuple[str, str] | None:
    try:
        before = states.original(root, seen, entry)
    except ConflictError as error:
        return "its backup is damaged", str(error)
    if sha256(before) != entry.sha256_before:
        return "patched in the form of another release", reinstall(root)
    return None


def _flag(root: Path, entry: ManifestEntry, recorded: Manifest) -> tuple[str, str] | None:
    flagged = {Path(folder, path).as_posix() for folder, paths in recorded.skip_worktree.items() for path in paths}
    known = git.tracked(root / entry.path)
    if entry.path in flagged and known is not None and not known.skipped:
        return "works, but git shows it as modified (its skip-worktree flag is gone)", reinstall(root)
    return None


def _moved(checkout: Checkout, recorded: Manifest, hooks: Sequence[scan.HookRow]) -> list[str]:
    """Files that the patch set would edit in the release that is there now, and that carry nothing of ours."""
    try:
        targets = patchset.load(recorded.patch_set).targets(checkout, hooks)
        wanted = [relative(checkout.root, target.path) for target in targets]
    except KohyaExtError as error:
        return [str(error)]
    present = {entry.path for entry in recorded.files}
    again = reinstall(checkout.root)
    return [f"{path}: not patched yet in this release. {again}" for path in wanted if path not in present]
