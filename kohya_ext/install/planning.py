"""Builds a plan file by file: steps, the next manifest, and everything that prevents it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kohya_ext.checkout import git, merging, scan
from kohya_ext.core import about, shell
from kohya_ext.core.errors import ConflictError
from kohya_ext.files.atomic import NEW_FILE_MODE, owner_for, sha256
from kohya_ext.files.journal import Change, Effect, FileState, Step, read_state
from kohya_ext.files.revision import commits
from kohya_ext.files.transaction import STATE_FOLDER
from kohya_ext.install import manifest, patchset, states
from kohya_ext.install.diff import diff_of
from kohya_ext.install.manifest import BACKUP, PATCHED, PRESET, Exclusion, Manifest, ManifestEntry
from kohya_ext.install.states import Inspected, State
from kohya_ext.spec.hooks import REPOSITORIES

PRESETS_FOLDER = "presets"  # of the GUI; no patch set touches a file in it


@dataclass(frozen=True)
class InstallPlan:
    """Steps in order, and what to tell the user.

    prune: folders to remove afterwards if empty. kept: files of somebody else, or edited, that stay as they are.
    notes: further lines for the user. hooks: what `scan` found (install only).
    """

    verb: str
    steps: tuple[Step, ...]
    prune: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    hooks: tuple[scan.HookRow, ...] = ()

    @property
    def changes(self) -> tuple[Change, ...]:
        """The files that change, our own records aside."""
        files = (step for step in self.steps if isinstance(step, Change))
        return tuple(change for change in files if not change.path.startswith(f"{STATE_FOLDER}/"))

    @property
    def changed(self) -> bool:
        """False when there is nothing to do."""
        return bool(self.steps)

    @property
    def presets(self) -> tuple[Change, ...]:
        """Those of the changes that are preset files."""
        return tuple(change for change in self.changes if change.path.startswith(f"{PRESETS_FOLDER}/"))

    def diff(self, *, presets: bool = True) -> str:
        """The changes as a unified diff, which `git apply` and `patch -p1` understand.

        presets: with the preset files, which have a thousand lines where the patch has thirty.
        """
        left = () if presets else self.presets
        return "".join(diff_of(change) for change in self.changes if change not in left)


@dataclass
class Builder:
    """Collects steps, the entries of the next manifest, and everything that stands in the way."""

    root: Path
    recorded: Manifest | None
    heads: Mapping[Path, bytes]
    files: list[Change] = field(default_factory=list)
    backups: dict[str, bytes] = field(default_factory=dict)
    next_entries: list[ManifestEntry] = field(default_factory=list)
    flagged: list[str] = field(default_factory=list)
    adopted: set[str] = field(default_factory=set)
    unrecorded: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    obstacles: list[str] = field(default_factory=list)

    def entries(self, kind: str) -> list[ManifestEntry]:
        """The files of `kind` that the manifest records."""
        return [entry for entry in self.recorded.files if entry.kind == kind] if self.recorded else []

    def recorded_entry(self, path: str) -> ManifestEntry | None:
        """What the manifest records of `path`."""
        return self.recorded.entry(path) if self.recorded else None

    # ---- files of upstream

    def patch(self, path: str, target: patchset.PatchTarget, chosen: patchset.PatchSet) -> None:
        """Put the block of `chosen` into `path`."""
        entry = self.recorded_entry(path)
        seen = states.inspect(self.root, path, entry, target, self.heads)
        before = self._original_to_patch(seen, entry, target)
        if before is None or seen.file is None:
            return
        after = replace(seen.file, data=chosen.patched(before))
        self._change(path, seen.file, after)
        backup = f"{BACKUP}/{path}"
        self.backups[backup] = before
        self.next_entries.append(
            ManifestEntry(path, PATCHED, sha256(before), sha256(after.data), seen.file.mode, backup)
        )
        self.flagged.append(path)

    def _original_to_patch(
        self, seen: Inspected, entry: ManifestEntry | None, target: patchset.PatchTarget
    ) -> bytes | None:
        if seen.state is State.OURS and entry is not None:
            return states.original(self.root, seen, entry)
        if seen.state is State.UNRECORDED:
            self.adopted.add(seen.path)
            return patchset.unpatched(seen.data, head=seen.head)
        if seen.state is State.PRISTINE and target.fits(seen.data):
            return seen.data
        if seen.state is State.PRISTINE:
            self.obstacles.append(
                f"{seen.path} of this release is not empty (a fork?), so the patch set hook does not fit: "
                "use --patch-set inline"
            )
        else:
            self.obstacles.append(self._foreign(seen))
        return None

    def restore(self, entry: ManifestEntry) -> None:
        """Give `entry` its original back."""
        seen = states.inspect(self.root, entry.path, entry, heads=self.heads)
        if seen.state is State.OURS and seen.file is not None:
            before = states.original(self.root, seen, entry)
            self._change(entry.path, seen.file, replace(seen.file, data=before))
        elif seen.state is State.MISSING:
            self.notes.append(f"{entry.path} was removed; nothing to uninstall there")
        elif seen.state is not State.PRISTINE:
            self.obstacles.append(self._foreign(seen))

    def restore_unrecorded(self, path: str) -> None:
        """Take our block out of a file that no manifest knows, whichever of our versions put it there."""
        seen = states.inspect(self.root, path, None, heads=self.heads)
        before = patchset.unpatched(seen.data, head=seen.head) if seen.state is State.UNRECORDED else None
        if before is None or seen.file is None:
            self.obstacles.append(self._foreign(seen))
            return
        self.adopted.add(path)
        self._change(path, seen.file, replace(seen.file, data=before))

    def _foreign(self, seen: Inspected) -> str:
        if seen.state is State.MISSING:
            return f"{seen.path} is missing. {states.how_to_restore(self.root, seen.path)}"
        what = (
            "was edited since kohya_ext patched it"
            if seen.state is State.EDITED
            else "is neither upstream's nor kohya_ext's"
        )
        if merging.has_markers(seen.data):
            what = "contains merge conflict markers"
        path = self.root / seen.path
        return (
            f"{seen.path} {what}. Keep your version elsewhere: {shell.copy(path, f'{path}.mine')}\n"
            f"{states.how_to_restore(self.root, seen.path)}\nThen run again, and merge your version by hand"
        )

    # ---- files we add

    def add_preset(self, path: str, data: bytes) -> None:
        """Put a file of ours at `path`, unless somebody else's is there."""
        entry = self.recorded_entry(path)
        found = read_state(self.root / path)
        ours = found is None or (
            found.data == data  # of a tree whose records were lost, or edited to what it is to be
            if entry is None
            else sha256(found.data) == entry.sha256_after or states.is_blank(found.data)
        )
        if not ours:
            self.kept.append(path)
            if entry is not None:
                self.next_entries.append(entry)
            return
        after = FileState(data, found.mode if found else NEW_FILE_MODE, owner_for(self._nearest(path)))
        self._change(path, found, after)
        mode = entry.mode if entry else NEW_FILE_MODE  # not what the file system made of it: twice is as once
        self.next_entries.append(ManifestEntry(path, PRESET, None, sha256(data), mode))

    def remove_unrecorded_preset(self, path: str, data: bytes) -> None:
        """Take a file away that has the bytes which we would put there."""
        self.unrecorded.append(path)
        found = read_state(self.root / path)
        if found is not None and found.data == data:
            self._change(path, found, None)

    def remove_preset(self, entry: ManifestEntry, *, keep_record: bool) -> None:
        """Take a file of ours away, unless it was edited."""
        found = read_state(self.root / entry.path)
        if found is None:
            return
        if sha256(found.data) == entry.sha256_after or states.is_blank(found.data):
            self._change(entry.path, found, None)
            return
        self.kept.append(entry.path)
        if keep_record:
            self.next_entries.append(entry)

    def excluded(self) -> bool:
        """Whether git's exclude file has lines of ours: a sign of an installation whose records were lost."""
        found = git.exclude_file(self.root)
        return found is not None and found[0].is_file() and git.EXCLUDE_HEADING in found[0].read_bytes()

    # ---- everything together

    def install(self, release: str, patch_set: str, package: Mapping[str, Any] | None) -> InstallPlan:
        """The plan of an install."""
        self._stop_at_obstacles()
        skip, flags, lifts = self._skip_worktree()
        exclusion, exclude = self._exclude(
            [f"{STATE_FOLDER}/", *(entry.path for entry in self.next_entries if entry.kind == PRESET)]
        )
        document = Manifest(
            patch_set=patch_set,
            release=release,
            files=tuple(self.next_entries),
            skip_worktree=skip,
            exclusion=exclusion,
            created_dirs=self._created_dirs(),
            package=package,
            version=about.VERSION,
            root=str(self.root),
            commits=self._commits(),
        )
        record = self._record(manifest.NAME, document.to_json())
        prune = [folder for folder in self._old_dirs() if folder not in document.created_dirs]
        steps: tuple[Step, ...] = (*exclude, *flags, *self._backup_changes(), *self.files, *record, *lifts)
        return InstallPlan("install", steps, (*prune, *self._backup_dirs()), tuple(self.kept), tuple(self.notes))

    def refit(self, recorded: Manifest, release: str) -> InstallPlan:
        """The plan of presets alone: what else is installed stays, in the tree and on record."""
        self._stop_at_obstacles()
        presets = [entry.path for entry in self.next_entries]
        exclusion, exclude = self._exclude([f"{STATE_FOLDER}/", *presets])
        entries = (*self.entries(PATCHED), *self.next_entries)
        document = replace(recorded, release=release, commits=self._commits(), files=entries, exclusion=exclusion)
        record = self._record(manifest.NAME, document.to_json())
        return InstallPlan("refit", (*exclude, *self.files, *record), kept=tuple(self.kept))

    def _commits(self) -> tuple[str, ...]:
        return tuple(commits(self.root / folder for folder in REPOSITORIES))

    def uninstall(self) -> InstallPlan:
        """The plan of an uninstall."""
        self._stop_at_obstacles()
        _, flags, lifts = self._skip_worktree()
        _, exclude = self._exclude([])
        records = [*self._backup_changes(), *self._record(manifest.NAME, None)]
        steps: tuple[Step, ...] = (*flags, *self.files, *records, *lifts, *exclude)
        prune = (*self._old_dirs(), *self._backup_dirs(), *self._adopted_dirs(self.unrecorded))
        return InstallPlan("uninstall", steps, prune, tuple(self.kept), tuple(self.notes))

    def _stop_at_obstacles(self) -> None:
        if self.obstacles:
            reasons = "\n".join(dict.fromkeys(self.obstacles))
            raise ConflictError(f"{self.root}: nothing was changed, because\n{reasons}")

    def _change(self, path: str, before: FileState | None, after: FileState | None) -> None:
        if before == after:
            return
        target = self.root / path
        folder = self._nearest(path)
        if before is not None and not before.mode & 0o200:
            self.obstacles.append(f"{path} is read-only. Make it writable: {shell.make_writable(target)}")
        elif not os.access(folder, os.W_OK):
            self.obstacles.append(f"{folder} may not be written by this user: {shell.more_rights()}")
        self.files.append(Change(path, before, after))

    def _nearest(self, path: str) -> Path:
        """The innermost folder on the way to `path` that exists."""
        return next(folder for folder in (self.root / path).parents if folder.is_dir())

    def _record(self, path: str, data: bytes | None) -> list[Change]:
        before = read_state(self.root / path)
        after = None if data is None else FileState(data, NEW_FILE_MODE, owner_for(self.root))
        unchanged = (before and before.data) == (after and after.data)
        return [] if unchanged else [Change(path, before, after)]

    def _backup_changes(self) -> list[Change]:
        changes = [change for path, data in self.backups.items() for change in self._record(path, data)]
        return changes + [change for path in self._old_backups() for change in self._record(path, None)]

    def _old_backups(self) -> list[str]:
        """Backups that nothing refers to any more; without a manifest, all that lie there."""
        if self.recorded is None:
            lying = [path for path in (self.root / BACKUP).rglob("*") if path.is_file() and not path.is_symlink()]
            old = [path.relative_to(self.root).as_posix() for path in sorted(lying)]
        else:
            old = [entry.backup for entry in self.entries(PATCHED) if entry.backup]
        return [path for path in old if path not in self.backups]

    def _backup_dirs(self) -> list[str]:
        """Folders of backups that may have become empty, outermost first."""
        folders = {parent.as_posix() for path in self._old_backups() for parent in Path(path).parents}
        return sorted(folder for folder in folders if folder.startswith(BACKUP))

    def _old_dirs(self) -> list[str]:
        return list(self.recorded.created_dirs) if self.recorded else []

    def _created_dirs(self) -> tuple[str, ...]:
        """Folders that we made or are about to make for files that stay."""
        new = [
            parent.as_posix()
            for change in self.files
            for parent in Path(change.path).parents
            if change.after is not None and parent != Path() and not (self.root / parent).is_dir()
        ]
        used = {parent.as_posix() for entry in self.next_entries for parent in Path(entry.path).parents}
        presets = [entry.path for entry in self.next_entries if entry.kind == PRESET]
        adopted = self._adopted_dirs(presets) if self.recorded is None else []
        return tuple(sorted({*new, *adopted, *(folder for folder in self._old_dirs() if folder in used)}))

    def _adopted_dirs(self, paths: Sequence[str]) -> list[str]:
        """Where records were lost: folders that hold nothing but files of ours, so that we must have made them."""
        ours = {self.root / path for path in paths}
        folders = {parent for path in paths for parent in Path(path).parents if parent != Path()}
        alone = [
            folder
            for folder in sorted(folders)
            if (self.root / folder).is_dir()
            and all(path in ours or path.is_dir() for path in (self.root / folder).rglob("*"))
        ]
        return [folder.as_posix() for folder in alone]

    def _skip_worktree(self) -> tuple[dict[str, tuple[str, ...]], list[Effect], list[Effect]]:
        """Which flags are ours from now on, and the effects that set and that lift."""
        ours = {
            Path(folder, path).as_posix()
            for folder, paths in (self.recorded.skip_worktree if self.recorded else {}).items()
            for path in paths
        } | self.adopted
        keep: dict[str, list[str]] = {}
        setting: dict[str, list[str]] = {}
        lifting: dict[str, list[str]] = {}
        paths = [*self.flagged, *sorted(ours - set(self.flagged))]
        tracked = git.all_tracked(self.root / path for path in paths)
        for path in paths:
            known = tracked.get(self.root / path)
            if known is None:
                continue
            folder, name = self._in_repository(path)
            if path not in self.flagged:
                if known.skipped:
                    lifting.setdefault(folder, []).append(name)
            elif path in ours or not known.skipped:
                keep.setdefault(folder, []).append(name)
                if not known.skipped:
                    setting.setdefault(folder, []).append(name)
        effects = [_flag_effects(setting, on=True), _flag_effects(lifting, on=False)]
        return {folder: tuple(names) for folder, names in keep.items()}, effects[0], effects[1]

    def _in_repository(self, path: str) -> tuple[str, str]:
        """The folder of the repository of `path`, relative to the checkout, and `path` relative to that folder."""
        top = git.work_tree((self.root / path).parent)
        if top is None or not top.is_relative_to(self.root):
            return os.curdir, path
        return top.relative_to(self.root).as_posix(), (self.root / path).relative_to(top).as_posix()

    def _exclude(self, paths: Sequence[str]) -> tuple[Exclusion | None, list[Effect]]:
        """Our lines in the exclude file for `paths`, and the effect that brings it there."""
        found = git.exclude_file(self.root)
        if found is None:
            return None, []
        file, prefix = found
        current = git.read_exclude(file)
        old = self.recorded.exclusion if self.recorded else None
        lines = [git.exclude_line(prefix, path) for path in paths]
        if old is not None and current is not None and sha256(current) == old.sha256_after:
            before = old.before
        elif old is not None:  # edited since
            before = git.without_lines(current, [line.encode("utf-8", "surrogateescape") for line in old.lines])
        elif current is not None and git.EXCLUDE_HEADING in current:  # ours, but the record is lost
            known = [git.exclude_line(prefix, path) for path in (f"{STATE_FOLDER}/", *self.unrecorded)]
            before = git.without_lines(current, [*lines, *known]) or None
        else:
            before = current
        after = git.with_lines(before, lines)
        arguments = {"before": git.encoded(current), "after": git.encoded(after)}
        effects = [] if current == after else [Effect(git.EXCLUDE, arguments)]
        text = tuple(line.decode("utf-8", "surrogateescape") for line in lines)
        return Exclusion(text, before, sha256(after or b"")) if lines else None, effects


def _flag_effects(flags: Mapping[str, list[str]], *, on: bool) -> list[Effect]:
    return [Effect(git.SKIP_WORKTREE, {"folder": f, "paths": paths, "on": on}) for f, paths in sorted(flags.items())]
