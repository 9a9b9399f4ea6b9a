"""Each fault, put back into a copy of the package, makes a test fail. Slow: one pytest a fault."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ema.mutations import MUTATIONS, Mutation

REPOSITORY = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "*cache*", "build", "dist", "*.egg-info")
TESTS_FAILED = 1


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.cause)
def test_the_text_to_change_is_there_once(mutation: Mutation) -> None:
    assert (REPOSITORY / "kohya_ext" / mutation.file).read_text(encoding="utf-8").count(mutation.old) == 1


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(REPOSITORY, tmp_path_factory.mktemp("mutated") / "repository", ignore=LEFT_OUT)


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.cause)
def test_a_fault_is_found(mutation: Mutation, copy: Path) -> None:
    file = copy / "kohya_ext" / mutation.file
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *shlex.split(mutation.tests)]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=300)
    finally:
        file.write_text(text, encoding="utf-8")
    assert done.returncode == TESTS_FAILED, done.stdout[-2000:] + done.stderr[-1000:]
    assert " failed" in done.stdout or "FAILED" in done.stdout
