from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_ext.core.errors import ConflictError, UsageError
from kohya_ext.dataset import captions, history
from kohya_ext.dataset.history import EditPlan
from kohya_ext.files.transaction import STATE_FOLDER
from tests.dataset.folders import everything, folder_of
from tests.files.faults import boundaries, failing_at, killed_at

FILES: dict[str, str | bytes | None] = {
    "a (1).png": None, "b.jpg": None, "b.txt": b"\xef\xbb\xbfmine\r\n", "c.webp": None, "c.txt": "a (1)",
    "c.npz": "cache",
}  # fmt: skip

VERBS: dict[str, Callable[[Path], EditPlan]] = {
    "write": lambda folder: captions.from_names(folder, overwrite=True),
    "to-names": captions.to_names,
    "replace": lambda folder: captions.replaced(folder, "[abm]", "n", regex=True),
}


@pytest.mark.parametrize("verb", VERBS)
def test_undo_gives_everything_back_and_leaves_nothing(tmp_path: Path, verb: str) -> None:
    folder_of(tmp_path, FILES)
    (tmp_path / "b.txt").chmod(0o640)
    before = everything(tmp_path)
    history.apply(tmp_path, VERBS[verb](tmp_path))
    assert everything(tmp_path) != before
    undone = history.undo(tmp_path)
    assert undone.verb.startswith("captions") and undone.paths
    assert everything(tmp_path) == before
    assert not (tmp_path / STATE_FOLDER).exists()


def test_commands_are_taken_back_one_by_one(tmp_path: Path) -> None:
    folder_of(tmp_path, FILES)
    states = [everything(tmp_path)]
    for verb in ("write", "replace", "to-names"):
        history.apply(tmp_path, VERBS[verb](tmp_path))
        states.append(everything(tmp_path))
    for state in reversed(states[:-1]):
        history.undo(tmp_path)
        assert everything(tmp_path) == state
    with pytest.raises(UsageError, match="nothing to undo"):
        history.undo(tmp_path)


@pytest.mark.parametrize("verb", VERBS)
def test_killed_at_any_write(tmp_path: Path, verb: str) -> None:
    """Either nothing has happened, or all of it, and then `undo` brings it back bit for bit."""
    whole = folder_of(tmp_path / "whole", FILES)
    before = everything(whole)
    crossed = boundaries(lambda: history.apply(whole, VERBS[verb](whole)))
    after = everything(whole)
    sides = set()
    for number in range(len(crossed)):
        folder = folder_of(tmp_path / str(number), FILES)
        assert killed_at(number, lambda folder=folder: history.apply(folder, VERBS[verb](folder)))  # type: ignore[misc]
        history.recover(folder)
        now = everything(folder)
        assert now in (before, after), crossed[number]
        sides.add(now == after)
        if now == after:
            history.undo(folder)
        assert everything(folder) == before and not (folder / STATE_FOLDER).exists(), crossed[number]
    assert sides == {True, False}


@pytest.mark.parametrize("verb", VERBS)
def test_undo_killed_at_any_write(tmp_path: Path, verb: str) -> None:
    def done(folder: Path) -> Path:
        folder_of(folder, FILES)
        history.apply(folder, VERBS[verb](folder))
        return folder

    whole = done(tmp_path / "whole")
    after = everything(whole)
    crossed = boundaries(lambda: history.undo(whole))
    before = everything(whole)
    for number in range(len(crossed)):
        folder = done(tmp_path / str(number))
        assert killed_at(number, lambda folder=folder: history.undo(folder))  # type: ignore[misc]
        history.recover(folder)
        assert everything(folder) in (before, after), crossed[number]
        if everything(folder) == after:
            history.undo(folder)
        assert everything(folder) == before, crossed[number]


def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    whole = folder_of(tmp_path / "whole", FILES)
    before = everything(whole)
    count = len(boundaries(lambda: history.apply(whole, captions.from_names(whole, overwrite=True))))
    for number in range(0, count - 6, 3):
        folder = folder_of(tmp_path / str(number), FILES)
        with pytest.raises(ConflictError, match="no space"):
            failing_at(
                number, OSError(28, "No space left on device"),
                lambda folder=folder: history.apply(folder, captions.from_names(folder, overwrite=True)),  # type: ignore[misc]
            )  # fmt: skip
        assert everything(folder) == before


