from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from kohya_ext.checkout import git, gitcommand
from kohya_ext.core.errors import ConflictError
from kohya_ext.files.lock import locked
from tests.checkout import trees
from tests.systems import with_git


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    trees.write(root, {"a b.py": "x = 1\r\n", "folder/ü.py": ""})
    trees.commit(root)
    (root / "untracked").write_text("x")
    return root


@with_git
def test_what_git_knows(repository: Path) -> None:
    assert git.head_blob(repository / "a b.py") == b"x = 1\r\n"
    assert git.head_blob(repository / "untracked") is None
    assert git.tracked(repository / "folder/ü.py") == git.Tracked(skipped=False)
    assert git.tracked(repository / "untracked") is None
    assert git.tracked(repository / "absent/file") is None
    assert git.work_tree(repository / "folder") == repository


def test_without_repository_or_git(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert git.head_blob(tmp_path / "x") is None
    assert git.exclude_file(tmp_path) is None
    monkeypatch.setenv("PATH", "/nonexistent")
    assert gitcommand.ask(repository, "status") is None
    assert git.tracked(repository / "a b.py") is None


@with_git
def test_variables_of_a_calling_git_do_not_mislead(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nonexistent")
    assert git.tracked(repository / "a b.py") is not None


@with_git
def test_flags(repository: Path) -> None:
    effect = git.SkipWorktree()
    arguments = {"folder": ".", "paths": ["a b.py", "folder/ü.py", "untracked"], "on": True}
    for _ in range(2):
        effect.apply(repository, arguments)
        assert git.tracked(repository / "a b.py") == git.Tracked(skipped=True)
    for _ in range(2):
        effect.revert(repository, arguments)
        assert git.tracked(repository / "folder/ü.py") == git.Tracked(skipped=False)
    effect.apply(repository, {"folder": "gone", "paths": ["x"], "on": True})


@with_git
def test_index_in_use(repository: Path) -> None:
    (repository / ".git/index.lock").touch()
    with pytest.raises(ConflictError, match=r"index\.lock"):
        git.SkipWorktree().apply(repository, {"folder": ".", "paths": ["a b.py"], "on": True})


@with_git
@pytest.mark.parametrize("before", [None, b"", b"# mine\n", b"mine", b"a\r\nb\r\n", b"\xff\n"])
def test_exclude_file_comes_back(repository: Path, before: bytes | None) -> None:
    path = repository / ".git/info/exclude"
    shutil.rmtree(path.parent)
    if before is not None:
        path.parent.mkdir()
        path.write_bytes(before)
    lines = [git.exclude_line("", "untracked")]
    after = git.with_lines(before, lines)
    arguments = {"before": git.encoded(before), "after": git.encoded(after)}
    for _ in range(2):
        git.Exclude().apply(repository, arguments)
        assert trees.git(repository, "status", "--porcelain") == ""
    for _ in range(2):
        git.Exclude().revert(repository, arguments)
        assert (path.read_bytes() if path.exists() else None) == before
    assert path.parent.exists() == (before is not None)


@with_git
def test_exclude_file_edited_in_between(repository: Path) -> None:
    path = repository / ".git/info/exclude"
    path.write_bytes(b"one\n")
    after = git.with_lines(b"one\n", [git.exclude_line("", "untracked")])
    arguments = {"before": git.encoded(b"one\n"), "after": git.encoded(after)}
    git.Exclude().apply(repository, arguments)
    path.write_bytes(path.read_bytes() + b"two\n")
    git.Exclude().revert(repository, arguments)
    assert path.read_bytes() == b"one\ntwo\n"
    git.Exclude().apply(repository, arguments)
    assert b"/untracked\n" in path.read_bytes()


@with_git
@pytest.mark.parametrize("name", ["a*b", "[x]", "trailing  ", "#x", "!x", "back\\slash", "ü ?"])
def test_lines_mean_one_file_only(repository: Path, name: str) -> None:
    (repository / "untracked").unlink()
    (repository / name).write_text("")
    path, prefix = git.exclude_file(repository) or (None, "")
    assert path is not None
    path.write_bytes(git.exclude_line(prefix, name) + b"\n")
    assert trees.git(repository, "status", "--porcelain") == ""
    (repository / "ab").write_text("")
    assert "ab" in trees.git(repository, "status", "--porcelain")


def test_children_hold_the_lock(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A git that outlives a killed installer keeps the next one waiting."""
    fake = tmp_path / "bin/git"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\nls -l /proc/$$/fd\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}{os.pathsep}{os.environ['PATH']}")
    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc")
    with locked(repository):
        assert str(repository).encode() in (git.answer(repository, "x") or b"")
    assert str(repository).encode() not in (git.answer(repository, "x") or b"").replace(b"cwd", b"")
