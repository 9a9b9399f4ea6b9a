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
        ('{"caption": "a dog"}', ["json-caption"]),
        ('{\n"caption": "a dog"\n}', ["json-caption", "slip"]),
        ('["a dog"]', ["json-caption"]),
        ("{a dog}", []),
        ("[a dog] in a park", []),
        ("a dog".encode("utf-16-be"), ["not-text", "slip"]),
        ("a dog".encode("utf-16-le"), ["not-text", "slip"]),
        ("\n\na photo of ewpp\nmore\n", ["blank-first-line"]),
        (b" \t\r\na photo of ewpp", ["blank-first-line"]),
        ("a {red|blue} dress", ["wildcard"]),
        ("a {{red|blue}} dress", []),
        ("a {red} dress", []),
        ("a  dog", ["slip"]),
        ("a \u200bdog", ["slip"]),
        ("a \ufeffdog", ["slip"]),
        ("می\u200cخواهم", []),
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


@pytest.mark.parametrize(
    ("image", "says"),
    [
        ("20_ohwx man/a.png", "as 'ohwx man', from its folder's name"), ("20_ohwx_man/a.png", "as 'ohwx_man'"),
        ("20/a.png", "without a caption"), ("20_/a.png", "without a caption"), ("x/a.png", "without a caption"),
    ],
)  # fmt: skip
def test_what_an_image_without_a_caption_is_trained_as(tmp_path: Path, image: str, says: str) -> None:
    folder_of(tmp_path, {image: None})
    for folder, recursive in ((tmp_path, True), ((tmp_path / image).parent, False)):
        (found,) = check(folder, recursive=recursive)
        assert found.code == "no-caption" and says in found.text


@pytest.mark.parametrize(("there", "asked"), [(".caption", ".txt"), (".txt", ".caption")])
def test_captions_of_the_other_extension_are_pointed_out(tmp_path: Path, there: str, asked: str) -> None:
    folder_of(tmp_path, {"10_dog/a.png": None, f"10_dog/a{there}": GOOD})
    (found,) = [one for one in check(tmp_path, recursive=True, suffix=asked) if one.code == "no-caption"]
    assert f"a{there}" in found.text and f"--extension {there}" in found.text
    assert not check(tmp_path, recursive=True, suffix=there)


@pytest.mark.parametrize(("caption", "says"), [(b"", "stops"), (b" \n", "without a caption"), (b"\n", "without")])
def test_what_an_empty_caption_does(tmp_path: Path, caption: bytes, says: str) -> None:
    folder_of(tmp_path, {"a.png": None, "a.txt": caption})
    (found,) = check(tmp_path)
    assert found.code == "empty-caption" and says in found.text


def test_a_name_is_said_once(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a.png": None, "a.txt": b"caf\xe9"})
    (found,) = check(tmp_path)
    assert found.path == "a.txt" and found.text.startswith("is not UTF-8")


@pytest.mark.parametrize(
    ("image", "caption", "near"),
    [
        ("a_1_2_3_4.png", "a.txt", True), ("my dog-03.png", "my_dog.txt", True), ("a.png", "a.png.txt", True),
        ("a (2).jpg", "a.txt", True), ("a.png", "A.TXT", True), ("ab.png", "a.txt", False), ("a1.png", "a.txt", False),
        ("a.png", "b.txt", False), ("a_x.png", "a.txt", False),
    ],
)  # fmt: skip
def test_a_caption_under_nearly_the_name_of_its_image(tmp_path: Path, image: str, caption: str, near: bool) -> None:
    folder_of(tmp_path, {image: None, caption: GOOD})
    found = next(finding for finding in check(tmp_path) if finding.code == "no-caption")
    assert (f"but {caption}, which has no image" in found.text) == near and found.path == image


def test_the_caption_of_another_image_is_not_near(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a.png": None, "a_1.png": None, "a.txt": GOOD})
    assert [finding.text for finding in check(tmp_path)] == ["has no a_1.txt: Kohya would train it without a caption"]


def test_what_is_trained_of_a_caption_that_is_json(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a.png": None, "a.txt": '{\n"caption": "a dog"\n}'})
    assert "trains the text '{' itself" in check(tmp_path)[0].text
