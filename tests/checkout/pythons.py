"""Pythons and processes for the tests: real virtual environments with pretended packages, and a pretended /proc."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

KOHYA = {"torch": "2.1.2", "accelerate": "0.25.0"}
# sys._base_executable names the virtual environment's own Python before 3.11
_VERSION = f"python{sys.version_info[0]}.{sys.version_info[1]}"
BASE_PYTHON = Path(sys.base_prefix, "python.exe") if os.name == "nt" else Path(sys.base_prefix, "bin", _VERSION)
SITE = Path("Lib", "site-packages") if os.name == "nt" else Path("lib", _VERSION, "site-packages")
IN_A_VENV = Path("Scripts", "python.exe") if os.name == "nt" else Path("bin", "python")


def pretend(site: Path, packages: Mapping[str, str]) -> None:
    """Put empty packages with metadata into a site-packages folder."""
    for name, version in packages.items():
        info = site / f"{name}-{version}.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "RECORD").write_text("")
        (site / name).mkdir(exist_ok=True)
        (site / name / "__init__.py").write_text("raise ImportError('nobody may import this')\n")


def make_venv(folder: Path, packages: Mapping[str, str] = {}, *, by_uv: bool = False) -> Path:
    """A real virtual environment without pip; its interpreter."""
    subprocess.run([str(BASE_PYTHON), "-m", "venv", "--without-pip", str(folder)], check=True)
    if by_uv:
        with (folder / "pyvenv.cfg").open("a") as config:
            config.write("uv = 0.5.1\n")
    pretend(folder / SITE, packages)
    return folder / IN_A_VENV


def make_system_python(folder: Path) -> Path:
    """A system's Python on which nothing is installed, whatever this machine's own has; its interpreter."""
    folder.mkdir(parents=True, exist_ok=True)
    python = folder / "python3"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(str(BASE_PYTHON))} -S "$@"\n')
    python.chmod(0o755)
    return python


def copy_venv(template: Path, folder: Path) -> Path:
    """A copy; good enough, since the interpreter finds its environment by the path it was started by."""
    shutil.copytree(template, folder, symlinks=True)
    return folder / IN_A_VENV


def process(
    proc: Path,
    pid: int,
    command: list[str],
    cwd: Path,
    environ: Mapping[str, str] = {},
    exe: Path = BASE_PYTHON,
    *,
    parent: int = 1,
    root: Path | None = None,
) -> None:
    """A process in a pretended /proc. root: the folder that is `/` to it."""
    folder = proc / str(pid)
    folder.mkdir(parents=True)
    (folder / "cmdline").write_bytes(b"".join(os.fsencode(word) + b"\0" for word in command))
    (folder / "environ").write_bytes(b"".join(os.fsencode(f"{k}={v}") + b"\0" for k, v in environ.items()))
    (folder / "stat").write_text(f"{pid} (a process) S {parent} {pid} {pid} 0 -1\n")
    (folder / "cwd").symlink_to(cwd)
    (folder / "exe").symlink_to(exe)
    if root is not None:
        (folder / "root").symlink_to(root)
