"""What we ask of git, and the two things we do with it: the skip-worktree flag and lines in `.git/info/exclude`.

git may be absent and a checkout need not be a repository (Docker images copy the tree without `.git`): then every
question has the answer None, and nothing is done. How git is started, and where it is not, `gitcommand` says.
"""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kohya_ext.checkout.gitcommand import ask, refusal, repository, work_tree
from kohya_ext.core.errors import ConflictError
from kohya_ext.files.atomic import clear_leftovers, write_into
from kohya_ext.files.folder import Folder, opened
from kohya_ext.files.journal import Operation, state_in
from kohya_ext.files.paths import checked, real_inside
from kohya_ext.files.text_encoding import appended

__all__ = ["refusal", "work_tree"]

EXCLUDE_HEADING = b"# kohya_ext: what its installer put here; `kohya-ext uninstall` takes these lines away"
SKIP_WORKTREE = "skip-worktree"
EXCLUDE = "exclude"
INFO, EXCLUDE_NAME = "info", "exclude"


def require_access(*tops: Path) -> None:
    """Raise ConflictError, with git's reason, where one of `tops` is a repository that this user must not use."""
    for top in tops:
        reason = refusal(top)
        if reason is not None:
            raise ConflictError(f"{reason}\nNothing was changed")


def answer(folder: Path, *arguments: str, given: bytes = b"") -> bytes | None:
    """What git prints, None when it fails, is absent, may not run there, or `folder` is in no repository."""
    if work_tree(folder) is None:
        return None
    done = ask(folder, *arguments, given=given)
    return done.stdout if done is not None and done.returncode == 0 else None


@dataclass(frozen=True)
class Tracked:
    """A file that git tracks; skipped: it has the skip-worktree flag already."""

    skipped: bool


def tracked(path: Path) -> Tracked | None:
    """What git knows of the file `path`, None when it does not track it."""
    return all_tracked([path]).get(path)


def all_tracked(paths: Iterable[Path]) -> dict[Path, Tracked]:
    """What git knows of each of `paths` that it tracks; one question per repository."""
    known = {}
    for top, names in _by_work_tree(paths).items():
        said = answer(top, "--literal-pathspecs", "ls-files", "-v", "-z", "--", *names) or b""
        for line in said.split(b"\0")[:-1]:
            known[top / os.fsdecode(line[2:])] = Tracked(skipped=line[:1] in b"Ss")
    return known


def head_blob(path: Path) -> bytes | None:
    """The bytes of `path` in HEAD, None when it is not in there or git cannot say."""
    return head_blobs([path]).get(path)


def head_blobs(paths: Iterable[Path]) -> dict[Path, bytes]:
    """The bytes in HEAD of each of `paths` that is in there; one question per repository."""
    blobs = {}
    for top, names in _by_work_tree(paths).items():
        names = [name for name in names if "\n" not in name]
        asked = b"".join(os.fsencode(f"HEAD:{name}\n") for name in names)
        said = answer(top, "cat-file", "--batch", given=asked) or b""
        for name in names:
            header, _, rest = said.partition(b"\n")
            fields = header.split()
            if len(fields) == 3 and fields[1] == b"blob":
                size = int(fields[2])
                blobs[top / name], said = rest[:size], rest[size + 1 :]
            else:
                said = rest
    return blobs


def _by_work_tree(paths: Iterable[Path]) -> dict[Path, list[str]]:
    """Paths relative to the top of their work tree, for each work tree."""
    names: dict[Path, list[str]] = {}
    tops: dict[Path, Path | None] = {}
    for path in paths:
        if path.parent not in tops:
            tops[path.parent] = work_tree(path.parent)
        top = tops[path.parent]
        if top is not None:
            names.setdefault(top, []).append(path.relative_to(top).as_posix())
    return names


