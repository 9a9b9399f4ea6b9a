"""What we take for a safetensors file is what the library takes for one, but for what we refuse on purpose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kohya_ext.core.errors import UsageError
from kohya_ext.tensors import header as headers
from kohya_ext.tensors.header import read_header

ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def file_of(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def ours(path: Path, data: bytes) -> str:
    """What is wrong with the file, "" for nothing."""
    path.write_bytes(data)
    try:
        read_header(path)
    except UsageError as error:
        assert str(path) in str(error)
        return str(error)
    return ""


def library(data: bytes) -> str:
    safetensors = pytest.importorskip("safetensors")
    try:
        safetensors.deserialize(data)
    except Exception as error:
        return str(error) or "refused"
    return ""


DAMAGED = {
    "overlap": ({"a": {**ENTRY, "data_offsets": [0, 4]}, "b": {**ENTRY, "data_offsets": [2, 6]}}, 6),
    "belong to no tensor": ({"a": ENTRY, "b": {**ENTRY, "data_offsets": [8, 12]}}, 12),
    "follow the last tensor": ({"a": ENTRY}, 5),
    "cut off": ({"a": ENTRY}, 3),
    "not a table of texts": ({"__metadata__": {"a": 1}, "a": ENTRY}, 4),
    "metadata is not a table": ({"__metadata__": [], "a": ENTRY}, 4),
    "contradict": ({"a": {**ENTRY, "shape": [2]}}, 4),
    "an impossible": ({"a": {**ENTRY, "shape": [True]}}, 4),
    "-1 is not a size": ({"a": {**ENTRY, "shape": [-1, -1]}}, 4),
    "-0 is not a size": (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-0,4]}}', 4),
    "NaN is not a size": (b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', 4),
    "is not a size": (b'{"a":{"dtype":"F32","shape":[1' + b"0" * 5000 + b'],"data_offsets":[0,4]}}', 4),
    "has an impossible shape": (b'{"a":{"dtype":"F32","shape":[1e400],"data_offsets":[0,4]}}', 4),
    "impossible shape or offset": ({"a": {**ENTRY, "shape": [2**63, 2, 0], "data_offsets": [0, 0]}}, 0),
    "a comes twice": (b'{"a":%s,"a":%s}' % ((json.dumps(ENTRY).encode(),) * 2), 4),
    "k comes twice": (b'{"__metadata__":{"k":"1","k":"2"},"a":%s}' % json.dumps(ENTRY).encode(), 4),
    "dtype comes twice": (b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', 4),
    "is not Unicode": ({"\ud800": ENTRY}, 4),
    "not JSON": (b'{"a":\xff}', 0),
    "header is not JSON": (json.dumps({"a": ENTRY}).encode("utf-16"), 4),
    "is incomplete": ({"a": ["F32", [1], [0, 4]]}, 4),
    "of a is incomplete": ({"a": {**ENTRY, "data_offsets": [0, 2, 4]}}, 4),
    "no tensors": ({"__metadata__": {}}, 0),
    "its header is not": (b"[" * 200_000, 0),
    "unknown": ({"a": {**ENTRY, "dtype": ["F32"]}}, 4),
}


@pytest.mark.parametrize("text", DAMAGED)
def test_damage_is_named(tmp_path: Path, text: str) -> None:
    header, size = DAMAGED[text]
    assert text in ours(tmp_path / "m.safetensors", file_of(header, bytes(size)))


def test_every_type_of_the_library_is_known(tmp_path: Path) -> None:
    for dtype, bits in headers.BITS.items():
        data = file_of({"a": {"dtype": dtype, "shape": [8], "data_offsets": [0, bits]}}, bytes(bits))
        assert ours(tmp_path / "m.safetensors", data) == ""
        assert "contradict" in ours(tmp_path / "m.safetensors", data[:-1].replace(b"[8]", b"[9]") + b"0")


def test_a_header_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.write((headers.HEADER_LIMIT + 1).to_bytes(8, "little") + b"{")
        file.truncate(headers.HEADER_LIMIT + 100)
    with pytest.raises(UsageError, match="more than the 32 MB"):
        read_header(path)
    monkeypatch.setattr(headers, "MOST_VALUES", 100)
    tags = json.dumps({f"tag {number}": number for number in range(1000)})
    assert ours(path, file_of({"__metadata__": {"ss_tag_frequency": tags}, "a": ENTRY}, bytes(4))) == ""
    assert "more entries than any model" in ours(path, file_of({str(n): [] for n in range(101)}))


_NUMBERS = st.one_of(
    st.integers(0, 9), st.sampled_from([-1, 2**32, 2**63, 2**64, 2**64 + 1, 10**30, 1.0, 1e300, True, None, "4"])
)
_ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*headers.BITS, "F32", "F16", "f32", "", 3]),
        "shape": st.one_of(st.lists(_NUMBERS, max_size=4), _NUMBERS),
        "data_offsets": st.one_of(st.tuples(_NUMBERS, _NUMBERS), st.lists(_NUMBERS, max_size=3)),
    }
)
_METADATA = st.one_of(st.none(), st.dictionaries(st.text(max_size=3), st.one_of(st.text(max_size=3), _NUMBERS)))


@st.composite
def _whole(draw: st.DrawFn) -> tuple[dict[str, Any], int]:
    """A header that is right, for files of a few bytes."""
    place, table = 0, {}
    for key in draw(st.lists(st.text(max_size=3).filter(lambda key: key != headers.METADATA), unique=True, min_size=1)):
        dtype, shape = (
            draw(st.sampled_from(["F32", "U8", "F16", "BOOL"])),
            draw(st.lists(st.integers(0, 3), max_size=3)),
        )
        size = headers.SIZES[dtype]
        for length in shape:
            size *= length
        table[key] = {"dtype": dtype, "shape": shape, "data_offsets": [place, place + size]}
        place += size
    return table, place


def _compare(path: Path, data: bytes, *, stricter: bool) -> None:
    mine, theirs = ours(path, data), library(data)
    if theirs:
        assert mine, theirs
    elif not stricter:
        assert not mine, mine


COMPARED = settings(max_examples=150)


@COMPARED
@given(made=_whole(), metadata=_METADATA, shift=st.integers(-1, 1))
def test_right_headers_are_read_as_the_library_reads_them(
    tmp_path: Path, made: tuple[dict[str, Any], int], metadata: object, shift: int
) -> None:
    table, size = made
    data = file_of({headers.METADATA: metadata, **table}, bytes(max(0, size + shift)))
    _compare(tmp_path / "m.safetensors", data, stricter=False)


@COMPARED
@given(table=st.dictionaries(st.text(max_size=2), _ENTRIES, min_size=1, max_size=3), size=st.integers(0, 24))
@example(table={"a": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}}, size=0)
def test_odd_headers_are_never_read_where_the_library_does_not(
    tmp_path: Path, table: dict[str, Any], size: int
) -> None:
    huge = any(isinstance(n, int) and n > headers.LONGEST for entry in table.values() for n in _listed(entry["shape"]))
    _compare(tmp_path / "m.safetensors", file_of(table, bytes(size)), stricter=huge)


def _listed(shape: object) -> list[Any]:
    return shape if isinstance(shape, list) else [shape]


@COMPARED
@given(
    made=_whole(), place=st.integers(0, 10_000), value=st.integers(0, 255), kind=st.sampled_from(["set", "cut", "add"])
)
def test_a_changed_byte_is_seen_as_the_library_sees_it(
    tmp_path: Path, made: tuple[dict[str, Any], int], place: int, value: int, kind: str
) -> None:
    table, size = made
    data = bytearray(file_of({headers.METADATA: {"k": "v"}, **table}, bytes(size)))
    place %= len(data)
    data[place : place + (kind != "add")] = b"" if kind == "cut" else bytes([value])
    twice = b'"' in bytes([value])  # a name may have become another's
    _compare(tmp_path / "m.safetensors", bytes(data), stricter=twice or "twice" in ours(tmp_path / "n", bytes(data)))
