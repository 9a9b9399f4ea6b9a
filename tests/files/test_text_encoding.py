import pytest
from hypothesis import given
from hypothesis import strategies as st

from kohya_ext.files.text_encoding import BOM, TextForm, appended, same_text

LINES = st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20), max_size=8)
BLOCK = "# ours\nx = 1\n"


@given(lines=LINES, bom=st.booleans(), newline=st.sampled_from(["\n", "\r\n", "\r"]), final=st.booleans())
def test_uniform_files_come_back_byte_for_byte(lines: list[str], bom: bool, newline: str, final: bool) -> None:
    text = newline.join(lines) + (newline if final else "")
    data = (BOM if bom else b"") + text.encode()
    form = TextForm.of(data)
    assert form.encode(form.decode(data)) == data
    assert "\r" not in form.decode(data)


@given(data=st.binary(max_size=200))
def test_appending_never_touches_what_is_there(data: bytes) -> None:
    result = appended(data, BLOCK)
    assert result.startswith(data)
    newline = TextForm.of(data).newline
    assert result.endswith(BLOCK.replace("\n", newline).encode())


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", b"# ours\nx = 1\n"),
        (b"a\r\n", b"a\r\n# ours\r\nx = 1\r\n"),
        (b"a\r\nb", b"a\r\nb\r\n# ours\r\nx = 1\r\n"),
        (b"a", b"a\n# ours\nx = 1\n"),
        (BOM, BOM + b"# ours\nx = 1\n"),
        (b"a\r\nb\r\nc\n", b"a\r\nb\r\nc\n# ours\r\nx = 1\r\n"),
        (b"a\nb\nc\r\n", b"a\nb\nc\r\n# ours\nx = 1\n"),
    ],
)
def test_appended(data: bytes, expected: bytes) -> None:
    assert appended(data, BLOCK) == expected


def test_form() -> None:
    assert TextForm.of(b"") == TextForm(bom=False, newline="\n", final_newline=True, mixed=False)
    assert TextForm.of(BOM + b"a\r\nb\n\r\nc") == TextForm(bom=True, newline="\r\n", final_newline=False, mixed=True)


def test_same_text() -> None:
    assert same_text(BOM + b"a\r\nb", b"a\nb\n")
    assert same_text(b"", BOM)
    assert not same_text(b"a\nb", b"a\n\nb")
    assert not same_text(b"a ", b"a")
