"""A mirror of a folder: the same names, and what is written next to them is elsewhere."""

from __future__ import annotations

from pathlib import Path

from kohya_ext.files.mirror import mirrored


def test_a_mirror(tmp_path: Path) -> None:
    source = tmp_path / "5_cat"
    (source / "deep").mkdir(parents=True)
    for name in ("a.png", "a.npz", "deep/b.txt"):
        (source / name).write_text(name)
    mirror = mirrored(source, tmp_path / "t")
    assert mirror.name == "5_cat"
    assert sorted(str(path.relative_to(mirror)) for path in mirror.rglob("*")) == ["a.png", "deep", "deep/b.txt"]
    assert (mirror / "deep/b.txt").read_text() == "deep/b.txt"
    (mirror / "a.npz").write_text("new")
    assert (source / "a.npz").read_text() == "a.npz"
    assert mirrored(source, tmp_path / "t") == mirror
