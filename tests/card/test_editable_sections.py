from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kohya_ext.card import editable_sections


def lines(text: str, before: str = "") -> str:
    return "\n".join(editable_sections.read(before).place("notes", text)) + "\n"


def test_our_own_text_is_replaced() -> None:
    assert lines("new", lines("old")) == lines("new")


def test_an_edit_stays_over_any_number_of_rounds() -> None:
    edited = lines("ours").replace("\nours\n", "\nmine,\n\nin two lines\n")
    once = lines("newer", edited)
    assert "mine,\n\nin two lines" in once and "newer" not in once
    assert "mine,\n\nin two lines" in lines("newest", once)


def test_an_edit_that_empties_a_place_stays() -> None:
    emptied = lines("ours").replace("\nours\n", "\n\n")
    assert "ours" not in lines("ours", emptied)


def test_a_weak_text_gives_way_to_what_stood_there() -> None:
    again = "\n".join(editable_sections.read(lines("said once")).place("notes", "(ask)", weak=True)) + "\n"
    assert again == lines("said once")


def test_windows_line_ends_are_no_edit() -> None:
    assert lines("new\nline", lines("old\nline").replace("\n", "\r\n")) == lines("new\nline")


@given(st.text(alphabet="<!- kohya-ext begin notes 0123abcd>\n", max_size=80))
def test_text_cannot_pretend_to_be_a_mark(text: str) -> None:
    page = lines(editable_sections.without_marks(text))
    assert editable_sections.read(page).edits == {} and "<!-- kohya-ext" not in editable_sections.without_marks(text)
