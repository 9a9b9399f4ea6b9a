"""Real Kohya trees, exported from git directories that the caller names by environment variables.

KOHYA_SS_GIT, SD_SCRIPTS_GIT: clones (bare ones do) of bmaltais/kohya_ss and kohya-ss/sd-scripts. SD_SCRIPTS_FORK_GIT: a
repository that holds sd-scripts v0.11.1, the release kohya_ss v26.0.0 pins, where the clone of sd-scripts lacks it.
Nothing of upstream is in this repository.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

V0_11_1 = "6721028c79ee85a78b3a06dfd8954dae310a1cce"
OLDEST_KOHYA = (21, 8, 0)
OLDEST_SD_SCRIPTS = (0, 6, 0)


def git(git_dir: str, *arguments: str) -> str:
    return subprocess.run(
        ["git", f"--git-dir={git_dir}", *arguments], check=True, capture_output=True, text=True
    ).stdout


def kohya_revisions() -> list[str]:
    """Every release tag since v21.8.0, whatever its spelling, and master."""
    return [*_tags(os.environ.get("KOHYA_SS_GIT"), OLDEST_KOHYA), "master"]


def sd_scripts_revisions() -> list[str]:
    """Every release tag since v0.6.0, main, and v0.11.1 by its commit."""
    return [*_tags(os.environ.get("SD_SCRIPTS_GIT"), OLDEST_SD_SCRIPTS), "main", V0_11_1]


def _tags(git_dir: str | None, oldest: tuple[int, ...]) -> list[str]:
    if not git_dir:
        return []
    tags = {}
    for tag in git(git_dir, "tag").split():
        if match := re.fullmatch(r"[vV]?(\d+)\.(\d+)\.(\d+)", tag):
            version = tuple(map(int, match.groups()))
            if version >= oldest:
                tags[tag] = version
    return sorted(tags, key=lambda tag: (tags[tag], tag))


def export_kohya(revision: str, folder: Path) -> Path:
    """kohya_ss at `revision` as a fresh repository; its submodule too, with the `.git` file a real one has."""
    git_dir = os.environ["KOHYA_SS_GIT"]
    _write_tree(git_dir, revision, folder)
    pinned = git(git_dir, "ls-tree", revision, "sd-scripts").split()
    if pinned and pinned[0] == "160000":
        (folder / "sd-scripts").rmdir()
        export_sd_scripts(pinned[2], folder / "sd-scripts")
        _commit(folder, revision)
        _in(folder, "submodule", "--quiet", "absorbgitdirs")
        _in(folder, "submodule", "--quiet", "init")
    else:
        _commit(folder, revision)
    return folder


def export_sd_scripts(revision: str, folder: Path) -> Path:
    """sd-scripts at `revision` as a fresh repository."""
    git_dir = os.environ["SD_SCRIPTS_GIT"]
    if subprocess.run(
        ["git", f"--git-dir={git_dir}", "cat-file", "-e", f"{revision}^{{tree}}"], capture_output=True
    ).returncode:
        git_dir = os.environ["SD_SCRIPTS_FORK_GIT"]
    _write_tree(git_dir, revision, folder)
    _commit(folder, revision)
    return folder


def commit_again(folder: Path, message: str) -> None:
    """Commit everything in `folder` as a further revision of it."""
    _commit(folder, message)


def _commit(folder: Path, message: str) -> None:
    if not (folder / ".git").exists():
        _in(folder, "init", "--quiet", "-b", "master")
        _in(folder, "config", "core.autocrlf", "false")
    _in(folder, "add", "--all", "--force")
    _in(folder, "commit", "--quiet", "--message", message)


def _in(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=tests", "-c", "user.email=tests@localhost", "-c", "core.safecrlf=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def _write_tree(git_dir: str, revision: str, folder: Path) -> None:
    """All files of a revision. Blobs that a partial snapshot lacks (large images and libraries) are skipped."""
    rows = git(git_dir, "ls-tree", "-r", "-z", revision).split("\0")
    entries = [(*row.partition("\t")[0].split(), row.partition("\t")[2]) for row in rows if row]
    folder.mkdir(parents=True, exist_ok=True)
    for mode, _, _, path in entries:
        if mode == "160000":
            (folder / path).mkdir(parents=True)
    blobs = [(mode, sha, path) for mode, kind, sha, path in entries if kind == "blob"]
    for (mode, _, path), data in zip(blobs, _read_blobs(git_dir, [sha for _, sha, _ in blobs]), strict=True):
        if data is None:
            continue
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if mode == "120000":
            target.symlink_to(os.fsdecode(data))
        else:
            target.write_bytes(data)
            target.chmod(0o755 if mode == "100755" else 0o644)


def _read_blobs(git_dir: str, shas: list[str]) -> Iterable[bytes | None]:
    environment = {**os.environ, "GIT_NO_LAZY_FETCH": "1"}
    with subprocess.Popen(
        ["git", f"--git-dir={git_dir}", "cat-file", "--batch"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for sha in shas:
            process.stdin.write(sha.encode() + b"\n")
            process.stdin.flush()
            header = process.stdout.readline().split()
            if len(header) < 3 or header[1] == b"missing":
                yield None
                continue
            data = process.stdout.read(int(header[2]))
            process.stdout.read(1)
            yield data
        process.stdin.close()
