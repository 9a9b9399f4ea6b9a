"""What the demo says to do next can be typed as it stands."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from kohya_ext.cli import demo
from kohya_ext.core import shell
from tests.systems import WINDOWS

BUNDLE = Path(__file__).resolve().parents[2]


def test_with_the_program_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: f"/usr/bin/{program}")
    assert demo.install_command("/a b") == shell.line("kohya-ext", "install", "/a b")
    assert demo.uninstall_command("/a") == "kohya-ext uninstall /a"


def test_from_the_source_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None)
    if WINDOWS:  # the Python that runs us: scripts may not be run everywhere
        assert demo.install_command("/a") == shell.line(sys.executable, BUNDLE / "kohya_ext", "install", "/a")
        assert demo.uninstall_command("/a") == shell.line(sys.executable, BUNDLE / "kohya_ext", "uninstall", "/a")
        return
    script = BUNDLE / "install.sh"
    assert demo.install_command("/a") == f"{script} /a"
    assert demo.uninstall_command("/a") == f"{script} --uninstall /a"
