"""Names and texts of others must not steer the terminal, and what it cannot show must not end a command."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_ext.core import terminal
from kohya_ext.core.console import Output
from kohya_ext.core.errors import DONE, FOUND_PROBLEMS
from tests.cli.conftest import Ran
from tests.systems import WINDOWS

Run = Callable[..., Ran]
REPOSITORY = Path(__file__).resolve().parents[2]
HOSTILE = "a\x1b]0;owned\x07\x1b[2J\u202egnp.\x9b31m\x7f\u2066\rb"


def written(*texts: str, encoding: str = "utf-8") -> str:
    data = io.BytesIO()
    stream = io.TextIOWrapper(data, encoding=encoding, newline="")
    safe = terminal._SafeStream(stream)
    for text in texts:
        safe.write(text)
    safe.flush()
    return data.getvalue().decode(encoding)


def test_what_steers_a_terminal_is_escaped() -> None:
    shown = written(HOSTILE)
    assert shown == "a\\x1b]0;owned\\x07\\x1b[2J\\u202egnp.\\x9b31m\\x7f\\u2066\\rb"
    assert terminal.printable("one\ntwo\tthree", one_line=True) == "one\\ntwo\\tthree"


def test_ordinary_text_of_any_language_passes() -> None:
    text = "tab\tnewline\nמטוס 飛行機 👩\u200d🚀 é\n"
    assert written(text) == text


def test_line_ends_of_windows_pass_however_they_are_written() -> None:
    assert written("-one\r\n", "+two\r", "\n", "three\r", "four") == "-one\r\n+two\r\nthree\\rfour"


def test_undecodable_names_show_their_bytes() -> None:
    if not WINDOWS:  # whose names are no bytes
        assert written(os.fsdecode(b"caf\xe9.png")) in ("caf\\xe9.png", "café.png")
    assert written("caf\udce9 \ud83d") == "caf\\xe9 \\ud83d"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437"])
def test_what_an_encoding_lacks_is_escaped(encoding: str) -> None:
    assert "\\u98db" in written("é 飛 → \udcff", encoding=encoding)


def test_further_lines_of_a_text_never_look_like_lines_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output("test", as_json=False)
    out.item("written", "name\nNo problems found.")
    out.warn("name\nNo problems found.")
    out.row("name\nNo problems found.")
    printed = "".join(capsys.readouterr())
    assert "No problems found." in printed
    assert "No problems found." not in printed.splitlines()


def test_errors_and_usage_errors_are_escaped(run: Run, tmp_path: Path) -> None:
    for words in (
        ["status", tmp_path / HOSTILE],
        ["status", "a", HOSTILE],
        ["audit", f"{tmp_path}/x\nkohya-ext: fine"],
    ):
        done = run(*words)
        assert done.code in (2, 3)
        assert not any(character in done.errors for character in "\x1b\x07\u202e\x9b\r")
        assert not any(line.strip() == "kohya-ext: fine" for line in done.errors.splitlines())


@pytest.mark.parametrize("words", [["status", "{}"], ["audit", "{}"], ["card", "{}"]])
def test_a_name_with_a_line_break_stays_in_its_line(run: Run, tmp_path: Path, words: list[str]) -> None:
    done = run(*(word.format(f"{tmp_path}/x\nthe next line") for word in words))
    assert done.code in (2, 3)
    assert "x\\nthe next line" in done.errors and "\n" not in done.errors.strip()


def test_a_name_that_is_shown_in_another_form_stays_in_its_line() -> None:
    assert (
        terminal.named_in_one_line(f"{Path('a/x')}\ny: gone", ["a//x\ny"]).replace("\\n", "!")
        == f"{Path('a/x')}!y: gone"
    )


@pytest.mark.skipif(WINDOWS, reason="no file on Windows has control characters in its name")
def test_file_names_in_reports_are_escaped(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a\x1b[2J\u202e\nPROBLEM none.png").write_bytes(b"")
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    for words in (("captions", "check", folder), ("captions", folder, "--dry-run"), ("audit", folder)):
        done = run(*words)
        assert "\\x1b[2J\\u202e" in done.text, words
        assert "\x1b" not in done.text and "\u202e" not in done.text
        assert "\nPROBLEM none" not in done.text


def command(*words: str, encoding: str = "utf-8", **streams: object) -> subprocess.CompletedProcess[bytes]:
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": encoding}
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.run([sys.executable, "-m", "kohya_ext", *words], env=environ, check=False, **given)  # type: ignore[call-overload]


@pytest.mark.parametrize("encoding", ["ascii:strict", "latin-1:strict", "cp1252:strict", "utf-8:strict"])
def test_output_that_cannot_be_encoded_never_aborts(tmp_path: Path, encoding: str) -> None:
    folder = tmp_path / "飛行機"
    folder.mkdir()
    for name in ("猫.png", "café.png" if WINDOWS else os.fsdecode(b"caf\xe9.png")):
        (folder / name).write_bytes(b"")
    done = command("captions", "check", str(folder), encoding=encoding)
    assert done.returncode == FOUND_PROBLEMS
    assert b"2 problems" in done.stdout and not done.stderr
    done = command("captions", "check", str(folder), "--json", encoding=encoding)
    assert done.returncode == FOUND_PROBLEMS and b"\\u732b.png" in done.stdout


@pytest.mark.skipif(WINDOWS or not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_behind_the_output_is_said() -> None:
    with Path("/dev/full").open("wb") as full:
        done = command("presets", "list", stdout=full)
        assert done.returncode == FOUND_PROBLEMS
        assert done.stderr.decode().startswith("kohya-ext: the output cannot be written: ")
        assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr
        assert command("status", "/nowhere/at/all", stderr=full).returncode == FOUND_PROBLEMS


def test_a_document_reaches_a_file_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(b"")
        (folder / f"{number}.txt").write_text(f"מטוס\u200f {number} sky", encoding="utf-8")
    done = command("prompts", str(folder))
    assert done.returncode == DONE and "\u200f".encode() in done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_closed_streams_are_no_crash() -> None:
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    line = f"{sys.executable} -m kohya_ext presets list"
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        done = subprocess.run(["bash", "-c", f"{line} {closed}"], env=environ, capture_output=True, check=False)
        assert done.returncode == DONE and b"Traceback" not in done.stderr
