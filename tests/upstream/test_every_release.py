"""Install, look, uninstall, on every real release and with both patch sets: nothing less than all of them passes."""

from __future__ import annotations

import hashlib
import json
import os
import py_compile
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.upstream import trees

pytestmark = pytest.mark.upstream

BUNDLE = Path(__file__).resolve().parents[2]


def snapshot(root: Path) -> dict[str, tuple[str, int]]:
    """Every file and folder outside `.git`, plus what of `.git` an uninstall must give back."""
    seen = {}
    for folder, names, files in os.walk(root):
        if ".git" in names:
            names.remove(".git")
        for name in [*names, *files]:
            path = Path(folder, name)
            mode = path.lstat().st_mode
            if path.is_symlink():
                seen[str(path.relative_to(root))] = (str(path.readlink()), 0)
            elif path.is_file():
                seen[str(path.relative_to(root))] = (hashlib.sha256(path.read_bytes()).hexdigest(), stat.S_IMODE(mode))
            else:
                seen[str(path.relative_to(root))] = ("folder", stat.S_IMODE(mode))
    for kept in [*root.glob(".git/info/*"), *root.glob(".git/modules/*/info/*"), *root.glob(".git/config")]:
        seen[str(kept.relative_to(root))] = (hashlib.sha256(kept.read_bytes()).hexdigest(), 0)
    return seen


def kohya_ext(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(BUNDLE), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "kohya_ext", *arguments], capture_output=True, text=True, env=environment, timeout=120
    )


def porcelain(root: Path) -> str:
    return subprocess.run(
        ["git", "-C", str(root), "status", "--porcelain"], check=True, capture_output=True, text=True
    ).stdout


def cases() -> Iterator[tuple[str, str]]:
    for revision in trees.kohya_revisions():
        yield "kohya_ss", revision
    for revision in trees.sd_scripts_revisions():
        yield "sd-scripts", revision


@pytest.fixture
def report() -> Iterator[dict[str, object]]:
    """One line of the table, appended to the file that KOHYA_EXT_REPORT names."""
    row: dict[str, object] = {}
    yield row
    if target := os.environ.get("KOHYA_EXT_REPORT"):
        with Path(target).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


@pytest.mark.parametrize(("repository", "revision"), list(cases()))
def test_install_and_uninstall(repository: str, revision: str, tmp_path: Path, report: dict[str, object]) -> None:
    """Both patch sets: exit 0, hooks found, files compile, git clean, and every byte back."""
    export = trees.export_kohya if repository == "kohya_ss" else trees.export_sd_scripts
    root = export(revision, tmp_path / "tree")
    before = snapshot(root)
    git_before = porcelain(root)
    report.update(repository=repository, revision=revision)
    for patch_set in ("hook", "inline"):
        started = time.perf_counter()
        done = kohya_ext("install", str(root), "--patch-set", patch_set, "--no-package", "--yes", "--json")
        seconds = time.perf_counter() - started
        assert done.returncode == 0, done.stdout + done.stderr
        changed = [root / path for path, entry in snapshot(root).items() if before.get(path) != entry]
        compiled = [path for path in changed if path.suffix == ".py"]
        assert compiled, "install changed no module"
        for path in compiled:
            py_compile.compile(str(path), cfile=str(tmp_path / "compiled.pyc"), doraise=True)
        assert porcelain(root) == git_before
        status = kohya_ext("status", str(root), "--json")
        assert status.returncode == 0, status.stdout + status.stderr
        again = kohya_ext("install", str(root), "--patch-set", patch_set, "--no-package", "--yes", "--json")
        assert again.returncode == 0, again.stdout + again.stderr
        gone = kohya_ext("uninstall", str(root), "--json")
        assert gone.returncode == 0, gone.stdout + gone.stderr
        assert snapshot(root) == before
        assert porcelain(root) == git_before
        report[patch_set] = {
            "seconds": round(seconds, 2),
            "files": len(compiled),
            "hooks": json.loads(done.stdout).get("hooks"),
        }
