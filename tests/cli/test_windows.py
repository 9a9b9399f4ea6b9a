"""There and back on Windows, with its own Python, virtual environment and pip: as a user does it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.checkout import trees
from tests.checkout.pythons import BASE_PYTHON, KOHYA, SITE, make_venv, pretend

pytestmark = pytest.mark.skipif(os.name != "nt", reason="Windows as it is: its pip, its programs, its paths")

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout whose path has a blank and a letter beyond ASCII, with an environment that has its base's pip."""
    root = trees.split(tmp_path / "Kohya SS \N{LATIN SMALL LETTER U WITH DIAERESIS}")
    make_venv(root / "venv")
    settings = root / "venv" / "pyvenv.cfg"
    settings.write_text(settings.read_text().replace("site-packages = false", "site-packages = true"))
    pretend(root / "venv" / SITE, KOHYA)
    return root


def bytes_of(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder; what Python keeps for itself aside."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


def ours(python: Path, *words: object, code: int = 0) -> Any:
    """Run the command line of this clone, from another folder; the JSON document."""
    done = subprocess.run(
        [str(python), str(REPOSITORY / "kohya_ext"), *map(str, words), "--json"],
        capture_output=True,
        cwd=REPOSITORY.anchor,
        env={**os.environ, "PYTHONIOENCODING": "cp437"},  # as in an old console, redirected
    )
    assert done.returncode == code, done.stdout.decode("cp437") + done.stderr.decode("cp437")
    assert b"Traceback" not in done.stderr
    return json.loads(done.stdout)


def test_there_and_back(root: Path) -> None:
    before = bytes_of(root)
    python = root / "venv" / "Scripts" / "python.exe"
    document = ours(BASE_PYTHON, "install", root, "--yes")
    assert Path(document["environment"]["python"]) == python
    package = root / "venv" / SITE / "kohya_ext"
    program = python.with_name("kohya-ext.exe")
    assert (package / "runtime" / "__init__.py").is_file() and program.is_file()
    during = bytes_of(root)
    assert {name for name in during if "\\" in name} == set()
    assert {name for name in before if during[name] != before[name]} == {
        "sd-scripts/library/__init__.py",
        "kohya_gui/__init__.py",
    }
    said = subprocess.run([str(program), "status", str(root)], capture_output=True, cwd=root.anchor, check=True)
    assert b"Traceback" not in said.stderr
    assert ours(BASE_PYTHON, "install", root, "--yes")["changed"] is False
    refused = subprocess.run([str(program), "uninstall", str(root), "--yes"], capture_output=True, cwd=root.anchor)
    assert refused.returncode == 4
    assert b"-m kohya_ext uninstall" in refused.stderr
    assert bytes_of(root) == during
    ours(BASE_PYTHON, "uninstall", root, "--yes")
    assert bytes_of(root) == before


def test_uninstall_by_the_environments_own_python(root: Path) -> None:
    before = bytes_of(root)
    ours(BASE_PYTHON, "install", root, "--yes")
    command = [str(root / "venv/Scripts/python.exe"), "-m", "kohya_ext", "uninstall", str(root), "--yes"]
    subprocess.run(command, check=True, capture_output=True, cwd=root.anchor)
    assert bytes_of(root) == before
