from __future__ import annotations

import os
import shutil
import stat
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kohya_ext.core.errors import ConflictError
from kohya_ext.files import folder as folders
from kohya_ext.files.folder import NotRegularError, opened
from kohya_ext.files.journal import read_state
from tests.files.strangers import as_root, before_call, give

by_descriptor = pytest.mark.skipif(not folders._BY_DESCRIPTOR, reason="this system knows no calls by descriptor")


@pytest.fixture(params=[True, False], ids=["descriptors", "paths"])
def tree(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with some of everything; both ways of working, that of systems without such calls too."""
    if request.param and not folders._BY_DESCRIPTOR:
        pytest.skip("this system knows no calls by descriptor")
    monkeypatch.setattr(folders, "_BY_DESCRIPTOR", request.param)
    (tmp_path / "inner").mkdir()
    (tmp_path / "file").write_bytes(b"content")
    return tmp_path


def test_a_small_file_needs_little_memory(tree: Path) -> None:
    """Windows touches every page of the buffer that a read is given."""
    with opened(tree) as folder:
        tracemalloc.start()
        try:
            assert folder.read("file") is not None
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 4 << 20


def test_what_is_in_it(tree: Path) -> None:
    with opened(tree) as folder:
        assert folder.names() == ["file", "inner"]
        assert folder.lstat("none") is None
        assert folder.read("none") is None
        found = folder.read("file")
        assert found is not None
        assert found[0] == b"content"


def test_making_moving_and_removing(tree: Path) -> None:
    with opened(tree) as folder, folder.entered("inner") as inner:
        os.close(inner.create("new"))
        with pytest.raises(FileExistsError):
            inner.create("new")
        inner.replace("new", folder, "file")
        assert (tree / "file").read_bytes() == b""
        folder.make_folder("made", folder.owner())
        assert (tree / "made").is_dir()
        os.close(inner.create("again"))
        folder.remove_tree("inner")
        folder.remove_tree("none")
        folder.rmdir("made")
        folder.unlink("file")
        folder.unlink("file", missing_ok=True)
        with pytest.raises(FileNotFoundError, match="file"):
            folder.unlink("file")
        folder.sync()
        assert folder.names() == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc", "nul\0"])
def test_bare_names_only(tree: Path, name: str) -> None:
    with opened(tree) as folder, pytest.raises(OSError, match="not a bare name"):
        folder.create(name)


def test_errors_name_the_whole_path(tree: Path) -> None:
    with opened(tree) as folder:
        with pytest.raises(OSError) as caught:
            folder.rmdir("none")
        assert caught.value.filename == str(tree / "none")
    with pytest.raises(OSError) as caught, opened(tree / "none/deeper"):
        pass
    assert str(caught.value.filename).startswith(str(tree / "none"))


def test_links_are_not_entered(tree: Path) -> None:
    (tree / "link").symlink_to(tree / "inner")
    (tree / "inner/deep").mkdir()
    with pytest.raises(NotADirectoryError), opened(tree / "link"):
        pass
    with pytest.raises(NotADirectoryError), opened(tree) as folder, folder.entered("link"):
        pass


@by_descriptor
def test_links_on_the_way_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "inner/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("inner")
    with pytest.raises(NotADirectoryError, match="is a link"), opened(tmp_path / "link/deep"):
        pass


def test_links_are_removed_and_not_what_they_lead_to(tree: Path) -> None:
    (tree / "inner/link").symlink_to(tree / "file")
    (tree / "inner/folder").symlink_to(tree)
    with opened(tree) as folder:
        folder.remove_tree("inner")
    assert (tree / "file").read_bytes() == b"content"
    assert not (tree / "inner").exists()


JUNCTION = 0xA0000003  # the tag of what `mklink /J` makes, which needs no right
CLOUD = 0x9000001A  # of a file that a cloud drive has not fetched yet: it is what it is called


def with_tag(monkeypatch: pytest.MonkeyPatch, path: Path, tag: int) -> None:
    """Let lstat tell of the folder `path` what Windows would: a folder, with a reparse tag."""
    real = os.stat

    def stat_it(where: Any, *arguments: Any, **options: Any) -> Any:
        found = real(where, *arguments, **options)
        if not options.get("follow_symlinks", True) and os.fspath(where) == str(path):
            return SimpleNamespace(st_mode=found.st_mode, st_reparse_tag=tag)
        return found

    monkeypatch.setattr(os, "stat", stat_it)
    monkeypatch.setattr(Path, "lstat", lambda one: stat_it(one, follow_symlinks=False))


@pytest.mark.parametrize(("tag", "entered"), [(JUNCTION, False), (CLOUD, True)])
def test_a_junction_is_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tag: int, entered: bool) -> None:
    """`.kohya_ext` could be one: what is cleared below it would be somebody else's."""
    monkeypatch.setattr(folders, "_BY_DESCRIPTOR", False)
    (tmp_path / "inner/deep").mkdir(parents=True)
    (tmp_path / "inner/deep/precious").write_bytes(b"")
    with_tag(monkeypatch, tmp_path / "inner/deep", tag)
    unlinked: list[str] = []
    monkeypatch.setattr(os, "unlink", lambda where: unlinked.append(Path(where).name))
    monkeypatch.setattr(os, "rmdir", lambda where: None)
    with opened(tmp_path / "inner") as folder:
        folder.remove_tree("deep")
        assert unlinked == (["precious"] if entered else ["deep"])
        if entered:
            with folder.entered("deep") as deep, opened(tmp_path / "inner/deep"):
                assert deep.names() == ["precious"]
            return
        with pytest.raises(NotADirectoryError, match="is a link"), folder.entered("deep"):
            pass
        with pytest.raises(NotADirectoryError, match="is a link"), opened(tmp_path / "inner/deep"):
            pass


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system knows no pipes with a name")
@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "device"])
def test_only_regular_files_are_read(tmp_path: Path, kind: str) -> None:
    """And none of the others holds us up: nobody writes into this pipe."""
    path = tmp_path / "x"
    if kind == "link":
        path.symlink_to("/etc/passwd")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
        except OSError:
            pytest.skip("this user may make no devices")
    with pytest.raises(ConflictError, match="where a file is expected"):
        read_state(path)
    with opened(tmp_path) as folder, pytest.raises((NotRegularError, OSError)):
        folder.open_file("x")


