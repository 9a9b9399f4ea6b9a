"""The command line is tested on the same checkouts as the installer, in pretended environments."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kohya_ext.checkout.checkout import Checkout
from kohya_ext.cli import main as cli
from kohya_ext.install import installer, package
from tests.checkout import pretended
from tests.checkout.conftest import make, public, templates  # noqa: F401 - fixtures
from tests.checkout.pythons import KOHYA, SITE, copy_venv, make_venv, pretend

PRESET = "presets/finetune/user_presets/ours.json"


@dataclass(frozen=True)
class Ran:
    """What a command did. lines: standard output; errors: standard error."""

    code: int
    text: str
    errors: str

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.text)
        return found


def words_of(line: str) -> list[str]:
    """The words that a shell makes of `line`; on Windows cmd, so PROMPT must be set."""
    if os.name == "nt":
        return [quoted or plain for quoted, plain in re.findall(r'"([^"]*)"|(\S+)', line)]
    made = subprocess.run(
        ["sh", "-c", f'for word in {line}; do printf "%s\\0" "$word"; done'], capture_output=True, check=True
    )
    return [os.fsdecode(word) for word in made.stdout.split(b"\0")[:-1]]


class Terminal:
    """Standard input of a person who answers."""

    def __init__(self, answer: str) -> None:
        self.answer = answer

    def isatty(self) -> bool:
        return True

    def readline(self) -> str:
        return f"{self.answer}\n"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run a command line in this process."""

    def command(*words: object) -> Ran:
        capsys.readouterr()
        try:
            code = cli.main([str(word) for word in words])
        except SystemExit as stop:  # argparse
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Ran(code, out, err)

    return command


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One preset instead of all, and no real installer: what it would do is another test's business."""
    from kohya_ext import presets

    def collect(checkout: Checkout, **_: object) -> dict[str, bytes]:
        return {PRESET: b'{"optimizer": "AdaCoor"}\n'} if checkout.gui_root else {}

    monkeypatch.setattr(presets, "collect", collect)
    for module in (package, installer):
        monkeypatch.setattr(module, "package_files", lambda: pretended.SMALL)
    monkeypatch.setattr(installer, "run", pretended.run)
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX", "WORKSPACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(scope="session")
def kohya_venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    packages = {**KOHYA, "diffusers": "0.25.0", "safetensors": "0.4.2", "toml": "0.10.2", "gradio": "4.43.0"}
    folder = make_venv(tmp_path_factory.mktemp("pythons") / "kohya", packages).parent.parent
    pretend(folder / SITE, {"scipy": "1.11.4"})
    return folder


@pytest.fixture
def with_venv(kohya_venv: Path) -> Callable[[Checkout], Checkout]:
    """The checkout with a venv/ that has what Kohya needs."""

    def put(checkout: Checkout) -> Checkout:
        copy_venv(kohya_venv, checkout.root / "venv")
        exclude = checkout.root / ".git" / "info" / "exclude"
        if exclude.exists():
            exclude.write_text("/venv\n")
        return checkout

    return put
