from __future__ import annotations

from pathlib import Path

import pytest

from kohya_ext.core.errors import UsageError

pytest.importorskip("PIL")
from kohya_ext.dataset.audit import Audit, AuditSettings, audit
from kohya_ext.dataset.buckets import Bucketing
from kohya_ext.dataset.tokens import TokenCounter
from tests.dataset.generated import Builder, planted


def words(text: str) -> int:
    return len(text.split())


COUNTER = TokenCounter(words, estimated=True)


def run(folder: Path, side: int = 128, **settings: object) -> Audit:
    bucketing = Bucketing((side, side), smallest=64, largest=side * 2)
    return audit(folder, AuditSettings(bucketing, "ewpp", **settings), COUNTER)  # type: ignore[arg-type]


def found(result: Audit) -> set[tuple[str, str]]:
    return {(finding.code, finding.path) for finding in result.findings if finding.path}


def check_planted(folder: Path, side: int, good: int, rounds: int) -> None:
    pytest.importorskip("imagehash")
    builder = Builder(folder, side)
    builder.good(good)
    expected = planted(builder, rounds)
    result = run(folder, side)
    assert expected - found(result) == set(), "not found"
    # an image that is too small or too long is so whatever else is planted; nothing else may come along
    assert found(result) - expected == set(), "invented"


def test_every_planted_fault_is_found_and_none_invented(tmp_path: Path) -> None:
    check_planted(tmp_path / "set", side=128, good=60, rounds=2)


@pytest.mark.slow
def test_a_thousand_images_with_forty_faults_of_every_kind(tmp_path: Path) -> None:
    check_planted(tmp_path / "set", side=192, good=1000, rounds=40)


def test_buckets_and_lengths_are_counted(tmp_path: Path) -> None:
    builder = Builder(tmp_path, 128)
    builder.save(tmp_path / "a.png")
    builder.save(tmp_path / "b.png", builder.image(256, 64))
    builder.save(tmp_path / "c.png", caption="a photo of ewpp " + "word " * 100)
    result = run(tmp_path)
    assert result.buckets == {(128, 128): 2, (256, 64): 1}
    assert result.tokens == {75: 2, 150: 1} and result.tokens_estimated
    assert result.styles == {"photograph": 1}
    assert "few-images" in {finding.code for finding in result.findings}


def test_without_the_library_for_fingerprints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "imagehash", None)
    Builder(tmp_path, 128).good(2)
    result = run(tmp_path)
    assert not result.near_duplicates_checked and found(result) == set()


def test_progress_is_told(tmp_path: Path) -> None:
    Builder(tmp_path, 128).good(3)
    told: list[tuple[int, int]] = []
    audit(tmp_path, AuditSettings(), COUNTER, lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("size", "level", "text"),
    [((1152, 896), "advice", "by 1.6%, but fills its bucket 1152x896"), ((832, 1216), "advice", "fills its bucket"),
     ((1151, 896), "problem", "upscale it 1.01 times"), ((800, 600), "problem", "upscale it 1.48 times")],
)  # fmt: skip
def test_below_the_area_of_the_training(tmp_path: Path, size: tuple[int, int], level: str, text: str) -> None:
    """Sizes that are buckets themselves are trained as they are, though they have a little less area."""
    builder = Builder(tmp_path, 128)
    builder.save(tmp_path / "a.png", builder.image(*size))
    (found,) = (one for one in audit(tmp_path, AuditSettings(), COUNTER).findings if one.path)
    assert (found.code, found.level) == ("too-small", level) and text in found.text


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no image"):
        run(tmp_path)


def test_an_image_nobody_may_read(tmp_path: Path) -> None:
    builder = Builder(tmp_path, 128)
    builder.good(1)
    (tmp_path / "folder.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "folder.txt").write_text("a woman ewpp")
    assert found(run(tmp_path)) == {("unreadable", "folder.png")}


def test_lopsided_views(tmp_path: Path) -> None:
    builder = Builder(tmp_path, 128)
    for number in range(12):
        builder.save(tmp_path / f"{number}.png", caption=f"a close-up of woman ewpp number {number}")
    assert "lopsided-view" in {finding.code for finding in run(tmp_path).findings}
