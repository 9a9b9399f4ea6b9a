from __future__ import annotations

from pathlib import Path

import pytest

image = pytest.importorskip("PIL.Image")
from kohya_ext.files.document import document, thumbnail  # noqa: E402


def test_the_page() -> None:
    text = document("a < b", ["<p>one</p>", "<p>two</p>"], "p { color: red }")
    assert text.startswith("<!doctype html>") and "<title>a &lt; b</title>" in text
    assert "<p>one</p>\n<p>two</p>" in text and "p { color: red }</style>" in text


def test_thumbnails(tmp_path: Path) -> None:
    image.new("RGB", (400, 200)).save(tmp_path / "a.png")
    assert thumbnail(tmp_path / "a.png", 50).startswith("<img alt='' src='data:image/jpeg;base64,")
    (tmp_path / "b.png").write_bytes(b"no image")
    assert thumbnail(tmp_path / "b.png", 50) == "" == thumbnail(tmp_path / "absent.png", 50)
