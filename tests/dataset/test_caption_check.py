from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest

from kohya_ext.dataset.caption_check import check
from tests.dataset.folders import folder_of

GOOD = "a woman ewpp wearing a red dress"


def codes(tmp_path: Path, caption: str | bytes | None, **settings: Any) -> list[str]:
    folder_of(tmp_path, {"a.png": None, **({} if caption is None else {"a.txt": caption})})
    return [finding.code for finding in check(tmp_path, **settings)]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        (GOOD, []),
        (None, ["no-caption"]),
        (" \n", ["empty-caption"]),
        (b"", ["empty-caption"]),
        (b"\xff\xfea dog", ["unreadable-caption"]),
        (b"\xef\xbb\xbfa dog", ["byte-order-mark"]),
        ("a dog\nand more", ["slip"]),
        ("\n\na photo of ewpp\nmore\n", ["blank-first-line"]),
        (b" \t\r\na photo of ewpp", ["blank-first-line"]),
        ("a {red|blue} dress", ["wildcard"]),
        ("a {{red|blue}} dress", []),
        ("a {red} dress", []),
        ("a  dog", ["slip"]),
        ("a dog,, a cat", ["slip"]),
        ("1girl, solo, long hair, smile, blue eyes", ["tag-list"]),
        ("a woman in a red dress, smiling, with her hair up, walking her dog through town", []),
        ("a close-up of a dog", ["view"]),
        ("closeups are fine words", []),
        ("a dog, white background", ["background"]),
        (unicodedata.normalize("NFD", "un café"), ["not-normalized"]),
    ],
)
def test_one_caption(tmp_path: Path, caption: str | bytes | None, expected: list[str]) -> None:
    assert codes(tmp_path, caption) == expected


@pytest.mark.parametrize(
    ("caption", "expected"),
    [(GOOD, []), ("a woman in a red dress", ["no-token"]), ("ewpp woman", ["token-first"]), ("an ewppx", ["no-token"])],
)
def test_the_token(tmp_path: Path, caption: str, expected: list[str]) -> None:
    assert codes(tmp_path, caption, token="ewpp") == expected


def test_captions_without_image_and_shared_ones(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a.png": None, "a.jpg": None, "a.txt": GOOD, "gone.txt": GOOD, "notes.md": "x"})
    assert [(finding.code, finding.path) for finding in check(tmp_path)] == [
        ("shared-caption", "a.png"), ("no-image", "gone.txt"),
    ]  # fmt: skip


@pytest.mark.parametrize(("caption", "says"), [(b"", "stops"), (b" \n", "without a caption"), (b"\n", "without")])
def test_what_an_empty_caption_does(tmp_path: Path, caption: bytes, says: str) -> None:
    folder_of(tmp_path, {"a.png": None, "a.txt": caption})
    (found,) = check(tmp_path)
    assert found.code == "empty-caption" and says in found.text


def test_a_name_is_said_once(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a.png": None, "a.txt": b"caf\xe9"})
    (found,) = check(tmp_path)
    assert found.path == "a.txt" and found.text.startswith("is not UTF-8")
