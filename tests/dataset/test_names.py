from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kohya_ext.dataset.names import LONGEST_NAME, caption_of, is_camera_name, name_of, series_of


@pytest.mark.parametrize(
    ("stem", "caption"),
    [
        ("femme ewpp in a red dress", "femme ewpp in a red dress"),
        ("femme ewpp (1)", "femme ewpp"),
        ("femme ewpp(12)", "femme ewpp"),
        ("a dog_2", "a dog_2"),
        ("room_101", "room_101"),
        ("a dog - Copy", "a dog"),
        ("a dog - Copy (2)", "a dog"),
        ("a dog copy 3", "a dog"),
        ("a dog - Kopie", "a dog"),
        ("a dog - Kopie (2)", "a dog"),
        ("ein Hund Kopie 2", "ein Hund"),
        ("一只狗 - 副本", "一只狗"),
        ("一只狗 - 副本 (3)", "一只狗"),
        ("犬 - コピー", "犬"),
        ("собака — копия", "собака"),
        (unicodedata.normalize("NFD", "um cão - Cópia"), "um cão"),
        ("a dog (copy)", "a dog"),
        ("a dog (another copy)", "a dog"),
        ("a dog (3rd copy)", "a dog"),
        ("a dog~1", "a dog"),
        ("a dog (1000)", "a dog"),
        ("a dog_2 (1)", "a dog_2"),
        ("a car of (1990)", "a car of (1990)"),
        ("1girl_2000", "1girl_2000"),
        ("img_2 of a dog", "img_2 of a dog"),
        ("(1)", "(1)"),
        ("_3", "_3"),
        ("two   spaces ", "two spaces"),
        ("a. dog, sitting", "a. dog, sitting"),
        (unicodedata.normalize("NFD", "café à Zürich"), "café à Zürich"),
    ],
)
def test_what_a_name_says(stem: str, caption: str) -> None:
    assert caption_of(stem) == caption


def test_suffixes_may_be_kept() -> None:
    series = series_of(["a dog_1", "a dog_2"])
    assert caption_of("a dog_2", series=series) == "a dog"
    assert caption_of("a dog_2 (1)", keep_suffix=True, series=series) == "a dog_2 (1)"


@pytest.mark.parametrize(
    ("siblings", "expected"),
    [
        (["a dog_2"], ["a dog_2"]),
        (["a dog", "a dog_2"], ["a dog", "a dog"]),
        (["a dog_002", "a dog_003", "a cat_4"], ["a dog", "a dog", "a cat_4"]),
        (["a dog_2 (1)", "a dog_3 - Copy"], ["a dog", "a dog"]),
        (["a dog_2", "a dog_2 (1)"], ["a dog_2", "a dog_2"]),  # a copy is no sibling
        (["room_101", "hall_7"], ["room_101", "hall_7"]),
        (["1girl_2000", "1girl_2001"], ["1girl_2000", "1girl_2001"]),  # years
        (["a dog_999", "a dog_1000"], ["a dog", "a dog"]),
        (["a car of (1989)", "a car of (1990)"], ["a car of (1989)", "a car of (1990)"]),
        (["a car (1)", "a car (1990)"], ["a car", "a car"]),
        (["_1", "_2"], ["_1", "_2"]),
    ],
)
def test_a_number_is_a_suffix_only_among_siblings(siblings: list[str], expected: list[str]) -> None:
    series = series_of(siblings)
    assert [caption_of(stem, series=series) for stem in siblings] == expected


@pytest.mark.parametrize(
    "stem",
    ["IMG_20230704_101112", "IMG_1234", "img_1234 (2)", "IMG-20230101-WA0007", "IMG_1234 - Kopie", "DSC_0001",
     "DSC01234", "DSCN0042", "DSCF1234", "PXL_20230704_101112345", "PXL_20230704_101112345.MP", "P1010001", "_MG_1234",
     "MVIMG_20200101_101112", "20230704_101112", "DJI_0001", "GOPR0001", "100_1234", "Screenshot_20230704-101112",
     "Screenshot 2023-07-04 at 10.11.12", "WhatsApp Image 2023-07-04 at 10.11.12", "photo_2023-07-04_10-11-12",
     "FB_IMG_1612345678901", "ComfyUI_00001_", "00012-1234567890", "0001", "IMG_E1234", "IMG_1234~2",
     "IMG_1234 2", "VID-20230102-WA0001", "received_1234567890",
     "Snapchat-1234567890", "download", "download (1)", "images", "image (3)", "unnamed", "untitled 2",
     "pasted image 0",
     "d41d8cd98f00b204e9800998ecf8427e", "123e4567-e89b-12d3-a456-426614174000"],
)  # fmt: skip
def test_names_from_cameras_and_programs(stem: str) -> None:
    assert is_camera_name(stem)


@pytest.mark.parametrize(
    "stem",
    ["a dog", "img_2 of a dog", "room_101", "1girl_2000", "image of a dog", "p", "dsc", "deface", "ewpp_12", "字",
     "screenshot of a game", "an untitled painting", "image search", "download bar", "photo of ewpp (12)", "facade",
     "a1b2"],
)  # fmt: skip
def test_names_that_somebody_gave(stem: str) -> None:
    assert not is_camera_name(stem)


@pytest.mark.parametrize(
    ("caption", "name"),
    [
        ('a "quoted" dog: big/small?', "a quoted dog big small"),
        ("ends with dots...", "ends with dots"),
        ("con", "_con"),
        ("con.txt", "_con.txt"),
        ("console", "console"),
        ("///", ""),
        ("   ", ""),
    ],
)
def test_the_name_for_a_caption(caption: str, name: str) -> None:
    assert name_of(caption) == name


@given(st.text(max_size=400))
def test_any_text_becomes_a_legal_name(text: str) -> None:
    text = text.encode(errors="ignore").decode()
    name = name_of(text, room=15)
    assert len(name.encode()) <= LONGEST_NAME - 15 + 1
    assert not set(name) & set('<>:"/\\|?*\0\n') and not name.endswith((" ", "."))
    assert name_of(name, room=15) == name


@given(st.text(max_size=80))
def test_captions_are_stable(text: str) -> None:
    text = text.encode(errors="ignore").decode()
    once = caption_of(text)
    assert caption_of(once) == once and unicodedata.is_normalized("NFC", once)


def test_a_long_caption_is_cut_at_a_word() -> None:
    name = name_of("word " * 100, room=10)
    assert name.endswith("word") and 200 < len(name) <= LONGEST_NAME - 10
    assert len(name_of("字" * 200).encode()) <= LONGEST_NAME
