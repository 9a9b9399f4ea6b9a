"""What we ask of git, and the two things we do with it: the skip-worktree flag and lines in `.git/info/exclude`.

git may be absent and a checkout need not be a repository (Docker images copy the tree without `.git`): then every
question has the answer None, and nothing is done. The folder may belong to another user than the one who installs
(provisioning scripts run as root), which git refuses unless told that it is safe.
"""

from __future__ import annotations

import base64
import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kohya_ext.errors import ConflictError
from kohya_ext.files import lock
from kohya_ext.files.atomic import clear_leftovers, give_tree, owner_for, write_atomic
from kohya_ext.files.folder import opened
from kohya_ext.files.journal import Operation
from kohya_ext.files.textform import appended

TIMEOUT_SECONDS = 60
EXCLUDE_HEADING = b"# kohya_ext: what its installer put here; `kohya-ext uninstall` takes these lines away"
SKIP_WORKTREE = "skip-worktree"
EXCLUDE = "exclude"

_FOREIGN_OWNER = (b"dubious ownership", b"unsafe repository")


def run(folder: Path, *arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes] | None:
    """Run git in `folder`, `given` as its input; None when git is absent or hangs. Never asks, no optional locks."""
    done = _run(folder, arguments, given, {})
    if done is not None and done.returncode and any(words in done.stderr for words in _FOREIGN_OWNER):
        # git 2.35 to 2.37, and the 2.34 of Ubuntu 22.04, take safe.directory from a configuration file only
        with tempfile.TemporaryDirectory() as scratch:
            config = Path(scratch) / "gitconfig"
            config.write_text("[include]\n\tpath = ~/.gitconfig\n[safe]\n\tdirectory = *\n", encoding="utf-8")
            done = _run(folder, arguments, given, {"GIT_CONFIG_GLOBAL": str(config)})
    return done


def _run(
    folder: Path, arguments: Sequence[str], given: bytes, extra: Mapping[str, str]
) -> subprocess.CompletedProcess[bytes] | None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_") or "CONFIG" in key}
    environment |= {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", **extra}
    command = ["git", "-c", "safe.directory=*", *arguments]
    try:
        return subprocess.run(
            command,
            cwd=folder,
            env=environment,
            input=given,
            capture_output=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
            **lock.handed_on(),
        )
    except (OSError, subprocess.SubprocessError):
        return None


def answer(folder: Path, *arguments: str, given: bytes = b"") -> bytes | None:
    """What git prints, None when it fails, is absent, or `folder` is in no repository."""
    if work_tree(folder) is None:
        return None
    done = run(folder, *arguments, given=given)
    return done.stdout if done is not None and done.returncode == 0 else None


def work_tree(folder: Path) -> Path | None:
    """The top of the work tree that holds `folder`: the nearest folder upwards with a `.git`."""
    for candidate in (folder, *folder.parents):
        if (candidate / ".git").exists():
            return candidate
    return None


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

    Works in submodules and further work trees too, where `.git` is a file. None where there is no repository.
    """
    said = answer(root, "rev-parse", "--git-path", "info/exclude", "--show-prefix")
    if said is None:
        return None
    lines = said.decode("utf-8", "surrogateescape").split("\n")
    return root / lines[0], lines[1] if len(lines) > 1 else ""


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
    the root), paths (relative to that folder), on."""

    def apply(self, root: Path, arguments: Mapping[str, Any]) -> None:
        """Set the flag to `on`."""
        self._flag(root, arguments, bool(arguments["on"]))

    def revert(self, root: Path, arguments: Mapping[str, Any]) -> None:
        """Set the flag to the opposite: the plan names only files whose flag it changes."""
        self._flag(root, arguments, not arguments["on"])

    def finish(self, root: Path, arguments: Mapping[str, Any]) -> None:
        """Nothing waits for the commit."""

    @staticmethod
    def _flag(root: Path, arguments: Mapping[str, Any], on: bool) -> None:
        folder = root / arguments["folder"]
        if not folder.is_dir():
            return
        known = all_tracked(folder / path for path in arguments["paths"])
        paths = [path for path in arguments["paths"] if folder / path in known and known[folder / path].skipped != on]
        if not paths:
            return
        index = answer(folder, "rev-parse", "--git-path", "index")
        place = folder / os.fsdecode(index.rstrip(b"\n")) if index else None
        owner = owner_for(place) if place is not None else None
        done = run(folder, "update-index", f"--{'' if on else 'no-'}skip-worktree", "--", *paths)
        if done is not None and done.returncode:
            reason = done.stderr.decode("utf-8", "replace").strip().splitlines()
            raise ConflictError(
                f"git cannot update its index in {folder}: {reason[0] if reason else 'unknown reason'} "
                "Nothing was changed. Let other git commands finish (a lock that a killed one left may be removed)"
            )
        if not on:
            run(folder, "update-index", "-q", "--refresh")
        if place is not None:
            with contextlib.suppress(OSError):
                give_tree(place.resolve(), owner)


class Exclude:
    """Effect: the bytes of the exclude file. Arguments: before and after (base64, null: no file)."""

    def apply(self, root: Path, arguments: Mapping[str, Any]) -> None:
        """Make it `after`."""
        self._write(root, _decoded(arguments["before"]), _decoded(arguments["after"]))

    def revert(self, root: Path, arguments: Mapping[str, Any]) -> None:
        """Make it `before`."""
        self._write(root, _decoded(arguments["after"]), _decoded(arguments["before"]))

    def finish(self, root: Path, arguments: Mapping[str, Any]) -> None:
        """Nothing waits for the commit."""

    @staticmethod
    def _write(root: Path, old: bytes | None, new: bytes | None) -> None:
        found = exclude_file(root)
        if found is None:
            return
        path = found[0]
        clear_leftovers_of(path)
        current = path.read_bytes() if path.exists() else None
        if current is None and new is None:
            with contextlib.suppress(OSError):
                path.parent.rmdir()
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
            path.unlink()
            with contextlib.suppress(OSError):
                path.parent.rmdir()
            return
        if not path.parent.is_dir():
            path.parent.mkdir()
            give_tree(path.parent.resolve(), owner_for(path.parent.parent))
        write_atomic(path, new)


def clear_leftovers_of(path: Path) -> None:
    with contextlib.suppress(OSError), opened(path.parent.resolve()) as folder:
        clear_leftovers(folder, path.name)


def encoded(data: bytes | None) -> str | None:
    """`data` for a JSON document."""
    return None if data is None else base64.b64encode(data).decode("ascii")


def _decoded(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)


OPERATIONS: Mapping[str, Operation] = {SKIP_WORKTREE: SkipWorktree(), EXCLUDE: Exclude()}