def test_a_caption_edited_since_is_not_lost(tmp_path: Path) -> None:
    folder_of(tmp_path, FILES)
    history.apply(tmp_path, captions.from_names(tmp_path, overwrite=True))
    (tmp_path / "b.txt").write_text("edited by hand")
    before = everything(tmp_path)
    with pytest.raises(ConflictError, match=r"b\.txt"):
        history.undo(tmp_path)
    assert everything(tmp_path) == before
    undone = history.undo(tmp_path, keep_edited=True)
    assert undone.kept == ("b.txt",)
    assert (tmp_path / "b.txt").read_text() == "edited by hand" and not (tmp_path / "a (1).txt").exists()


def test_a_renamed_image_that_was_moved_since(tmp_path: Path) -> None:
    folder_of(tmp_path, {"1.png": None, "1.txt": "a dog"})
    history.apply(tmp_path, captions.to_names(tmp_path))
    (tmp_path / "a dog.png").rename(tmp_path / "mine.png")
    with pytest.raises(ConflictError, match=r"a dog\.png"):
        history.undo(tmp_path)


def test_a_dry_run_of_undo(tmp_path: Path) -> None:
    folder_of(tmp_path, FILES)
    history.apply(tmp_path, captions.from_names(tmp_path))
    before = everything(tmp_path)
    assert history.undo(tmp_path, dry_run=True).paths
    assert everything(tmp_path) == before
    history.undo(tmp_path)


@pytest.mark.parametrize(
    "record",
    [b"", b"[]", b'{"format": 9}', b'{"format": 1, "verb": "x", "steps": [{"from": "../a", "to": "b"}]}',
     b'{"format": 1, "verb": "x", "steps": [{"path": "/etc/passwd", "before": null, "after": ""}]}'],
)  # fmt: skip
def test_a_damaged_record_is_refused(tmp_path: Path, record: bytes) -> None:
    folder_of(tmp_path, {f"{STATE_FOLDER}/captions-0001.json": record})
    with pytest.raises(ConflictError):
        history.undo(tmp_path)


STEP: dict[str, object] = {"path": "a.txt", "before": {"data": "YQ==", "mode": 420}, "after": "x"}


@pytest.mark.parametrize(
    "step",
    [
        None, 3, "path", [], {}, {"path": "a.txt"}, {"from": "a"}, {**STEP, "after": None},
        {**STEP, "before": 3}, {**STEP, "before": {}}, {**STEP, "before": {"data": "?", "mode": 420}},
        {**STEP, "before": {"data": None, "mode": 420}}, {**STEP, "before": {"data": "YQ==", "mode": "rw"}},
        {**STEP, "before": {"data": "YQ==", "mode": 0o4755}}, {**STEP, "before": {"data": "YQ==", "mode": True}},
    ],
)  # fmt: skip
def test_a_damaged_step_is_named_with_the_fix(tmp_path: Path, step: object) -> None:
    record = json.dumps({"format": 1, "verb": "captions", "steps": [step]}).encode()
    records = {"captions-0002.json": record, "captions-x.json": b""}
    folder_of(tmp_path, {"a.txt": "a"} | {f"{STATE_FOLDER}/{name}": data for name, data in records.items()})
    before = everything(tmp_path)
    for dry_run in (True, False):
        with pytest.raises(
            ConflictError,
            match=r"captions-0002\.json is damaged .* nothing was changed.* (rm|del) .*captions-0002\.json",
        ):
            history.undo(tmp_path, dry_run=dry_run)
    assert everything(tmp_path) == before


def test_a_record_nested_too_deeply_is_damaged(tmp_path: Path) -> None:
    folder_of(tmp_path, {f"{STATE_FOLDER}/captions-0001.json": b"[" * 100_000})
    with pytest.raises(ConflictError, match="is damaged"):
        history.undo(tmp_path)


def test_the_record_says_what_was_there(tmp_path: Path) -> None:
    folder_of(tmp_path, FILES)
    history.apply(tmp_path, captions.from_names(tmp_path, overwrite=True))
    (record,) = (tmp_path / STATE_FOLDER).glob("captions-*.json")
    assert {row["path"] for row in json.loads(record.read_text())["steps"]} == {"a (1).txt", "b.txt", "c.txt"}
