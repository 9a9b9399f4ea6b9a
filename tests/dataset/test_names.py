from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kohya_ext.dataset.names import LONGEST_NAME, caption_of, name_of


@pytest.mark.parametrize(
    ("stem", "caption"),
    [
        ("femme ewpp in a red dress", "femme ewpp in a red dress"),
        ("femme ewpp (1)", "femme ewpp"),
        ("femme ewpp(12)", "femme ewpp"),
        ("a dog_2", "a dog"),
        ("a dog_002", "a dog"),
        ("a dog - Copy", "a dog"),
        ("a dog - Copy (2)", "a dog"),
        ("a dog copy 3", "a dog"),
        ("a dog_2 (1)", "a dog"),
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
    assert caption_of("a dog_2", keep_suffix=True) == "a dog_2"


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
