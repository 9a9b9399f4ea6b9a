"""The verbs on small checkouts of every era: promises 1 and 2 of the design."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_ext.errors import UnsupportedError, UsageError
from kohya_ext.install import apply
from kohya_ext.install.checkout import Checkout
from kohya_ext.install.manifest import NAME
from tests.install import trees

Make = Callable[..., Checkout]
Presets = Callable[[Checkout], dict[str, bytes]]
SETS = ("hook", "inline")


@pytest.mark.parametrize("patch_set", SETS)
def test_there_and_back(checkout: Checkout, patch_set: str, presets: Presets) -> None:
    before = trees.whole(checkout.root)
    installed = apply.install(checkout, patch_set=patch_set, presets=presets(checkout))
    assert installed.changed
    assert apply.status(checkout).problems == ()
    assert trees.git_view(checkout.root) != before[1]  # the flags
    for folder in (checkout.root, checkout.training_root):
        assert trees.git(folder, "status", "--porcelain") == ""
    for change in installed.plan.changes:
        if change.path.endswith(".py"):
            compile((checkout.root / change.path).read_bytes(), change.path, "exec")
    once = trees.whole(checkout.root)
    assert not apply.install(checkout, patch_set=patch_set, presets=presets(checkout)).changed
    assert trees.whole(checkout.root) == once
    assert apply.uninstall(checkout).changed
    assert trees.whole(checkout.root) == before
    assert not apply.uninstall(checkout).changed


@pytest.mark.parametrize("patch_set", SETS)
def test_dry_run_writes_nothing_and_its_diff_is_what_install_does(
    checkout: Checkout, patch_set: str, presets: Presets, tmp_path: Path
) -> None:
    before = trees.whole(checkout.root)
    planned = apply.install(checkout, patch_set=patch_set, presets=presets(checkout), dry_run=True)
    assert trees.whole(checkout.root) == before
    assert not planned.changed
    other = trees.copy(checkout.root, tmp_path / "other")
    (tmp_path / "diff").write_text(planned.plan.diff(), newline="")
    for link in other.rglob(".git"):  # so that the diff reaches into the submodule too
        link.rename(link.with_name("git-away"))
    subprocess.run(["git", "apply", "-p1", str(tmp_path / "diff")], cwd=other, check=True)
    apply.install(checkout, patch_set=patch_set, presets=presets(checkout))
    for change in planned.plan.changes:
        assert (other / change.path).read_bytes() == (checkout.root / change.path).read_bytes()
    assert apply.uninstall(checkout, dry_run=True).plan.diff()
    assert (checkout.root / NAME).exists()


def test_hooks_are_off_without_the_package_and_say_so(checkout: Checkout) -> None:
    apply.install(checkout)
    folder = checkout.training_root
    run = subprocess.run(
        [
            sys.executable,
            "-I",
            "-c",
            f"import sys; sys.path.insert(0, {str(folder)!r}); import library; print(dir(library))",
        ],
        capture_output=True,
        text=True,
    )
    first, second = run.stdout.splitlines()
    assert first.startswith(f"kohya_ext does not work in {sys.executable!a} (ModuleNotFoundError")
    assert run.stderr == ""
    assert "kohya_ext" not in second


def test_the_fix_that_the_lines_name_can_be_run(checkout: Checkout) -> None:
    """The package is gone, and `kohya-ext` with it."""
    before = {path: path.read_bytes() for path in checkout.root.rglob("*.py")}
    apply.install(checkout)
    code = f"import sys; sys.path.insert(0, {str(checkout.training_root)!r}); import library"
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    fix = run.stdout.rpartition("remove these lines: ")[2]
    subprocess.run(["sh", "-c", fix], check=True)
    changed = checkout.training_root / "library" / "__init__.py"
    assert changed.read_bytes() == before[changed]
    assert subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True).stdout == ""


FAULTS = {
    "a missing module": "import surely_absent",
    "a syntax error": "def (",
    "a NUL": "x = 1\0",
    "empty": "",
    "an OSError": "raise OSError(5, 'Input/output error')",
    "a failing import": "from os import surely_absent",
    "an exit": "raise SystemExit(3)",
    "no memory": "raise MemoryError",
    "a recursion": "f = lambda: f()\nf()",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("patch_set", SETS)
def test_the_lines_survive_anything(make: Make, tmp_path: Path, patch_set: str, fault: str) -> None:
    checkout = make("embedded")
    apply.install(checkout, patch_set=patch_set)
    fake = tmp_path / "site/kohya_ext"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("")
    (fake / "runtime.py").write_text(FAULTS[fault])
    module = "library" if patch_set == "hook" else "library.train_util"
    paths = f"import sys; sys.path[:0] = [{str(checkout.root)!r}, {str(tmp_path / 'site')!r}]; "

    def run(code: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-I", "-c", paths + code, *words], capture_output=True, text=True)

    whole = run(f"import {module}; print('whole', [name for name in dir({module}) if 'kohya_ext' in name])")
    assert (whole.returncode, whole.stderr) == (0, "")
    first, second = whole.stdout.splitlines()
    assert first.startswith("kohya_ext does not work in")
    assert second == "whole []"
    asking = run(f"import {module}; print('whole')", "--optimizer_type=AdaCoor")
    assert asking.returncode == 2
    assert "whole" not in asking.stdout
    other_rank = run(f"import os; os.environ['RANK'] = '1'; import {module}; print('whole')")
    assert other_rank.stdout == "whole\n"


@pytest.mark.parametrize("patch_set", SETS)
def test_the_lines_let_ctrl_c_through(make: Make, tmp_path: Path, patch_set: str) -> None:
    checkout = make("embedded")
    apply.install(checkout, patch_set=patch_set)
    (tmp_path / "site").mkdir()
    (tmp_path / "site/kohya_ext.py").write_text("raise KeyboardInterrupt")
    module = "library" if patch_set == "hook" else "library.train_util"
    code = f"import sys; sys.path[:0] = [{str(checkout.root)!r}, {str(tmp_path / 'site')!r}]; import {module}"
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert "KeyboardInterrupt" in run.stderr


@pytest.mark.parametrize("first", SETS)
def test_switching_the_patch_set(checkout: Checkout, first: str, presets: Presets) -> None:
    before = trees.whole(checkout.root)
    second = SETS[1 - SETS.index(first)]
    apply.install(checkout, patch_set=second, presets=presets(checkout))
    wanted = trees.snapshot(checkout.root)
    apply.uninstall(checkout)
    apply.install(checkout, patch_set=first, presets=presets(checkout))
    apply.install(checkout, patch_set=second, presets=presets(checkout))
    assert trees.snapshot(checkout.root) == wanted
    assert apply.status(checkout).clean
    apply.uninstall(checkout)
    assert trees.whole(checkout.root) == before


def test_unknown_patch_set(make: Make) -> None:
    with pytest.raises(UsageError, match="hook, inline"):
        apply.install(make("embedded"), patch_set="outline")


def test_missing_hook(make: Make) -> None:
    checkout = make("embedded")
    path = checkout.root / "library/train_util.py"
    path.write_text(path.read_text().replace("def get_optimizer", "def fetch_optimizer"))
    before = trees.whole(checkout.root)
    for patch_set in SETS:
        with pytest.raises(UnsupportedError, match="get_optimizer is not defined"):
            apply.install(checkout, patch_set=patch_set)
    assert trees.whole(checkout.root) == before
    apply.install(checkout, patch_set="presets", presets={"presets/lora/x.json": b"{}"})
    apply.uninstall(checkout)
    assert trees.whole(checkout.root) == before


def test_status_is_json(checkout: Checkout, presets: Presets) -> None:
    assert json.loads(json.dumps(apply.status(checkout).as_json()))["installed"] is False
    outcome = apply.install(checkout, presets=presets(checkout), package={"python": "/x"})
    assert json.loads(json.dumps(outcome.as_json()))["changed"] is True
    said = json.loads(json.dumps(apply.status(checkout).as_json()))
    assert said["clean"] is True
    assert said["patch_set"] == "hook"
    assert said["package"] == {"python": "/x"}
    record = apply.installed(checkout)
    assert record is not None
    assert record.package == {"python": "/x"}
