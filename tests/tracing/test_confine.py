"""A confined process writes in its folder only, and reaches no network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, socket, sys
from pathlib import Path
from kohya_ext.tracing.confine import confine
inside, outside = Path(sys.argv[1]), Path(sys.argv[2])
confine(inside)
{}
"""


def said(statement: str, inside: Path, outside: Path) -> str:
    program = PROGRAM.format(statement)
    # a confined process cannot write down what was covered either, and would say so
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run([sys.executable, "-c", program, inside, outside], capture_output=True, text=True, env=environ)
    return done.stderr


@pytest.mark.parametrize(
    "statement",
    [
        "(outside / 'x').write_text('')",
        "open(outside / 'x', 'ab')",
        "os.open(outside / 'x', os.O_CREAT | os.O_WRONLY)",
        "os.mkdir(outside / 'x')",
        "os.rename(inside / 'a', outside / 'x')",
        "os.remove(outside / 'there')",
        "os.symlink(inside, outside / 'x')",
        "(inside / 'link' / 'x').write_text('')",
        "socket.create_connection(('127.0.0.1', 9), 1)",
        "socket.getaddrinfo('huggingface.co', 443)",
    ],
)
def test_refused(statement: str, tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside):
        folder.mkdir()
    (inside / "a").touch()
    (inside / "link").symlink_to(outside)
    (outside / "there").touch()
    assert "ConfinedError: a preflight " in said(statement, inside, outside)
    assert [path.name for path in outside.iterdir()] == ["there"]


def test_allowed(tmp_path: Path) -> None:
    outside = tmp_path / "out"
    outside.write_text("read")
    statement = (
        "(inside / 'x').write_text(outside.read_text()); os.rename(inside / 'x', inside / 'y'); open('/dev/null', 'w')"
    )
    assert said(statement, tmp_path, outside) == ""
    assert (tmp_path / "y").read_text() == "read"
