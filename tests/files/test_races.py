"""A stranger swaps names for links while root writes: nothing outside of the stranger's folder may change."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_ext.core.errors import ConflictError
from kohya_ext.files import atomic
from kohya_ext.files.journal import Change, FileState, read_state
from kohya_ext.files.transaction import STATE_FOLDER, Transaction
from tests.files.faults import boundaries, killed_at
from tests.files.strangers import NOBODY, as_root, before_call, give, meddling

pytestmark = as_root

WRITES = 400
PRECIOUS = b"root's own\n"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of root's in a folder of root's."""
    folder = tmp_path / "roots"
    folder.mkdir(mode=0o755)
    path = folder / "x.py"
    path.write_bytes(PRECIOUS)
    path.chmod(0o600)
    return path


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A folder of the stranger's."""
    folder = tmp_path / "theirs"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner/x.py").write_bytes(b"old")
    (folder / "inner/x.py").chmod(0o666)
    return give(folder)


def harmed(victim: Path) -> list[str]:
    """What has happened to root's file and its folder; repaired, so that the next hit counts as well."""
    seen = victim.lstat()
    found = []
    if victim.read_bytes() != PRECIOUS:
        found.append("overwritten")
        victim.write_bytes(PRECIOUS)
    if stat.S_IMODE(seen.st_mode) != 0o600:
        found.append(f"made {stat.S_IMODE(seen.st_mode):04o}")
        victim.chmod(0o600)
    if (seen.st_uid, seen.st_gid) != (0, 0):
        found.append("given away")
        os.chown(victim, 0, 0)
    strange = sorted(entry.name for entry in victim.parent.iterdir() if entry.name != victim.name)
    for name in strange:
        found.append(f"{name} appeared")
        (victim.parent / name).unlink()
    return found


def swap_temporary(folder: Path, victim: Path) -> None:
    """What ends like a temporary file of ours, and the name that it would have had once, are links to root's file."""
    for name in [*os.listdir(folder), f".x.py{atomic.TEMPORARY_SUFFIX}"]:  # noqa: PTH208 - as a stranger would
        if name.endswith(atomic.TEMPORARY_SUFFIX):
            with contextlib.suppress(OSError):
                (folder / name).unlink()
            (folder / name).symlink_to(victim)


def swap_folder(folder: Path, victim: Path) -> None:
    """`folder` is a link to root's folder."""
    folder.rename(folder.with_name("away"))
    folder.symlink_to(victim.parent)


def swap_back(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.unlink()
    with contextlib.suppress(OSError):
        folder.with_name("away").rename(folder)


def write(theirs: Path) -> None:
    atomic.write_atomic(theirs / "inner/x.py", b"new")


def change(theirs: Path) -> None:
    before = read_state(theirs / "inner/x.py")
    after = FileState(b"new" if before and before.data != b"new" else b"newer", 0o666)
    steps = [Change("inner/x.py", before, after), Change("made/y.py", None, FileState(b"", 0o666))]
    Transaction(theirs).run("install", steps)


def recover(theirs: Path) -> None:
    Transaction(theirs).recover()


def give_all(theirs: Path) -> None:
    atomic.give_tree(theirs, (NOBODY, NOBODY))


ACTIONS = [change, recover, give_all]


def attempt(action: Callable[[Path], None], theirs: Path) -> None:
    with contextlib.suppress(OSError, ConflictError):
        action(theirs)


def everywhere(
    action: Callable[[Path], None], theirs: Path, victim: Path, meddle: Callable[[], None], repair: Callable[[], None]
) -> list[str]:
    """Do `action` again and again, with `meddle` before its first call, its second, and so on; the harm done."""
    hits, number, ended = [], 0, False
    while not ended:
        with before_call(number, meddle) as calls:
            attempt(action, theirs)
            ended = len(calls) <= number
        hits += [f"{what}, before call {number} ({calls[-1]})" for what in harmed(victim)]
        repair()
        number += 1
    assert number > 3, "the stranger came too late"
    return hits


@pytest.mark.parametrize("action", [write, change])
def test_the_temporary_file_becomes_a_link(theirs: Path, victim: Path, action: Callable[[Path], None]) -> None:
    inner = theirs / "inner"

    def repair() -> None:
        for entry in inner.glob(f".*{atomic.TEMPORARY_SUFFIX}"):
            entry.unlink()

    assert everywhere(action, theirs, victim, lambda: swap_temporary(inner, victim), repair) == []


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("name", ["inner", STATE_FOLDER, f"{STATE_FOLDER}/staged", "made"])
def test_a_folder_becomes_a_link(theirs: Path, victim: Path, action: Callable[[Path], None], name: str) -> None:
    """Inside of a tree, a folder on the way that has become a link to elsewhere is never gone through."""
    folder = theirs / name

    def repair() -> None:
        swap_back(folder)
        shutil.rmtree(theirs / STATE_FOLDER, ignore_errors=True)
        shutil.rmtree(theirs / "made", ignore_errors=True)
        if action is recover:
            give(left_behind(theirs))

    repair()
    assert everywhere(action, theirs, victim, lambda: swap_folder(folder, victim), repair) == []


@pytest.mark.parametrize("action", ACTIONS)
def test_the_tree_itself_becomes_a_link(theirs: Path, victim: Path, action: Callable[[Path], None]) -> None:
    home = theirs.parent / "home"
    home.mkdir()
    tree = theirs.rename(home / "tree")
    (victim.parent / "inner").mkdir()
    precious = victim.rename(victim.parent / "inner/x.py")

    def repair() -> None:
        swap_back(tree)
        shutil.rmtree(tree / STATE_FOLDER, ignore_errors=True)
        shutil.rmtree(tree / "made", ignore_errors=True)
        if action is recover:
            give(left_behind(tree))

    def meddle() -> None:
        tree.rename(tree.with_name("away"))
        tree.symlink_to(victim.parent)

    repair()
    assert everywhere(action, tree, precious, meddle, repair) == []
    assert os.listdir(victim.parent) == ["inner"]  # noqa: PTH208


def left_behind(theirs: Path) -> Path:
    """A tree in which a transaction was killed among its writes."""
    assert killed_at(boundaries_of_change(theirs), lambda: change(theirs))
    return theirs


def boundaries_of_change(theirs: Path) -> int:
    copy = Path(shutil.copytree(theirs, theirs.parent / "copy", symlinks=True))
    crossed = boundaries(lambda: change(copy))
    shutil.rmtree(copy)
    return crossed.index("after made/y.py")


@pytest.mark.parametrize("action", [write, change])
def test_a_real_race(theirs: Path, victim: Path, action: Callable[[Path], None]) -> None:
    """Another process, without rights, swaps as fast as it can."""
    precious = str(victim)

    def step() -> None:
        names = os.listdir()  # noqa: PTH208
        names += [f".x.py{atomic.TEMPORARY_SUFFIX}"]
        for name in names:
            if name.endswith(atomic.TEMPORARY_SUFFIX):
                with contextlib.suppress(OSError):
                    Path(name).unlink()
                Path(name).symlink_to(precious)

    hits = []
    with meddling(theirs / "inner", step):
        for _ in range(WRITES):
            attempt(action, theirs)
            hits += harmed(victim)
    assert hits == []