def exclude_file(root: Path) -> tuple[Path, str] | None:
    """The file with the repository's own ignore lines, and the path of `root` inside the repository ("" or "a/b/").

    Works in submodules and further work trees too, where `.git` is a file. None without a repository.
    """
    top = work_tree(root)
    if top is None or answer(root, "rev-parse", "--git-dir") is None:
        return None
    prefix = root.resolve().relative_to(top.resolve()).as_posix()
    return repository(top).common / INFO / EXCLUDE_NAME, "" if prefix == "." else f"{prefix}/"


def read_exclude(file: Path) -> bytes | None:
    """The bytes of an exclude file, None when there is none. Raises ConflictError, OSError where links lead to it."""
    with opened(file.parents[1]) as folder:
        if folder.lstat(INFO) is None:
            return None
        with folder.entered(INFO) as info:
            state = state_in(info, EXCLUDE_NAME)
    return None if state is None else state.data


def own_folder(root: Path) -> Path | None:
    """The folder in which git keeps what belongs to this work tree alone; None without a repository."""
    top = work_tree(root)
    return None if top is None or answer(root, "rev-parse", "--git-dir") is None else repository(top).folder


def exclude_line(prefix: str, path: str) -> bytes:
    """The line that ignores `path`, relative to a root at `prefix` inside the repository, and nothing else."""
    escaped = "".join(f"\\{char}" if char in "\\*?[]" else char for char in f"/{prefix}{path}")
    stem = escaped.rstrip(" ")
    return (stem + "\\ " * (len(escaped) - len(stem))).encode("utf-8", "surrogateescape")


def with_lines(data: bytes | None, lines: Sequence[bytes]) -> bytes | None:
    """An exclude file with our heading and `lines` at its end; unchanged when there are none."""
    if not lines:
        return data
    return appended(
        data or b"", b"".join(line + b"\n" for line in (EXCLUDE_HEADING, *lines)).decode("utf-8", "surrogateescape")
    )


def without_lines(data: bytes | None, lines: Sequence[bytes]) -> bytes | None:
    """An exclude file without our heading and `lines`, for when somebody has edited it since."""
    if data is None:
        return None
    ours = {EXCLUDE_HEADING, *lines}
    return b"".join(line for line in data.splitlines(keepends=True) if line.rstrip(b"\r\n") not in ours)


class SkipWorktree:
    """Effect: tell git to overlook that files differ, or no more. Arguments: folder (of the repository, relative to
    the root), paths (relative to that folder), on.
    """

    def apply(self, root: Path, arguments: Mapping[str, Any]) -> None:
        """Set the flag to `on`."""
        self._flag(root, arguments)

    def revert(self, root: Path, arguments: Mapping[str, Any]) -> None:
        """Set the flag to the opposite: the plan names only files whose flag it changes."""
        self._flag(root, arguments, back=True)

    def finish(self, root: Path, arguments: Mapping[str, Any]) -> None:
        """Nothing waits for the commit."""

    @staticmethod
    def _flag(root: Path, arguments: Mapping[str, Any], *, back: bool = False) -> None:
        folder, paths, on = _named_files(root, arguments)
        on = on != back
        if not folder.is_dir():
            return
        known = all_tracked(folder / path for path in paths)
        paths = [path for path in paths if folder / path in known and known[folder / path].skipped != on]
        if not paths:
            return
        done = ask(folder, "update-index", f"--{'' if on else 'no-'}skip-worktree", "--", *paths)
        if done is not None and done.returncode:
            reason = done.stderr.decode("utf-8", "replace").strip().splitlines()
            raise ConflictError(
                f"git cannot update its index in {folder}: {reason[0] if reason else 'unknown reason'} "
                "Nothing was changed. Let other git commands finish (a lock that a killed one left may be removed)"
            )
        if not on and not _has_filters(folder):
            ask(folder, "update-index", "-q", "--refresh")


