from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from kohya_ext.core.errors import ConflictError, UsageError
from kohya_ext.dataset import captions, history, substitute
from tests import systems
from tests.dataset.folders import everything, folder_of, text_of


def test_file_names_become_captions(tmp_path: Path) -> None:
    folder_of(tmp_path, {"femme ewpp (1).png": None, "a dog_2.JPG": None, "a dog_3.JPG": None, "room_101.png": None,
                         "IMG_20230704_101112.jpg": None, "x.gif": None, "mine.webp": None,
                         "mine.txt": "my own words", "deeper/b.bmp": None})  # fmt: skip
    plan = captions.from_names(tmp_path)
    history.apply(tmp_path, plan)
    assert text_of(tmp_path) == {
        "a dog_2.txt": "a dog\n",
        "a dog_3.txt": "a dog\n",
        "room_101.txt": "room_101\n",
        "femme ewpp (1).txt": "femme ewpp\n",
        "mine.txt": "my own words",
    }
    assert plan.kept == [
        (
            "IMG_20230704_101112.txt",
            "the name of its image comes from a camera or a program: name the image after what it shows, "
            "or write this caption by hand",
        ),
        ("mine.txt", "exists"),
    ]
    history.apply(tmp_path, captions.from_names(tmp_path, recursive=True, overwrite=True))
    assert text_of(tmp_path)["mine.txt"] == "mine\n" and text_of(tmp_path)["deeper/b.txt"] == "b\n"
    assert captions.from_names(tmp_path, recursive=True, overwrite=True).steps == []


def test_a_series_is_one_within_its_folder(tmp_path: Path) -> None:
    folder_of(tmp_path, {"one/room_101.png": None, "two/room_102.png": None, "two/room_103.png": None})
    plan = captions.from_names(tmp_path, recursive=True)
    assert {path: after for path, (_, after) in plan.written.items()} == {
        "one/room_101.txt": "room_101", "two/room_102.txt": "room", "two/room_103.txt": "room",
    }  # fmt: skip


def test_a_blank_first_line_is_what_kohya_reads(tmp_path: Path) -> None:
    folder_of(tmp_path, {"1.png": None, "1.txt": "\n\na photo of ewpp\n", "2.png": None, "2.txt": ""})
    assert captions.to_names(tmp_path).kept == [
        ("1.txt", "the first line is empty, and Kohya reads no other"), ("2.txt", "the caption is empty"),
    ]  # fmt: skip
    plan = captions.prefixed(tmp_path, "photo of ")
    assert plan.kept == [("1.txt", "the first line is empty, and Kohya reads no other")]
    assert list(plan.written) == ["2.txt"]


