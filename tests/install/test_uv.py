"""The real uv on a project that starts as kohya_ss does: `uv run` keeps what we put there, `uv sync` does not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_ext.checkout.checkout import Checkout
from tests.checkout import trees
from tests.checkout.pythons import BASE_PYTHON, KOHYA
from tests.isolation import REPOSITORY

Make = Callable[..., Checkout]
UV = shutil.which("uv")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(UV is None, reason="needs uv on PATH")]

PACKAGES = {
    **KOHYA,
    "diffusers": "0.25.0",
    "safetensors": "0.4.2",
    "toml": "0.10.2",
    "scipy": "1.11.4",
    "gradio": "4.43.0",
}


def wheel(folder: Path, name: str, version: str) -> None:
    """An empty package as a wheel."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)


class Project:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.environ = {**os.environ, "UV_OFFLINE": "1", "UV_PYTHON": str(BASE_PYTHON), "UV_PYTHON_DOWNLOADS": "never"}
        (root / "wheels").mkdir()
        for name, version in PACKAGES.items():
            wheel(root / "wheels", name, version)
        needs = ", ".join(f'"{name}=={version}"' for name, version in PACKAGES.items())
        trees.write(root, {"pyproject.toml": (
            f'[project]\nname = "kohya-ss"\nversion = "1"\nrequires-python = ">=3.10"\ndependencies = [{needs}]\n'
            '[tool.uv]\nno-index = true\nfind-links = ["wheels"]\npackage = false\n'
        )})  # fmt: skip
        (root / ".git/info/exclude").write_text("/.venv\n/wheels\n/pyproject.toml\n/uv.lock\n")

    def uv(self, *words: str) -> str:
        command = [str(UV), *words, "--project", str(self.root)]
        done = subprocess.run(command, cwd=self.root, env=self.environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def ours(self, *words: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "kohya_ext", *words, str(self.root)]
        environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(command, cwd=self.root, env=environ, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr


def test_uv_run_keeps_us_and_uv_sync_removes_us(make: Make) -> None:
    project = Project(make("submodule").root)
    project.uv("sync")
    before = trees.whole(project.root)
    code, said = project.ours("install", "--yes")
    assert code == 0, said
    assert f"{project.root}/.venv/bin/python" in said and ", uv, " in said
    for _ in range(2):
        code, said = project.ours("status")
        assert code == 0, said
        look = "import importlib.util; print(importlib.util.find_spec('kohya_ext') is not None)"
        assert subprocess.run(
            [str(UV), "run", "--project", str(project.root), "python", "-c", look],
            cwd=project.root, env=project.environ, capture_output=True, text=True, check=True,
        ).stdout.strip() == "True"  # fmt: skip
    project.uv("sync")
    code, said = project.ours("status")
    assert code == 1, said
    assert "PROBLEM" in said and "install" in said
    code, said = project.ours("install", "--yes")
    assert code == 0, said
    assert project.ours("status")[0] == 0
    assert project.ours("uninstall", "--yes")[0] == 0
    assert trees.whole(project.root) == before