def test_what_is_too_large_is_not_read(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "LARGEST", 3)
    with opened(tree) as folder, pytest.raises(OSError, match="more than 3 bytes"):
        folder.read("file")


@by_descriptor
def test_a_new_folder_has_the_rights_of_the_one_around_it(tmp_path: Path) -> None:
    """Whatever the umask of root is; except the right of everybody to write."""
    for mode, expected in ((0o777, 0o775), (0o750, 0o750), (0o755, 0o755)):
        outer = tmp_path / f"{mode:o}"
        outer.mkdir()
        outer.chmod(mode)
        before = os.umask(0o077)
        try:
            with opened(outer) as folder:
                folder.make_folder("made", None)
        finally:
            os.umask(before)
        assert (outer / "made").stat().st_mode & 0o777 == expected


@as_root
def test_a_second_name_of_another_users_file_is_not_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"root's own")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.link(secret, theirs / "x.py")
    os.chown(theirs, 65534, 65534)
    with pytest.raises(ConflictError, match="another user"):
        read_state(theirs / "x.py")
    own = theirs / "y.py"
    own.write_bytes(b"")
    os.link(own, theirs / "z.py")
    give(theirs)
    os.chown(secret, 0, 0)
    assert read_state(own) is not None


@as_root
def test_a_new_folder_that_is_swapped_is_not_given_away(tmp_path: Path) -> None:
    """A folder of root's that is in the stranger's gets the name of the one that we have just made."""
    theirs = tmp_path / "theirs"
    (theirs / "roots").mkdir(parents=True)
    (theirs / "roots/secret").write_bytes(b"")
    os.chown(theirs, 65534, 65534)

    def swap() -> None:
        (theirs / "made").rmdir()
        (theirs / "roots").rename(theirs / "made")

    refused = 0
    for number in range(6):
        with opened(theirs) as folder, before_call(number, swap):
            try:
                folder.make_folder("made", (65534, 65534))
            except OSError as error:
                refused += "replaced with another folder" in str(error)
        if (theirs / "made/secret").exists():
            (theirs / "made").rename(theirs / "roots")
        assert (theirs / "roots").stat().st_uid == 0
        shutil.rmtree(theirs / "made", ignore_errors=True)
    assert refused
