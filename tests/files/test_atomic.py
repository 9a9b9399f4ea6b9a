import os
from pathlib import Path

import pytest

from kohya_ext.files import atomic, boundary


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_replaces_and_keeps_the_mode(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_bytes(b"old")
    path.chmod(0o640)
    atomic.write_atomic(path, b"new\r\n")
    assert path.read_bytes() == b"new\r\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert names(tmp_path) == ["x.py"]


def test_new_file_gets_the_usual_mode(tmp_path: Path) -> None:
    atomic.write_atomic(tmp_path / "x", b"")
    assert (tmp_path / "x").stat().st_mode & 0o777 == atomic.NEW_FILE_MODE


def test_explicit_mode(tmp_path: Path) -> None:
    atomic.write_atomic(tmp_path / "x", b"", mode=0o600)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("when", ["before writing", "before renaming"])
def test_an_error_leaves_the_target_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def fail(name: str) -> None:
        if name.startswith(when):
            raise OSError(28, "no space")

    monkeypatch.setattr(boundary, "listener", fail)
    with pytest.raises(OSError, match="no space"):
        atomic.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


def test_a_leftover_temporary_link_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    path = tmp_path / "x"
    atomic.temporary_name(path).symlink_to(victim)
    atomic.write_atomic(path, b"new")
    assert victim.read_bytes() == b"precious"
    assert path.read_bytes() == b"new"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files away")
def test_owner_is_kept_and_a_new_file_gets_its_folders(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    os.chown(folder, 1234, 2345)
    atomic.write_atomic(folder / "new", b"")
    old = folder / "old"
    old.write_bytes(b"")
    os.chown(old, 77, 78)
    atomic.write_atomic(old, b"x")
    assert ((folder / "new").stat().st_uid, (folder / "new").stat().st_gid) == (1234, 2345)
    assert (old.stat().st_uid, old.stat().st_gid) == (77, 78)


def test_sha256() -> None:
    assert atomic.sha256(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
