"""A tree that somebody has prepared, with records as a killed transaction leaves them: what they say is confined."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kohya_ext.core.errors import ConflictError
from kohya_ext.dataset import history
from kohya_ext.files.folder import Folder
from kohya_ext.files.paths import checked
from kohya_ext.files.transaction import JOURNAL, STAGED, STATE_FOLDER, Transaction
from tests.files.strangers import NOBODY, as_root, give

EVIL = b"evil\n"


def side(blob: str = "0.before", data: bytes = EVIL, **changed: Any) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    return {"sha256": digest, "mode": 0o644, "owner": None, "blob": blob, **changed}


def prepare(root: Path, steps: list[dict[str, Any]], *, created: list[str] | None = None) -> Path:
    """The records of a transaction that was killed; the folder of staged files."""
    staged = root / STATE_FOLDER / STAGED
    staged.mkdir(parents=True)
    (staged / "0.before").write_bytes(EVIL)
    document = {"format": 1, "verb": "install", "created": created or [], "steps": steps}
    (root / STATE_FOLDER / JOURNAL).write_text(json.dumps(document))
    return staged


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    root.mkdir()
    (root / "file").write_bytes(b"new\n")
    return root


def put_back(**changed: Any) -> list[dict[str, Any]]:
    after = hashlib.sha256(b"new\n").hexdigest()
    return [{"path": "file", "before": side(**changed), "after": side("0.after", sha256=after)}]


def test_the_records_are_such_as_are_followed(root: Path) -> None:
    """What the other tests change one thing of."""
    prepare(root, put_back())
    assert Transaction(root).recover() is not None
    assert (root / "file").read_bytes() == EVIL


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o6777, 0o1777, -1, 1 << 40])
@pytest.mark.parametrize("another_file_system", [False, True])
def test_no_set_user_id(root: Path, monkeypatch: pytest.MonkeyPatch, mode: int, another_file_system: bool) -> None:
    staged = prepare(root, put_back(mode=mode))
    (staged / "0.before").chmod(0o6755)
    if another_file_system:
        replace = Folder.replace

        def refuse(self: Folder, name: str, target: Folder, new_name: str) -> None:
            if self.path.name == STAGED:
                raise OSError(18, "Invalid cross-device link")
            replace(self, name, target, new_name)

        monkeypatch.setattr(Folder, "replace", refuse)
    Transaction(root).recover()
    assert (root / "file").read_bytes() == EVIL
    assert not stat.S_IMODE((root / "file").stat().st_mode) & 0o7000


def test_a_file_that_is_right_already_does_not_become_writable_for_all(root: Path) -> None:
    (root / "file").write_bytes(EVIL)
    (root / "file").chmod(0o640)
    prepare(root, put_back(mode=0o6666))
    Transaction(root).recover()
    assert stat.S_IMODE((root / "file").stat().st_mode) == 0o664


@as_root
@pytest.mark.parametrize("another_file_system", [False, True])
def test_owners_are_those_of_the_files(root: Path, monkeypatch: pytest.MonkeyPatch, another_file_system: bool) -> None:
    """In a user's tree nothing becomes root's, and nothing of root's the user's, because a journal says so."""
    if another_file_system:
        replace = Folder.replace

        def refuse(self: Folder, name: str, target: Folder, new_name: str) -> None:
            if self.path.name == STAGED:
                raise OSError(18, "Invalid cross-device link")
            replace(self, name, target, new_name)

        monkeypatch.setattr(Folder, "replace", refuse)
    prepare(root, put_back(owner=[0, 0], mode=0o4755))
    give(root)
    Transaction(root).recover()
    assert (root / "file").read_bytes() == EVIL
    assert (root / "file").stat().st_uid == NOBODY


def link_to_secret(staged: Path, secret: Path) -> None:
    (staged / "0.before").unlink()
    (staged / "0.before").symlink_to(secret)


def pipe(staged: Path, secret: Path) -> None:
    (staged / "0.before").unlink()
    os.mkfifo(staged / "0.before")


def other_bytes(staged: Path, secret: Path) -> None:
    (staged / "0.before").write_bytes(b"other\n")


@pytest.mark.parametrize("how", [link_to_secret, pipe, other_bytes])
def test_staged_files_that_are_not_what_the_journal_says(
    root: Path, tmp_path: Path, how: Callable[[Path, Path], None]
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(EVIL)
    how(prepare(root, put_back()), secret)
    with pytest.raises(ConflictError):
        Transaction(root).recover()
    assert (root / "file").read_text() == "new\n"
    assert secret.read_bytes() == EVIL


@pytest.mark.parametrize("blob", ["../journal.json", "a/b", "/etc/passwd", "..", ".", ""])
def test_staged_files_have_bare_names(root: Path, blob: str) -> None:
    prepare(root, put_back(blob=blob))
    with pytest.raises(ConflictError):
        Transaction(root).recover()
    assert (root / "file").read_text() == "new\n"


@pytest.mark.parametrize(
    "path",
    [
        *(
            ".git/hooks/post-checkout",
            ".GIT/config",
            ".Git/x",
            "a/.git/x",
            ".git ",
            ".git.",
            ".git. ./x",
            "git~1/config",
        ),
        *(".git::$INDEX_ALLOCATION/config", "../x", "a/../../x", "/x", "C:x", "\\\\server\\x", "a\\..\\..\\x"),
        *("", ".", "nul\0"),
    ],
)
def test_paths_stay_in_the_tree_and_out_of_git(path: str) -> None:
    with pytest.raises(ConflictError):
        checked(path)


@pytest.mark.parametrize("path", [".gitignore", ".github/x", "a.git/x", "git~/x", "mygit~1x", "ü/x y", "..a/x"])
def test_other_paths_are_fine(path: str) -> None:
    assert checked(path) == path


def test_only_empty_folders_of_the_tree_are_removed(root: Path, tmp_path: Path) -> None:
    (tmp_path / "outside/empty").mkdir(parents=True)
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "full").mkdir()
    (root / "full/x").touch()
    prepare(root, [], created=["link/empty", "full"])
    with contextlib.suppress(ConflictError):
        Transaction(root).recover()
    assert (tmp_path / "outside/empty").is_dir()
    assert (root / "full/x").exists()


@as_root
def test_records_of_a_stranger_are_not_followed(root: Path) -> None:
    """In a folder like /tmp everybody may leave records, though not change our files."""
    root.chmod(0o1777)
    prepare(root, put_back())
    give(root / STATE_FOLDER)
    with pytest.raises(ConflictError, match=f"written by user {NOBODY}"):
        Transaction(root).recover()
    assert (root / "file").read_text() == "new\n"


def test_what_an_undo_record_says_is_confined(root: Path, tmp_path: Path) -> None:
    (root / STATE_FOLDER).mkdir()
    row = {
        "path": "file",
        "before": {"data": "ZXZpbAo=", "mode": 0o6777},
        "after": hashlib.sha256(b"new\n").hexdigest(),
    }
    document = {"format": 1, "verb": "x", "time": 0, "steps": [row]}
    (root / STATE_FOLDER / "captions-0001.json").write_text(json.dumps(document))
    before = (root / "file").read_bytes()
    with pytest.raises(ConflictError, match="not the mode of a file"):
        history.undo(root)
    assert (root / "file").read_bytes() == before
    assert not (root / "file").stat().st_mode & (stat.S_ISUID | stat.S_ISGID)
