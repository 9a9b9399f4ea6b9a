import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kohya_ext.core.errors import ConflictError
from kohya_ext.files.folder import Folder
from kohya_ext.files.journal import Change, Effect, FileState, Step, read_state
from kohya_ext.files.transaction import DONE, JOURNAL, SELF_IGNORE, STATE_FOLDER, Transaction
from tests import systems
from tests.files import faults

ENOSPC = OSError(28, "No space left on device")


class Line:
    """An effect that can be seen: a file outside the journal's reach with one line or without."""

    def apply(self, root: Path, arguments: Mapping[str, Any]) -> None:
        (root / arguments["file"]).write_text("on")
        (root / "scratch").write_text("")

    def revert(self, root: Path, arguments: Mapping[str, Any]) -> None:
        (root / arguments["file"]).write_text("off")
        (root / "scratch").unlink(missing_ok=True)

    def finish(self, root: Path, arguments: Mapping[str, Any]) -> None:
        """What may go once nothing is taken back any more."""
        (root / "scratch").unlink(missing_ok=True)


def state(text: str, mode: int = 0o644) -> FileState:
    return FileState(text.encode(), mode, (os.getuid(), os.getgid()) if hasattr(os, "getuid") else None)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    root.mkdir()
    (root / "changed").write_text("old")
    (root / "removed").write_text("gone soon")
    if not systems.WINDOWS:
        (root / "removed").chmod(0o755)
    (root / "effect").write_text("off")
    (root / "doomed/inner").mkdir(parents=True)
    (root / "doomed/inner/file").write_text("x")
    return root


def steps(root: Path) -> list[Step]:
    return [
        Effect("line", {"file": "effect"}),
        Change("changed", read_state(root / "changed"), state("new", 0o600)),
        Change("removed", read_state(root / "removed"), None),
        Change("new/folder/created", None, state("made")),
        Change("doomed/inner/file", read_state(root / "doomed/inner/file"), None),
    ]


def transaction(root: Path) -> Transaction:
    return Transaction(root, {"line": Line()})


def run(root: Path) -> None:
    transaction(root).run("install", steps(root), ["doomed", "doomed/inner"])


def view(root: Path) -> dict[str, object]:
    return {
        path.relative_to(root).as_posix(): (path.read_bytes(), path.stat().st_mode & 0o777) if path.is_file() else "dir"
        for path in root.rglob("*")
    }


def rebuilt(root: Path, number: int, tmp_path: Path) -> Path:
    """A copy of the fixture's tree."""
    import shutil

    return Path(shutil.copytree(root, tmp_path / f"copy{number}"))


@pytest.fixture
def sides(root: Path, tmp_path: Path) -> tuple[dict[str, object], dict[str, object], list[str]]:
    """The tree before, the tree after, and the boundaries between."""
    copy = rebuilt(root, 999, tmp_path)
    before = view(root)
    crossed = faults.boundaries(lambda: run(copy))
    return before, view(copy), crossed


def test_all_of_it(root: Path) -> None:
    run(root)
    assert (root / "changed").read_text() == "new"
    assert systems.WINDOWS or (root / "changed").stat().st_mode & 0o777 == 0o600
    assert not (root / "removed").exists()
    assert not (root / "doomed").exists()
    assert (root / "new/folder/created").read_text() == "made"
    assert (root / "effect").read_text() == "on"
    assert not (root / STATE_FOLDER).exists()
    assert transaction(root).recover() is None


def test_exception_at_every_boundary(root: Path, tmp_path: Path, sides: Any) -> None:
    before, after, crossed = sides
    commit = crossed.index("after commit")
    for number in range(len(crossed)):
        copy = rebuilt(root, number, tmp_path)
        if number < commit:
            with pytest.raises(ConflictError, match=r"no space left|Nothing was changed"):
                faults.failing_at(number, ENOSPC, partial(run, copy))
            assert view(copy) == before, crossed[number]
        elif number == commit:
            with pytest.raises(ConflictError):
                faults.failing_at(number, ENOSPC, partial(run, copy))
            assert view(copy) == after, crossed[number]
        else:
            faults.failing_at(number, ENOSPC, partial(run, copy))
            transaction(copy).recover()
            assert view(copy) == after, crossed[number]


