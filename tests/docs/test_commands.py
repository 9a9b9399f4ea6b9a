"""Every command that a page shows is one that the program takes: it can be pasted."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from kohya_ext.cli import captions
from kohya_ext.cli.main import build_parser
from kohya_ext.core.about import NAME

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCED = re.compile(r"^ *```[^\n]*\n(.*?)^ *```", re.DOTALL | re.MULTILINE)


def shown(page: Path) -> list[str]:
    """The lines of a page's code blocks that begin with our program, continuations joined; those with `...` are cut."""
    blocks = FENCED.findall(page.read_text(encoding="utf-8"))
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith(f"{NAME} ") and "..." not in line]


COMMANDS = [(page.relative_to(ROOT).as_posix(), line) for page in PAGES for line in shown(page)]


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 20


def parses(line: str) -> bool:
    try:
        build_parser().parse_args(captions.with_verb(shlex.split(line, comments=True)[1:]))
    except ValueError:  # an apostrophe of the explanation
        return False
    except SystemExit as ended:
        return ended.code == 0
    return True


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_it_can_be_pasted(page: str, line: str) -> None:
    """Alone, or, in a list of commands, without the explanation that follows in a column of its own."""
    line = line.translate(str.maketrans("", "", "[]"))
    alone, listed = line, re.split(r"\s{2,}", line)[0]
    assert parses(alone) or parses(listed), f"{page}: {line}"
