"""The words of the field in every text: what CONTRIBUTING's glossary says to avoid is looked for.

Read are the strings, docstrings and comments of the package, and the pages. Names of variables are not.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    *("*.md", "*.toml", "*.yaml", "*.yml", "Makefile", "install.sh", "install.ps1", "setup.py"),
    *("docs/**/*.md", "patches/*", "presets/**/*.json", ".github/**/*.*"),
)
COMPARED = "longer more less other fewer larger smaller wider better worse newer older higher lower slower faster"

# What gives a translated text away -> what to write instead.
AVOIDED = {
    r"\bcur(?:e|es|ed)\b": "fix",
    r"\bpictures?\b": "image",
    rf"(?<!\bthere )\b(?:is|are|was|were) no (?!(?:{COMPARED.replace(' ', '|')})\b)": "is not a",
    r"\bleft out\b": "skipped, omitted",
    r"\bpassed over\b": "skipped",
    r"\breckon\w*": "estimate",
    r"\bnumber forms?\b": "dtype",
    r"\busual places?\b": "auto-detected, known location",
    r"\bput (?:\w+ )?on again\b": "reinstall",
    r"\b(?:take|takes|taken|took|taking) (?:it |us |them |ours )?off\b": "uninstall, remove",
    r"\bwhat next\b": "next steps",
    r"\bshould not have happened\b": "internal error (a bug)",
    r"\bbeside\b": "next to",
    r"\bgone on with\b|\b(?:is|are) gone on\b": "resumed, continued",
    r"\bthrown away\b": "discarded",
    r"\banew\b": "again, regenerated, recreated",
    r"\bstands? in (?!the way|its way|for\b|(?:the )?place|between)": "is in",
    r"\blies? in (?!between)": "is in",
    r"\bhalf a (?:checkout|download)\b": "incomplete",
    r"\bat hand\b": "available",
    r"\b(?:is|are|was) not whole\b|\bwhole states?\b": "incomplete, complete",
    r"\b(?:die[ds]?|dying) of memory\b": "run out of memory",
    r"\bcome to an end\b": "finish",
}


class Allowed(NamedTuple):
    """A place where a word is right. text: of the line it stands in."""

    file: str
    text: str
    reason: str


ALLOWED = (
    Allowed("kohya_ext/dataset/names.py", "|pic|picture|", "what cameras and phones call their files"),
    Allowed("CONTRIBUTING.md", " | ", "the glossary's table of words to avoid"),
    Allowed("kohya_ext/spec/flags.py", "beside", "a value of --ema_save, which command lines have"),
    Allowed("docs/reference/flags.md", "beside", "a value of --ema_save, which command lines have"),
    Allowed("kohya_ext/files/atomic.py", "`beside`", "the name of an argument"),
    Allowed("kohya_ext/lora/factor_store.py", "`beside`", "the name of an argument"),
)


class Text(NamedTuple):
    """A piece of text and where it stands."""

    file: str
    line: int
    text: str


def of_python(file: str, source: str) -> Iterator[Text]:
    """Every string (the constant parts of f-strings too) and every comment."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield Text(file, node.lineno, node.value)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield Text(file, token.start[0], token.string)


def of_page(file: str, text: str) -> Iterator[Text]:
    """Paragraph by paragraph, so that a line end does not part two words; a table row by row."""
    for block in re.finditer(r"(?:[^\n]+\n?)+", text):
        rows = block[0].splitlines() if block[0].lstrip().startswith("|") else [block[0]]
        line = text.count("\n", 0, block.start()) + 1
        for number, row in enumerate(rows):
            yield Text(file, line + number, row)


def texts() -> Iterator[Text]:
    for path in sorted((ROOT / "kohya_ext").rglob("*.py")):
        yield from of_python(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    for pattern in PAGES:
        for path in sorted(ROOT.glob(pattern)):
            yield from of_page(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))


def found(text: Text) -> Iterator[tuple[str, str, Allowed | None]]:
    """(what was found, what to write instead, the exception that allows it)."""
    plain = " ".join(text.text.split())
    for pattern, better in AVOIDED.items():
        for match in re.finditer(pattern, plain, re.IGNORECASE):
            around = plain[max(0, match.start() - 60) : match.end() + 60]
            allowed = next((one for one in ALLOWED if one.file == text.file and one.text in around), None)
            yield around, better, allowed


def test_no_text_has_a_word_that_the_glossary_avoids() -> None:
    wrong = [
        f"{text.file}:{text.line}: ...{around}... -> {better}"
        for text in texts()
        for around, better, allowed in found(text)
        if allowed is None
    ]
    assert not wrong, "\n".join(wrong)


def test_every_exception_is_needed_and_has_a_reason() -> None:
    used = {allowed for text in texts() for _, _, allowed in found(text)}
    assert [one for one in ALLOWED if one not in used] == []
    assert all(len(one.reason.split()) > 2 for one in ALLOWED)


@pytest.mark.parametrize(
    "planted",
    [
        "the cure is to install it",
        "Two pictures of a dog",
        "that is no checkout",
        "they are no numbers",
        "keys that were left out",
        "a key that is passed over",
        "the memory is reckoned",
        "in its number form",
        "found in a usual place",
        "it is put on again",
        "to take it off",
        "what next: restart",
        "this should not have happened",
        "the EMA beside the raw weights",
    ],
)
def test_a_planted_word_is_found(planted: str) -> None:
    for source in (f"'''{planted}'''", f"def f(x):\n    raise ValueError(f'{{x}}: {planted}')", f"x = 1  # {planted}"):
        assert any(list(found(text)) for text in of_python("planted.py", source)), source
    assert any(list(found(text)) for text in of_page("planted.md", planted.replace(" ", "\n", 1)))


@pytest.mark.parametrize(
    "plain", ["it is no longer there", "there is no checkout", "besides, it is next to it", "secure"]
)
def test_plain_english_is_left_alone(plain: str) -> None:
    assert list(found(Text("plain.md", 1, plain))) == []