def test_a_mode_that_the_file_system_does_not_grant(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vfat, a Windows drive: what was to get another mode than before has its bytes, and that counts."""

    def refuse(descriptor: int, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refuse, raising=False)
    before = read_state(root / "changed")
    assert before is not None
    transaction(root).run("install", [Change("changed", before, state("new", 0o640))])
    assert (root / "changed").read_text() == "new"


def test_interrupt_of_the_user_takes_back(root: Path, tmp_path: Path, sides: Any) -> None:
    before, _, crossed = sides
    number = crossed.index("after changed")
    with pytest.raises(KeyboardInterrupt):
        faults.failing_at(number, KeyboardInterrupt(), lambda: run(root))
    assert view(root) == before


def test_kill_at_every_boundary(root: Path, tmp_path: Path, sides: Any) -> None:
    before, after, crossed = sides
    landed = {"before": 0, "after": 0}
    for number in range(len(crossed)):
        copy = rebuilt(root, number, tmp_path)
        assert faults.killed_at(number, partial(run, copy))
        recovery = transaction(copy).recover()
        side = "before" if view(copy) == before else "after"
        assert view(copy) in (before, after), crossed[number]
        assert recovery is None or recovery.side == side, crossed[number]
        assert (side == "after") == (number >= crossed.index("after commit"))
        assert transaction(copy).recover() is None
        landed[side] += 1
    assert landed["before"] > 20
    assert landed["after"] > 3


def test_kill_at_every_boundary_of_a_recovery(root: Path, tmp_path: Path, sides: Any) -> None:
    before, after, crossed = sides
    for number in range(0, len(crossed), 4):
        for inner in range(100):
            copy = rebuilt(root, number * 100 + inner, tmp_path)
            assert faults.killed_at(number, partial(run, copy))
            killed = faults.killed_at(inner, transaction(copy).recover)
            transaction(copy).recover()
            assert view(copy) == (after if number >= crossed.index("after commit") else before)
            if not killed:
                break


def test_a_file_changed_in_between_is_left_alone(root: Path, sides: Any) -> None:
    number = sides[2].index("after removed")
    assert faults.killed_at(number, lambda: run(root))
    (root / "changed").write_text("by the user")
    recovery = transaction(root).recover()
    assert recovery is not None
    assert recovery.kept == ("changed",)
    assert (root / "changed").read_text() == "by the user"
    assert (root / "removed").read_text() == "gone soon"
    assert "left alone" in str(recovery)


def test_a_file_that_is_not_as_planned_stops_it(root: Path, sides: Any) -> None:
    planned = steps(root)
    (root / "removed").write_text("changed meanwhile")
    before = view(root)
    with pytest.raises(ConflictError, match="removed was changed"):
        transaction(root).run("install", planned)
    assert view(root) == before


def test_rollback_that_fails_can_be_finished_later(root: Path, sides: Any) -> None:
    before, _, crossed = sides
    number = crossed.index("after removed")

    def listener(name: str, count: Any = iter(range(1000))) -> None:  # noqa: B008
        if next(count) >= number:
            raise ENOSPC

    with faults.listening(listener), pytest.raises(ConflictError, match="run the command again"):
        run(root)
    assert transaction(root).interrupted()
    recovery = transaction(root).recover()
    assert recovery is not None
    assert recovery.side == "before"
    assert view(root) == before


def test_target_on_another_file_system(root: Path, monkeypatch: pytest.MonkeyPatch, sides: Any) -> None:
    replace = Folder.replace

    def refuse(self: Folder, name: str, target: Folder, new_name: str) -> None:
        if self.path.name == "staged":
            raise OSError(18, "Invalid cross-device link")
        replace(self, name, target, new_name)

    monkeypatch.setattr(Folder, "replace", refuse)
    run(root)
    assert view(root) == sides[1]


def test_state_folder_hides_itself_from_git(root: Path, sides: Any) -> None:
    assert faults.killed_at(sides[2].index("before changed"), lambda: run(root))
    assert (root / STATE_FOLDER / SELF_IGNORE).read_text() == "*\n"


@pytest.mark.parametrize("make", ["link", "file"])
def test_state_folder_of_somebody_else(root: Path, tmp_path: Path, make: str) -> None:
    if make == "link":
        (tmp_path / "elsewhere").mkdir()
        (root / STATE_FOLDER).symlink_to(tmp_path / "elsewhere")
    else:
        (root / STATE_FOLDER).write_text("mine")
    before = view(root)
    with pytest.raises(ConflictError, match="not made by kohya_ext"):
        run(root)
    assert view(root) == before
    assert not list(tmp_path.glob("elsewhere/*"))


@pytest.mark.parametrize("name", [JOURNAL, DONE])
@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b'{"format": 1}',
        b'{"format": 9, "verb": "x", "created": [], "steps": []}',
        json.dumps({"format": 1, "verb": "x", "created": ["../x"], "steps": []}).encode(),
        json.dumps(
            {"format": 1, "verb": "x", "created": [], "steps": [{"path": "../out", "before": None, "after": None}]}
        ).encode(),
    ],
)
def test_damaged_journal(root: Path, name: str, content: bytes) -> None:
    (root / STATE_FOLDER).mkdir()
    (root / STATE_FOLDER / name).write_bytes(content)
    before = view(root)
    with pytest.raises(ConflictError):
        transaction(root).recover()
    assert view(root) == before


def test_what_others_put_into_the_state_folder_stays(root: Path) -> None:
    (root / STATE_FOLDER).mkdir()
    (root / STATE_FOLDER / "note.txt").write_text("mine")
    run(root)
    assert (root / STATE_FOLDER / "note.txt").read_text() == "mine"
