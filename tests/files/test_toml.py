"""TOML is read by whatever the Python at hand has."""

from __future__ import annotations

import sys

import pytest

from kohya_ext.core.errors import UsageError
from kohya_ext.files.toml import toml_loads


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
