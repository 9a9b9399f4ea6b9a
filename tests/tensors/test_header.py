"""Headers without torch; what is damaged is also met through tests/tensors/test_tensorfile.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kohya_ext.core.errors import UsageError
from kohya_ext.tensors.header import TensorEntry, encode, is_pickle, read_header
from tests.tensors.files import write


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write(path, {"a": (2, 3), "b": (), "c": (0, 4)}, {"key": "ä"})
    header = read_header(path)
    assert header.metadata == {"key": "ä"} and header.size == path.stat().st_size
    assert header.entries["a"] == TensorEntry("F16", (2, 3), 0, 12) and header.entries["b"] == TensorEntry(
        "F16", (), 12, 14
    )
    assert header.start % 8 == 0


def test_an_unknown_type(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(encode({"a": TensorEntry("F5", (2,), 0, 1)}, {}) + b"x")
    with pytest.raises(UsageError, match="a is of type F5"):
        read_header(path)


@pytest.mark.parametrize(
    ("name", "start", "pickle"),
    [("a.safetensors", b"PK\3\4", True), ("a.ckpt", b"\x80\2}q", True), ("a.safetensors", b"\x80\2\0\0", False)],
)
def test_pickles(tmp_path: Path, name: str, start: bytes, pickle: bool) -> None:
    (tmp_path / name).write_bytes(start + bytes(20))
    assert is_pickle(tmp_path / name) is pickle


@settings(max_examples=60)
@given(place=st.integers(0, 400), value=st.integers(0, 255), cut=st.integers(0, 400))
def test_damage_is_an_error_or_harmless(tmp_path: Path, place: int, value: int, cut: int) -> None:
    path = tmp_path / "m.safetensors"
    write(path, {"a": (2, 3), "b": (5,)}, {"key": "value"})
    data = bytearray(path.read_bytes())
    data[place % len(data)] = value
    path.write_bytes(data[: len(data) - cut % len(data)])
    try:
        header = read_header(path)
    except UsageError as error:
        assert str(path) in str(error)
    else:
        assert header.start + max(entry.end for entry in header.entries.values()) == header.size
