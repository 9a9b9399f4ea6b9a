from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys

import pytest

from kohya_ext.core import shell
from kohya_ext.core.terminal import printable

WORDS = [
    "plain",
    r"C:\Kohya\kohya_ss",
    r"C:\Kohya SS\venv",
    "C:\\ends in one\\",
    "it's",
    "\N{RIGHT SINGLE QUOTATION MARK}",
    "$HOME",
    "a,b",
    "a&b",
    "100%",
    'say "x"',
    'say \\"x\\\\',
    "`",
    "(x)",
    "",
    "--ema_decay=0.9995",
    "-x.y",
    "b\N{LATIN SMALL LETTER A WITH DIAERESIS}r",
]


@pytest.mark.parametrize("word", WORDS)
def test_posix_is_shlex(word: str) -> None:
    assert shell.line("x", word, shell="posix") == shlex.join(["x", word])


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    "word",
    [
        "two\nlines",
        "\x1b[31mred's\\",
        "a\tb",
        "\u202etxt",
        "no text \udcff\udc80",
        "\x9b1",
        "\x017",
    ],
)
def test_a_word_that_steers_the_terminal_is_printed_on_one_line_and_runs(word: str) -> None:
    line = shell.line("printf", "%s", word, shell="posix")
    assert printable(line, one_line=True) == line
    said = subprocess.run(["bash", "-c", line], capture_output=True, check=True).stdout
    assert said == word.encode("utf-8", "surrogateescape")


@pytest.mark.parametrize(
    ("word", "powershell", "cmd"),
    [
        (r"C:\Kohya\kohya_ss", r"C:\Kohya\kohya_ss", r"C:\Kohya\kohya_ss"),
        (r"C:\Kohya SS\venv", r"'C:\Kohya SS\venv'", r'"C:\Kohya SS\venv"'),
        ("C:\\ends in one\\", "'C:\\ends in one\\'", '"C:\\ends in one\\\\"'),
        ("it's", "'it''s'", '"it\'s"'),
        ("$HOME", "'$HOME'", '"$HOME"'),
        ("a,b", "'a,b'", '"a,b"'),
        ("--ema_decay=0.9995", "'--ema_decay=0.9995'", '"--ema_decay=0.9995"'),
        ("", "''", '""'),
    ],
)
def test_windows_quotes(word: str, powershell: str, cmd: str) -> None:
    assert shell.quoted(word, "powershell") == powershell
    assert shell.quoted(word, "cmd") == cmd


def test_a_quoted_program_is_called() -> None:
    assert shell.line(r"C:\a b\python.exe", "-m", "x", shell="powershell") == r"& 'C:\a b\python.exe' -m x"
    assert shell.line(r"C:\a b\python.exe", "-m", "x", shell="cmd") == r'"C:\a b\python.exe" -m x'
    assert shell.line(r"C:\a\python.exe", "x y", shell="powershell") == r"C:\a\python.exe 'x y'"


def test_the_shell_that_started_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMPT", raising=False)
    assert shell.style() == ("powershell" if os.name == "nt" else "posix")
    monkeypatch.setenv("PROMPT", "$P$G")
    assert shell.style() == ("cmd" if os.name == "nt" else "posix")


def test_one_after_the_other() -> None:
    assert shell.in_turn("a", "b", shell="posix") == shell.in_turn("a", "b", shell="cmd") == "a && b"
    assert shell.in_turn("a", "b", shell="powershell") == "a; b"


@pytest.mark.skipif(os.name != "nt", reason="needs the cmd of Windows")
def test_cmd_hands_every_word_on_as_it_is() -> None:
    words = [word for word in WORDS if word.isascii() and not {"%", '"'} & {*word}]
    program = [sys.executable, "-c", "import sys; print(ascii(sys.argv[1:]))"]
    line = " ".join([shell.line(*program, shell="cmd"), *(shell.quoted(word, "cmd") for word in words)])
    said = subprocess.run(f'cmd /s /c "{line}"', capture_output=True, text=True, check=True).stdout
    assert said.strip() == ascii(words)