def _named_files(root: Path, arguments: Mapping[str, Any]) -> tuple[Path, list[str], bool]:
    """Folder, paths and direction of a SkipWorktree. Raises ConflictError where they are not in `root`."""
    source = "the journal"
    try:
        name, on = arguments["folder"], bool(arguments["on"])
        paths = [checked(path, source) for path in arguments["paths"]]
    except (KeyError, TypeError) as error:
        raise ConflictError(f"{source} is damaged: a step {SKIP_WORKTREE!r} without {error}") from error
    folder = root if name == os.curdir else real_inside(root, f"{checked(name, source)}/x", source)[0]
    return folder, paths, on


def _has_filters(folder: Path) -> bool:
    """Whether the repository's own settings (not the user's) name programs that git runs to compare a file."""
    asked = ("--null", "--get-regexp", r"^filter\..*\.(clean|process)$")
    said = answer(folder, "config", "--includes", "--show-scope", *asked)
    if said is None:  # none at all, or a git that is too old to say
        return answer(folder, "config", "--includes", *asked) is not None
    return any(scope not in (b"global", b"system", b"command") for scope in said.split(b"\0")[0:-1:2])


class Exclude:
    """Effect: the bytes of the exclude file. Arguments: before and after (base64, null: no file)."""

    def apply(self, root: Path, arguments: Mapping[str, Any]) -> None:
        """Make it `after`."""
        self._write(root, _decoded(arguments, "before"), _decoded(arguments, "after"))

    def revert(self, root: Path, arguments: Mapping[str, Any]) -> None:
        """Make it `before`."""
        self._write(root, _decoded(arguments, "after"), _decoded(arguments, "before"))

    def finish(self, root: Path, arguments: Mapping[str, Any]) -> None:
        """Nothing waits for the commit."""

    @staticmethod
    def _write(root: Path, old: bytes | None, new: bytes | None) -> None:
        found = exclude_file(root)
        if found is None:
            return
        with opened(found[0].parents[1]) as folder:
            if new is not None and folder.lstat(INFO) is None:
                folder.make_folder(INFO, folder.owner())
            with contextlib.suppress(FileNotFoundError), folder.entered(INFO) as info:
                clear_leftovers(info, EXCLUDE_NAME)  # of a killed process
                _write_exclude(info, old, new)
            if new is None:
                with contextlib.suppress(OSError):
                    folder.rmdir(INFO)


def _write_exclude(info: Folder, old: bytes | None, new: bytes | None) -> None:
    state = state_in(info, EXCLUDE_NAME)
    current = None if state is None else state.data
    if current == new:
        return
    if current != old:
        # edited by somebody in between: change only the lines that are ours
        gone = set((old or b"").splitlines()) - set((new or b"").splitlines())
        come = [line for line in (new or b"").splitlines() if line not in (old or b"").splitlines()]
        kept = [line for line in (current or b"").splitlines(keepends=True) if line.rstrip(b"\r\n") not in gone]
        missing = [line for line in come if line not in (current or b"").splitlines()]
        new = b"".join(kept)
        if missing:
            new = appended(new, b"".join(line + b"\n" for line in missing).decode("utf-8", "surrogateescape"))
    if new is None:
        info.unlink(EXCLUDE_NAME, missing_ok=True)
    else:
        write_into(info, EXCLUDE_NAME, new)


def encoded(data: bytes | None) -> str | None:
    """`data` for a JSON document."""
    return None if data is None else base64.b64encode(data).decode("ascii")


def _decoded(arguments: Mapping[str, Any], key: str) -> bytes | None:
    try:
        text = arguments[key]
        return None if text is None else base64.b64decode(text, validate=True)
    except (KeyError, TypeError, ValueError) as error:
        raise ConflictError(f"the journal is damaged: a step {EXCLUDE!r} whose {key!r} cannot be read") from error


OPERATIONS: Mapping[str, Operation] = {SKIP_WORKTREE: SkipWorktree(), EXCLUDE: Exclude()}
