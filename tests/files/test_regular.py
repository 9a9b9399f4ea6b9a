from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from kohya_ext.core.errors import UsageError
from kohya_ext.files.regular import TooLargeError, folder_fault, open_regular, read_regular, read_text, toml_loads

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs FIFOs and devices")


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfabc\r\n")
    (tmp_path / "link").symlink_to("a")
    assert read_regular(tmp_path / "link", 8) == b"\xef\xbb\xbfabc\r\n"
    assert read_text(tmp_path / "a") == "abc\r\n"
    with open_regular(tmp_path / "a") as file:
        assert file.read(3) == b"\xef\xbb\xbf"


@pytest.mark.parametrize("limit", [0, 7])
def test_no_more_than_the_limit_is_read(tmp_path: Path, limit: int) -> None:
    (tmp_path / "a").write_bytes(b"x" * 8)
    with pytest.raises(TooLargeError, match="larger than 0 kB"):
        read_regular(tmp_path / "a", limit)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(TooLargeError, match="larger than 1 MB"):
        read_regular(tmp_path / "sparse", 1 << 20)


def test_a_file_of_proc_that_says_it_is_empty_is_bounded() -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc here")
    with pytest.raises(TooLargeError):
        read_regular(Path("/proc/self/status"), 10)


def test_what_is_not_a_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    (tmp_path / "circle").symlink_to("circle")
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket")
    (tmp_path / "a").write_bytes(b"")
    expected = {
        "fifo": "is a pipe",
        "zero": "is a device",
        "folder": "is a folder",
        "circle": "circle",
        "socket": "is a socket",
        "none": "does not exist",
        "a/b": "Not a directory",
        "nul\0": "not a valid file name",
        "x" * 300: "too long",
    }
    for name, text in expected.items():
        with pytest.raises(UsageError, match=text):
            read_regular(tmp_path / name, 100)


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"ab\xff")
    with pytest.raises(UsageError, match=r"not UTF-8 text \(byte 2\)"):
        read_text(tmp_path / "a")


def test_what_stands_where_a_folder_is_needed(tmp_path: Path) -> None:
    assert folder_fault(tmp_path) is None
    assert folder_fault(tmp_path / "nothing") == "no such folder"
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))
    for path, what in (
        (tmp_path / "file", "file"),
        (tmp_path / "pipe", "pipe"),
        (tmp_path / "socket", "socket"),
        (Path(os.devnull), "device"),
    ):
        assert folder_fault(path) == f"is a {what}, a folder is needed here"
    assert folder_fault(tmp_path / "file" / "below") == "cannot be read: Not a directory"


@pytest.mark.parametrize("hidden", [(), ("tomllib",), ("tomllib", "tomli"), ("tomllib", "tomli", "toml")])
def test_any_toml_reader_will_do(hidden: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in hidden:
        monkeypatch.setitem(sys.modules, module, None)
    assert toml_loads("a = '''\nx\n'''") == {"a": "x\n"}


def test_no_toml_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tomllib", "tomli", "toml", "pip._vendor.tomli"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match="pip install toml"):
        toml_loads("a = 1")
