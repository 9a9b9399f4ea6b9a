from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "install.ps1"
POWERSHELL = shutil.which("pwsh") or shutil.which("powershell")


def test_its_options_are_those_of_install_sh() -> None:
    usage = re.search(r"usage: \./install\.sh (.*)", SCRIPT.with_name("install.sh").read_text(encoding="utf-8"))
    assert usage is not None
    wanted = {re.sub("-", "", word).lower() for word in re.findall(r"--[a-z-]+", usage[1])} | {"checkout", "help"}
    text = SCRIPT.read_text(encoding="utf-8")
    assert "$PSBoundParameters['Verbose']" in text  # every script has this one, and may not declare it
    wanted -= {"verbose"}
    head = text[text.index("param(") : text.index("$ErrorActionPreference")]
    assert {name.lower() for name in re.findall(r"\] \$(\w+)", head)} == wanted


def test_windows_powershell_can_read_it() -> None:
    """It takes a file without a mark for the machine's old encoding."""
    assert SCRIPT.read_bytes().isascii()


def test_python_is_asked_alone_and_the_store_never() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    assert " -I -c " in text
    assert "WindowsApps" in text
    assert "-m kohya_ext" not in text  # would import what is in the current folder


def _has_powershell() -> bool:
    """wine brings a program of that name which does nothing and says that all went well."""
    asked = [POWERSHELL or "", "-NoProfile", "-Command", "exit 7"]
    return POWERSHELL is not None and subprocess.run(asked, capture_output=True).returncode == 7


@pytest.mark.skipif(not _has_powershell(), reason="needs PowerShell")
def test_it_hands_over(tmp_path: Path) -> None:
    (tmp_path / "kohya_ext").mkdir()
    (tmp_path / "kohya_ext" / "__init__.py").write_text("raise SystemExit('the current folder was imported')\n")
    assert POWERSHELL is not None
    command = [POWERSHELL, "-NoProfile", "-ExecutionPolicy", "Bypass", "-File", str(SCRIPT)]
    options = [str(tmp_path), "-DryRun", "-Python", sys.executable]
    done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "not a Kohya checkout" in done.stderr or "kohya" in done.stderr.lower()
