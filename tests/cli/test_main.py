from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_ext.cli import health, main
from kohya_ext.core.about import VERSION
from kohya_ext.core.errors import DONE, FOUND_PROBLEMS, WRONG_USAGE
from tests.cli.conftest import Ran

Run = Callable[..., Ran]
REPOSITORY = Path(__file__).resolve().parents[2]


def python(*words: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environ, cwd=cwd, check=False)


def test_help_and_version(run: Run) -> None:
    done = run("--help")
    assert done.code == DONE
    for command in ("install", "uninstall", "status", "doctor", "update", "presets", "exit codes"):
        assert command in done.text
    assert run("--version").text == f"kohya-ext {VERSION}\n"


@pytest.mark.parametrize("words", [[], ["nonsense"], ["install", "--nonsense"], ["install", "a", "b"]])
def test_wrong_usage(run: Run, words: list[str]) -> None:
    done = run(*words)
    assert done.code == WRONG_USAGE
    assert "usage:" in done.errors


def test_two_dashes_are_a_value_like_any_other() -> None:
    parse = main.build_parser().parse_args
    assert parse(["prompts", "x", "--negative=--"]).negative == "--"
    assert parse(["audit", "x", "--html=--"]).html == Path("--")
    for words in (["presets", "schema", "--tab=--"], ["prompts", "x", "--count=--"]):
        with pytest.raises(SystemExit):
            parse(words)


def test_as_a_module(tmp_path: Path) -> None:
    done = python("-m", "kohya_ext", "status", str(tmp_path))
    assert done.returncode == 3
    assert done.stderr.startswith("kohya-ext: ")


def test_the_unexpected_is_a_short_report(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the moon is full")

    monkeypatch.setattr(health, "find_checkout", broken)
    done = run("status", "/some/where")
    assert done.code == FOUND_PROBLEMS
    for word in ("Please report", "RuntimeError: the moon is full", f"kohya-ext {VERSION}", "Python 3.", "/some/where"):
        assert word in done.errors
    assert len(done.errors.splitlines()) < 8
    monkeypatch.setenv("KOHYA_EXT_TRACEBACK", "1")
    with pytest.raises(RuntimeError):
        run("status", "/some/where")


def test_an_interruption_is_no_crash(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(health, "find_checkout", interrupted)
    assert run("status").code == main.INTERRUPTED


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_reader_that_goes_away_is_no_crash(tmp_path: Path) -> None:
    code = "import sys; from kohya_ext.cli.main import main; sys.exit(main(['presets', 'list']))"
    command = f"{sys.executable} -c {code!r} | true"
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        ["bash", "-c", f"{command}; sleep 0.1"], capture_output=True, text=True, env=environ, check=False
    )
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_importing_it_loads_nothing_heavy() -> None:
    code = (
        "import sys, kohya_ext.cli.main as m; m.build_parser();"
        "print([n for n in ('torch', 'numpy', 'subprocess', 'ast', 'zipfile', 'accelerate') if n in sys.modules])"
    )
    # -S: what hooks in this machine's site-packages load is not ours
    assert python("-S", "-c", code).stdout == "[]\n"


def test_an_old_python_is_told(tmp_path: Path) -> None:
    """Read by the oldest grammar we can ask for: what an old Python runs before it is told to stop."""
    import ast

    for name in ("__init__.py", "core/__init__.py", "core/about.py", "__main__.py"):
        source = (REPOSITORY / "kohya_ext" / name).read_text(encoding="utf-8")
        tree = ast.parse(source, feature_version=(3, 6))
        assert not [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    found = next((p for p in ("python3.9", "python3.8", "python3.7", "python3.6") if _works(p)), None)
    if found is None:
        pytest.skip("no old Python here to try it with")
    done = subprocess.run([found, "-m", "kohya_ext"], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == WRONG_USAGE
    assert "needs Python 3.10" in done.stderr and "Traceback" not in done.stderr


def _works(name: str) -> bool:
    path = shutil.which(name)
    return path is not None and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0
