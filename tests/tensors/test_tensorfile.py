"""Files that are damaged, cut off, or something else: a clear word, and never a pickle on the quiet."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from kohya_ext.core.errors import UsageError
from kohya_ext.tensors.tensorfile import TensorFile, open_tensors

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).view(2, 3),
    "b": torch.tensor(2.5, dtype=torch.float16),
    "c": torch.arange(5, dtype=torch.bfloat16),
    "d": torch.zeros(0, 4),
    "e": torch.tensor([True, False]),
}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.safetensors"
    save_file(TENSORS, str(path), {"key": "value"})
    return path


def raw(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_reads_what_safetensors_wrote(good: Path) -> None:
    file = TensorFile(good)
    assert file.metadata == {"key": "value"}
    for key, tensor in TENSORS.items():
        assert file.shapes[key] == tuple(tensor.shape)
        assert file.load(key).dtype == tensor.dtype and torch.equal(file.load(key), tensor)


def test_tensors_that_are_not_aligned(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    value = torch.arange(3, dtype=torch.float32)
    header = {
        "x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "y": {"dtype": "F32", "shape": [3], "data_offsets": [1, 13]},
    }
    path.write_bytes(raw(header, b"\1" + value.numpy().tobytes()))
    assert torch.equal(TensorFile(path).load("y"), value)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD = {
    "empty": (b"", "no valid header"),
    "short": (b"abc", "no valid header"),
    "garbage": (bytes(range(200)), "no valid header"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    "web page": (b"<!DOCTYPE html><html>", "web page"),
    "cut in the header": (raw({"a": ENTRY})[:20], "within its header"),
    "not json": (raw(b"{not json"), "not JSON"),
    "a list": (raw([1, 2]), "not a table"),
    "no tensors": (raw({"__metadata__": {}}), "no tensors"),
    "metadata is a list": (raw({"__metadata__": [1], "a": ENTRY}, bytes(8)), "not a table"),
    "cut off": (raw({"a": ENTRY}, bytes(7)), "cut off: it holds 7 of 8 bytes"),
    "too long": (raw({"a": ENTRY}, bytes(9)), "1 bytes follow"),
    "shape": (raw({"a": {**ENTRY, "shape": [3]}}, bytes(8)), "contradict"),
    "negative": (raw({"a": {**ENTRY, "shape": [-2], "data_offsets": [8, 0]}}, bytes(8)), "is not a size"),
    "floats": (raw({"a": {**ENTRY, "shape": [2.0]}}, bytes(8)), "an impossible shape"),
    "unknown type": (raw({"a": {**ENTRY, "dtype": "F7"}}, bytes(8)), "of type F7"),
    "no offsets": (raw({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)), "incomplete"),
    "entry is a number": (raw({"a": 3}, bytes(8)), "incomplete"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named(tmp_path: Path, case: str) -> None:
    content, words = BAD[case]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=words) as raised:
        open_tensors(path)
    assert str(path) in str(raised.value)


@settings(max_examples=200)
@given(data=st.data())
def test_any_damage_is_an_error_or_harmless(good: Path, data: st.DataObject) -> None:
    """Cut or flip bytes anywhere: never another exception, never a read outside of the file."""
    content = bytearray(good.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path = good.with_name("damaged.safetensors")
    path.write_bytes(content)
    try:
        file = open_tensors(path)
    except UsageError:
        return
    for key in file.shapes:
        file.load(key)


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        open_tensors(tmp_path / "none.safetensors")
    with pytest.raises(UsageError, match="folder"):
        open_tensors(tmp_path)


class Evil:
    """Leaves a mark when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(MARK), "w"))


MARK = Path("pickle-was-run")


def test_a_pickle_is_only_read_on_demand_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": {"w": torch.ones(2)}, "epoch": 3}, path)
    with pytest.raises(UsageError, match="--allow-pickle"):
        open_tensors(path)
    assert torch.equal(open_tensors(path, allow_pickle=True).load("w"), torch.ones(2))
    torch.save({"state_dict": {"w": torch.ones(2)}, "evil": Evil()}, path)
    with pytest.raises(UsageError, match="is not loaded") as raised:
        open_tensors(path, allow_pickle=True)
    assert "weights_only" not in str(raised.value), "torch's advice to load it all the same"
    old = tmp_path / "old.ckpt"
    old.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UsageError, match="is not loaded"):
        open_tensors(old, allow_pickle=True)
    torch.save({"w": torch.ones(2)}, tmp_path / "posing.safetensors")
    with pytest.raises(UsageError, match="under the name of a safetensors"):
        open_tensors(tmp_path / "posing.safetensors", allow_pickle=True)
    assert not MARK.exists()


def test_a_pickle_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"w": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UsageError):
        open_tensors(path, allow_pickle=True)
