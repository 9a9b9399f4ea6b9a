"""The commit that git's files tell is the one that git tells."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from kohya_ext.files.revision import UNKNOWN, commits, moved
from tests.systems import with_git

BRANCH = "feat/some-branch"


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=tests", "-c", "user.email=tests@localhost", "-c", "protocol.file.allow=always"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def repository(folder: Path, *commands: str) -> Path:
    """A repository with two commits on a branch."""
    folder.mkdir()
    git(folder, "init", "--quiet", "-b", BRANCH)
    for message in ("first", "second"):  # times have seconds: equal messages may give equal commits
        git(folder, "commit", "--quiet", "--allow-empty", "--message", f"{folder.name}: {message}")
    for command in commands:
        git(folder, *command.split())
    return folder


@with_git
@pytest.mark.parametrize(
    "commands",
    [
        (),
        ("pack-refs --all",),
        ("pack-refs --all", "commit --allow-empty --message third"),
        ("checkout --quiet --detach HEAD~1",),
        ("tag -a -m x v1", "pack-refs --all", "checkout --quiet v1"),
    ],
    ids=["branch", "packed", "moved-since-packed", "detached", "tag"],
)
def test_a_repository(commands: tuple[str, ...], tmp_path: Path) -> None:
    top = repository(tmp_path / "repository", *commands)
    assert commits([top]) == [git(top, "rev-parse", "HEAD")]


@with_git
def test_other_work_trees_and_submodules(tmp_path: Path) -> None:
    part, top = repository(tmp_path / "part"), repository(tmp_path / "repository")
    git(top, "submodule", "--quiet", "add", str(part), "inner")
    git(top, "worktree", "add", "--quiet", "-b", "further", str(tmp_path / "further"), "HEAD~1")
    git(part, "commit", "--quiet", "--allow-empty", "--message", "not fetched")
    folders = [top, top / "inner", tmp_path / "further"]
    found = commits(folders)
    assert found == [git(one, "rev-parse", "HEAD") for one in folders]
    assert len({*found, *commits([part])}) == 4
    git(top, "pack-refs", "--all")
    assert commits(folders) == found


@with_git
@pytest.mark.parametrize(
    ("file", "data"),
    [
        ("HEAD", b""),
        ("HEAD", b"\xff\0"),
        ("HEAD", b"ref: "),
        ("HEAD", b"ref: refs/heads/absent"),
        ("HEAD", b"ref: refs/../../outside"),
        ("HEAD", b"0123"),
        (f"refs/heads/{BRANCH}", b"ref: refs/heads/" + BRANCH.encode()),
        (f"refs/heads/{BRANCH}", b"z" * 40),
    ],
    ids=str,
)
def test_what_is_damaged_is_not_known(file: str, data: bytes, tmp_path: Path) -> None:
    top = repository(tmp_path / "repository")
    (tmp_path / "repository" / "outside").write_text("a" * 40)
    (top / ".git" / file).write_bytes(data)
    assert commits([top]) == [UNKNOWN]


def test_a_folder_without_a_repository(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / ".git").write_text("not a link to a repository")
    assert commits([tmp_path, tmp_path / "file", tmp_path / "nowhere"]) == [UNKNOWN] * 3


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes")
def test_nothing_waits_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".git")
    assert commits([tmp_path]) == [UNKNOWN]


def test_only_what_is_known_has_moved() -> None:
    assert moved(["a", "b"], ["a", "c"])
    assert not moved(["a", "b"], ["a", "b"])
    assert not moved(["a", UNKNOWN], [UNKNOWN, "b"])
    assert not moved([], ["a", "b"])