def test_two_images_share_a_caption(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a.png": None, "a.jpg": None})
    plan = captions.from_names(tmp_path)
    assert list(plan.written) == ["a.txt"]


def test_a_link_is_left_alone(tmp_path: Path) -> None:
    folder_of(tmp_path, {"set/a.png": None, "elsewhere.txt": "theirs"})
    (tmp_path / "set/a.txt").symlink_to(tmp_path / "elsewhere.txt")
    for plan in (captions.from_names(tmp_path / "set", overwrite=True), captions.prefixed(tmp_path / "set", "x ")):
        assert plan.steps == [] and plan.kept == [("a.txt", "is a link")]


@pytest.mark.parametrize("suffix", ["txt", "", "../x", ".a/b"])
def test_what_is_no_extension(tmp_path: Path, suffix: str) -> None:
    folder_of(tmp_path, {"a.png": None})
    if suffix:
        with pytest.raises(UsageError, match="extension"):
            captions.from_names(tmp_path, suffix=suffix)


def test_a_folder_without_images(tmp_path: Path) -> None:
    folder_of(tmp_path, {"deeper/a.png": None})
    with pytest.raises(UsageError, match="--recursive"):
        captions.from_names(tmp_path)


def test_edits_keep_the_form_of_each_file(tmp_path: Path) -> None:
    folder_of(tmp_path, {f"{name}.png": None for name in "abcd"})
    folder_of(tmp_path, {"a.txt": b"\xef\xbb\xbfa dog\r\n", "b.txt": "a dog", "c.txt": "ewpp, a cat\n"})
    (tmp_path / "b.txt").chmod(0o600)
    plan = captions.prefixed(tmp_path, "ewpp, ")
    history.apply(tmp_path, plan)
    assert (tmp_path / "a.txt").read_bytes() == b"\xef\xbb\xbfewpp, a dog\r\n"
    assert (tmp_path / "b.txt").read_bytes() == b"ewpp, a dog" and (tmp_path / "b.txt").stat().st_mode & 0o777 == 0o600
    assert plan.kept == [("d.txt", "there is no caption")] and plan.unchanged == 1
    history.apply(tmp_path, captions.prefixed(tmp_path, "ewpp, ", remove=True))
    assert (tmp_path / "a.txt").read_bytes() == b"\xef\xbb\xbfa dog\r\n" and (
        tmp_path / "c.txt"
    ).read_text() == "a cat\n"


@pytest.mark.parametrize(
    ("settings", "after"),
    [
        ({}, "a bird, birdbird, Cat"),
        ({"words": True}, "a bird, catcat, Cat"),
        ({"ignore_case": True}, "a bird, birdbird, bird"),
        ({"words": True, "ignore_case": True}, "a bird, catcat, bird"),
    ],
)
def test_replacing(tmp_path: Path, settings: dict[str, Any], after: str) -> None:
    folder_of(tmp_path, {"a.png": None, "a.txt": "a cat, catcat, Cat"})
    history.apply(tmp_path, captions.replaced(tmp_path, "cat", "bird", **settings))
    assert (tmp_path / "a.txt").read_text() == after


def test_groups_of_an_expression(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a.png": None, "a.txt": r"red dog \1"})
    history.apply(tmp_path, captions.replaced(tmp_path, r"(\w+) dog", r"dog in \1", regex=True))
    assert (tmp_path / "a.txt").read_text() == r"dog in red \1"
    history.apply(tmp_path, captions.replaced(tmp_path, r"\1", r"\2"))
    assert (tmp_path / "a.txt").read_text() == r"dog in red \2"


@pytest.mark.parametrize(("old", "new"), [("(", "x"), ("a", r"\7"), ("", "x")])
def test_what_is_no_expression(tmp_path: Path, old: str, new: str) -> None:
    folder_of(tmp_path, {"a.png": None, "a.txt": "a"})
    with pytest.raises(UsageError):
        captions.replaced(tmp_path, old, new, regex=True)


def test_a_caption_that_is_not_utf8_stops_everything(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a.png": None, "b.png": None, "a.txt": "fine", "b.txt": "caf\u00e9".encode("latin-1")})
    before = everything(tmp_path)
    with pytest.raises(UsageError, match=r"b\.txt is not UTF-8"):
        captions.prefixed(tmp_path, "x ")
    assert everything(tmp_path) == before


def test_a_huge_file_is_no_caption(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a.png": None, "a.txt": b"x" * (2 << 20)})
    with pytest.raises(UsageError, match="not a caption"):
        captions.prefixed(tmp_path, "x ")


def test_images_are_named_after_their_captions(tmp_path: Path) -> None:
    folder_of(tmp_path, {
        "1.png": None, "1.txt": "a dog: running", "2.jpg": None, "2.txt": "a dog: running\n", "2.npz": "cache",
        "3.webp": None, "3.txt": "a cat", "a cat.png": None, "a cat.txt": "something else", "4.png": None,
        "5.png": None, "5.txt": "  ", "a cat (2).png": None, "a cat (2).txt": "a cat",
    })  # fmt: skip
    plan = captions.to_names(tmp_path)
    history.apply(tmp_path, plan)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == sorted([
        "a dog running.png", "a dog running.txt", "a dog running (2).jpg", "a dog running (2).txt",
        "a dog running (2).npz", "a cat.webp", "a cat.txt", "something else.png", "something else.txt",
        "4.png", "5.png", "5.txt", "a cat (2).png", "a cat (2).txt",
    ])  # fmt: skip
    assert (tmp_path / "a cat.webp").read_text() == "image 3.webp"
    assert (tmp_path / "something else.png").read_text() == "image a cat.png"
    assert {why for _, why in plan.kept} == {"the caption is empty", "there is no caption to name its image after"}
    assert captions.to_names(tmp_path).steps == []


def test_names_and_captions_round_trip(tmp_path: Path) -> None:
    said = ["a dog", "a dog", "ünïcode 字", "long " * 80]
    folder_of(tmp_path, {f"{n}.png": None for n in range(4)})
    folder_of(tmp_path, {f"{n}.txt": text for n, text in enumerate(said)})
    history.apply(tmp_path, captions.to_names(tmp_path))
    for path in tmp_path.glob("*.txt"):
        path.unlink()
    history.apply(tmp_path, captions.from_names(tmp_path))
    again = sorted(text.strip() for text in text_of(tmp_path).values())
    assert again[:2] == ["a dog", "a dog"] and "ünïcode 字" in again and again[2].startswith("long long")


def test_names_that_swap(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a.png": "first", "a.txt": "b", "b.png": "second", "b.txt": "a"})
    before = everything(tmp_path)
    history.apply(tmp_path, captions.to_names(tmp_path))
    assert (tmp_path / "b.png").read_text() == "first" and (tmp_path / "a.png").read_text() == "second"
    history.undo(tmp_path)
    assert everything(tmp_path) == before


def test_a_stranger_in_the_way_of_a_name(tmp_path: Path) -> None:
    folder_of(tmp_path, {"1.png": None, "1.txt": "a dog", "a dog.PSD": "theirs"})
    history.apply(tmp_path, captions.to_names(tmp_path))
    assert (tmp_path / "a dog (2).png").exists() and (tmp_path / "a dog.PSD").read_text() == "theirs"


def test_a_name_taken_at_the_last_moment(tmp_path: Path) -> None:
    folder_of(tmp_path, {"1.png": None, "1.txt": "a dog"})
    plan = captions.to_names(tmp_path)
    folder_of(tmp_path, {"a dog.png": "theirs"})
    before = everything(tmp_path)
    with pytest.raises(ConflictError, match="created by another program"):
        history.apply(tmp_path, plan)
    assert everything(tmp_path) == before


def test_names_and_texts_that_are_not_utf8(tmp_path: Path) -> None:
    if systems.WINDOWS:
        pytest.skip("no name on Windows holds such bytes or control characters")
    odd = os.fsdecode(b"caf\xe9.png")
    if "\udce9" not in odd:
        pytest.skip("the names of this system are UTF-8")
    (tmp_path / odd).write_bytes(b"")
    (tmp_path / "a\x1b[2Jdog\x9b.png").write_bytes(b"")
    plan = captions.from_names(tmp_path)
    assert [why for _, why in plan.kept] == ["the name of its image is not UTF-8: rename it"]
    assert [after for _, after in plan.written.values()] == ["a [2Jdog"]
    (tmp_path / "a\x1b[2Jdog\x9b.txt").write_text("a dog")
    for edit in (captions.prefixed(tmp_path, "x "), captions.replaced(tmp_path, "dog", "cat")):
        assert len(edit.written) == 1
    with pytest.raises(UsageError, match="not UTF-8"):
        captions.prefixed(tmp_path, "\udce9")
    with pytest.raises(UsageError, match="not UTF-8"):
        captions.replaced(tmp_path, "dog", "\udce9")


BAD_EXPRESSIONS = {
    "(": "not a regular expression",
    "a{9999}{9999}": "not a regular expression",
    "(?<=a+)b": "not a regular expression",
    "(" * 2000 + "a" + ")" * 2000: "not a regular expression",
    "(?:)": "more than 1048576 characters",
}


@pytest.mark.parametrize("pattern", BAD_EXPRESSIONS)
def test_an_expression_that_is_none_is_refused(tmp_path: Path, pattern: str) -> None:
    folder_of(tmp_path, {"a.png": None, "a.txt": "a" * 400})
    before = everything(tmp_path)
    with pytest.raises(UsageError, match=BAD_EXPRESSIONS[pattern]):
        captions.replaced(tmp_path, pattern, "x" * 5000, regex=True)
    assert everything(tmp_path) == before


def test_an_expression_without_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path, {"a.png": None, "a.txt": "short", "b.png": None, "b.txt": "a" * 60 + "!"})
    monkeypatch.setattr(substitute, "SECONDS", 5.0 if systems.WINDOWS else 1.0)  # the process's start counts
    with pytest.raises(UsageError, match=r"still running on b\.txt .* nothing was changed"):
        captions.replaced(tmp_path, "(a+)+$", "x", regex=True)


def test_an_expression_has_its_flags_and_groups(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a.png": None, "a.txt": "A big Dog\nsecond飛", "b.png": None, "b.txt": ""})
    plan = captions.replaced(tmp_path, r"(big) (dog)", r"\2 \1", regex=True, ignore_case=True)
    assert plan.written == {"a.txt": ("A big Dog\nsecond飛", "A Dog big\nsecond飛")}
    with pytest.raises(UsageError, match="invalid group reference"):
        captions.replaced(tmp_path, "(big)", r"\2", regex=True)


def test_a_text_that_would_outgrow_a_caption_is_refused(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a.png": None, "a.txt": "a" * 4000})
    with pytest.raises(UsageError, match="would have more than"):
        captions.replaced(tmp_path, "a", "x" * 5000)


def test_a_rename_takes_masks_and_all_caches_along(tmp_path: Path) -> None:
    """A cache that stays behind is trained for the next image of that name."""
    caches = ("_0064x0064_sdxl.npz", "_te_outputs.npz", "_1024x0768_flux.npz", "_flux_te.npz", ".npz")
    files: dict[str, str | bytes | None] = {}
    for name, other in (("a", "b"), ("b", "a")):
        files |= {f"5_x/{name}.png": None, f"5_x/{name}.txt": other, f"5_x/masks/{name}.png": name}
        files |= {f"5_x/{name}{cache}": f"{name}{cache}" for cache in caches}
    folder_of(tmp_path, files)
    history.apply(tmp_path, captions.to_names(tmp_path, recursive=True))
    for name, other in (("a", "b"), ("b", "a")):
        for cache in caches:
            assert (tmp_path / f"5_x/{name}{cache}").read_text() == f"{other}{cache}"
        assert (tmp_path / f"5_x/masks/{name}.png").read_text() == other
    history.undo(tmp_path)
    assert (tmp_path / "5_x/a_te_outputs.npz").read_text() == "a_te_outputs.npz"


def test_masks_get_no_captions(tmp_path: Path) -> None:
    folder_of(tmp_path, {"5_x/a dog.png": None, "5_x/masks/a dog.png": None})
    plan = captions.from_names(tmp_path, recursive=True)
    assert list(plan.written) == ["5_x/a dog.txt"]


def test_masks_in_a_sibling_folder(tmp_path: Path) -> None:
    """Those in the folder given move, also from next to the images' folder; others are named."""
    folder_of(
        tmp_path, {"set/img/1.png": None, "set/img/1.txt": "a dog", "set/masks/1.png": None, "my_masks/1.png": None}
    )
    plan = captions.to_names(tmp_path / "set", recursive=True)
    assert ("masks/1.png", "masks/a dog.png") in plan.renamed
    assert [(path, "my_masks/1.png" in note and "a dog" in note) for path, note in plan.notes] == [("img/1.txt", True)]
    plan = captions.to_names(tmp_path / "set" / "img")
    assert ("1.png", "a dog.png") in plan.renamed and "../masks/1.png" in plan.notes[0][1]


def test_a_mask_that_may_be_of_two_images_stays(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a/1.png": None, "a/1.txt": "a dog", "b/1.png": None, "b/1.txt": "a cat", "masks/1.png": None})
    assert not [old for old, _ in captions.to_names(tmp_path, recursive=True).renamed if old.startswith("masks")]
