import os
from pathlib import Path

import pytest

from kohya_ext.files import atomic, faultpoints
from tests.files.faults import boundaries, killed_at
from tests.systems import posix_modes


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


@posix_modes
def test_new_file_gets_the_usual_mode(tmp_path: Path) -> None:
    atomic.write_atomic(tmp_path / "x", b"")
    assert (tmp_path / "x").stat().st_mode & 0o777 == atomic.NEW_FILE_MODE


@posix_modes
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

    monkeypatch.setattr(faultpoints, "listener", fail)
    with pytest.raises(OSError, match="no space"):
        atomic.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    victim.chmod(0o666)
    path = tmp_path / "x"
    path.symlink_to(victim)
    atomic.write_atomic(path, b"new")
    assert victim.read_bytes() == b"precious"
    assert path.read_bytes() == b"new"
    assert not path.is_symlink()
    assert path.stat().st_mode & 0o777 == atomic.NEW_FILE_MODE


def test_a_folder_may_be_reached_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who names a file may name it through links."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    atomic.write_atomic(tmp_path / "link/x", b"new")
    assert (tmp_path / "real/x").read_bytes() == b"new"
    monkeypatch.chdir(tmp_path)
    atomic.write_atomic(Path("link/x"), b"newer")
    atomic.write_atomic(Path("y"), b"")
    assert (tmp_path / "real/x").read_bytes() == b"newer"
    assert names(tmp_path) == ["link", "real", "y"]


def test_set_user_id_is_never_given_back(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"")
    path.chmod(0o6755)
    atomic.write_atomic(path, b"new")
    assert path.stat().st_mode & 0o7777 == 0o755
    atomic.write_atomic(path, b"new", mode=0o7777)
    assert path.stat().st_mode & 0o7777 == 0o777


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills need fork")
@pytest.mark.parametrize("name", ["x", "a*b", "long " * 50, "ü" * 127])
def test_leftovers_of_the_killed_are_removed_and_those_of_the_living_are_not(tmp_path: Path, name: str) -> None:
    path = tmp_path / name

    def write() -> None:
        atomic.write_atomic(path, b"new")

    at = [crossed.startswith("before renaming") for crossed in boundaries(write)].index(True)
    path.unlink()
    assert killed_at(at, write)
    assert len(names(tmp_path)) == 1
    with atomic.replacing(path) as file:  # a living one, which has removed the killed one's
        file.write(b"slow")
        assert len(names(tmp_path)) == 1
        write()
        assert path.read_bytes() == b"new"
        assert len(names(tmp_path)) == 2
    assert path.read_bytes() == b"slow"
    assert names(tmp_path) == [name]


def test_names_cannot_be_guessed(tmp_path: Path) -> None:
    seen = set()
    for _ in range(20):
        with atomic.replacing(tmp_path / "x"):
            seen |= {entry for entry in names(tmp_path) if entry != "x"}
    assert len(seen) == 20


@posix_modes
def test_while_it_is_written_only_its_user_may_read_it(tmp_path: Path) -> None:
    with atomic.replacing(tmp_path / "x") as file:
        (temporary,) = tmp_path.iterdir()
        assert temporary.stat().st_mode & 0o777 == 0o600
        file.write(b"new")
    assert (tmp_path / "x").stat().st_mode & 0o777 == atomic.NEW_FILE_MODE


def test_a_scratch_file_goes(tmp_path: Path) -> None:
    with pytest.raises(KeyError), atomic.scratch(tmp_path / "x") as file:
        file.write(b"abc")
        file.seek(1)
        assert file.read() == b"bc"
        assert len(names(tmp_path)) == 1
        raise KeyError
    assert names(tmp_path) == []


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
