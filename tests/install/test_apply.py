"""The verbs on small checkouts of every era: promises 1 and 2 of the design."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_ext.checkout.checkout import Checkout
from kohya_ext.core.errors import UnsupportedError, UsageError
from kohya_ext.core.shell import INSTALLER
from kohya_ext.files.transaction import STATE_FOLDER
from kohya_ext.install import apply
from kohya_ext.install.manifest import NAME
from kohya_ext.spec.measurements import FILE_NAME
from tests.checkout import trees
from tests.systems import HAS_GIT, WINDOWS, posix_modes, with_git

Make = Callable[..., Checkout]
Presets = Callable[[Checkout], dict[str, bytes]]
SETS = ("hook", "inline")


@pytest.mark.parametrize("patch_set", SETS)
def test_there_and_back(checkout: Checkout, patch_set: str, presets: Presets) -> None:
    before = trees.whole(checkout.root)
    installed = apply.install(checkout, patch_set=patch_set, presets=presets(checkout))
    assert installed.changed
    assert apply.status(checkout).problems == ()
    assert not HAS_GIT or trees.git_view(checkout.root) != before[1]  # the flags
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


@posix_modes
def test_a_preset_whose_mode_the_file_system_chose(checkout: Checkout, presets: Presets) -> None:
    """On vfat and NTFS it is not what was asked for: an installation to be repeated is none for that."""
    ours = presets(checkout)
    apply.install(checkout, presets=ours)
    for path in ours:
        (checkout.root / path).chmod(0o666)
    assert not apply.install(checkout, presets=ours).changed


@with_git
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
    assert first.startswith(f'kohya_ext does not work in {sys.executable} ("ModuleNotFoundError')
    assert run.stderr == ""
    assert "kohya_ext" not in second


def test_the_fix_that_the_lines_name_can_be_run(checkout: Checkout) -> None:
    """The package is gone, and `kohya-ext` with it."""
    before = {path: path.read_bytes() for path in checkout.root.rglob("*.py")}
    apply.install(checkout)
    code = f"import sys; sys.path.insert(0, {str(checkout.training_root)!r}); import library"
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    if WINDOWS:  # no command of its own can do it
        assert "Fix: delete these lines, from '# >>> kohya_ext' to '# <<< kohya_ext'" in run.stdout
        assert f", from {checkout.training_root}" in run.stdout
        return
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


TOML = {
    'optimizer_type = "AdaCoor"': True,
    '"optimizer_type" = "AdamW"\nenable_ema = true': True,
    "enable_ema = false": False,
    "# enable_ema = true": False,
    'optimizer_type = "AdamW"\noutput_name = "AdaCoor"': False,
}
COMMAND_LINES = [
    (["--optimizer_type", "kohya_ext.optim.AdaCoor"], True),
    (["--optimizer_type", "adacoor", "--output_name", "AdamW"], True),
    (["--optimizer_type", "AdamW", "--output_name", "AdaCoor"], False),
    (["--optimizer_type", "AdaCoor", "--optimizer_type=AdamW"], False),
    (["--ema_decay", "0.9"], False),  # a fork's own
    ([], False),
]


def import_without_the_package(
    checkout: Checkout, *words: str, code: str = "", module: str = "library"
) -> subprocess.CompletedProcess[str]:
    program = (
        f"{code}\nimport sys; sys.path.insert(0, {str(checkout.training_root)!r}); import {module}; print('whole')"
    )
    return subprocess.run([sys.executable, "-I", "-c", program, *words], capture_output=True, text=True)


@pytest.mark.parametrize(("words", "asks"), COMMAND_LINES)
def test_only_a_run_that_asks_for_us_is_stopped(make: Make, words: list[str], asks: bool) -> None:
    checkout = make("split")
    apply.install(checkout)
    run = import_without_the_package(checkout, *words)
    assert ("whole" not in run.stdout, run.returncode) == ((True, 2) if asks else (False, 0))
    assert "kohya_ext does not work" in run.stdout


@pytest.mark.parametrize("given", ["--config_file={}", "--config_file={}.toml"])
@pytest.mark.parametrize("text", TOML)
def test_a_toml_may_ask_for_us_too(make: Make, tmp_path: Path, text: str, given: str) -> None:
    """The GUI hands over one since v24, and upstream ignores what it does not know in it."""
    checkout = make("split")
    apply.install(checkout)
    (tmp_path / "run.toml").write_text(f"[optimizer]\n{text}\n", encoding="utf-8")
    run = import_without_the_package(checkout, given.format(tmp_path / "run"))
    assert ("whole" not in run.stdout, run.returncode) == ((True, 2) if TOML[text] else (False, 0))
    over = import_without_the_package(checkout, given.format(tmp_path / "run"), "--optimizer_type", "Lion")
    assert over.returncode == (2 if "enable_ema = true" in text and TOML[text] else 0)  # the command line wins


@pytest.mark.parametrize("patch_set", SETS)
def test_one_line_is_said_once(make: Make, patch_set: str) -> None:
    checkout = make("split")
    apply.install(checkout, patch_set=patch_set)
    modules = [f"library.{path.stem}" for path in (checkout.training_root / "library").glob("[!_]*.py")]
    run = import_without_the_package(checkout, module=", ".join(modules))
    assert run.stdout.splitlines()[1:] == ["whole"]


def test_a_worker_of_a_data_loader_is_neither_told_nor_stopped(make: Make) -> None:
    """On Windows it imports `library` anew, maybe after the package has been removed: its run has all it needs."""
    checkout = make("split")
    apply.install(checkout)
    child = "import multiprocessing; multiprocessing.parent_process = lambda: multiprocessing.current_process()"
    run = import_without_the_package(checkout, "--optimizer_type=AdaCoor", code=child)
    assert (run.stdout, run.returncode) == ("whole\n", 0)


@pytest.mark.parametrize("stream", ["None", "open('/dev/full', 'w')"])
def test_nobody_need_be_there_to_be_told(make: Make, stream: str) -> None:
    checkout = make("split")
    apply.install(checkout)
    code = f"import sys; sys.stdout, kept = {stream}, sys.stdout\nimport atexit, os; atexit.register(os._exit, 0)"
    run = import_without_the_package(checkout, code=code + "\nprint = lambda text: kept.write(text) and kept.flush()")
    assert (run.returncode, run.stderr) == (0, "")
    assert "whole" in run.stdout


def test_the_clones_installer_is_named(make: Make, tmp_path: Path) -> None:
    checkout = make("split")
    installer = tmp_path / "a clone" / INSTALLER
    installer.parent.mkdir()
    apply.install(checkout, package={"environments": [], "installer": str(installer)})
    assert INSTALLER not in import_without_the_package(checkout).stdout  # it is gone
    installer.touch()
    if WINDOWS:
        words = subprocess.list2cmdline(["-File", str(installer), str(checkout.root), "-Python", sys.executable])
        said = import_without_the_package(checkout).stdout
        assert f"Fix: powershell -ExecutionPolicy Bypass {words} , or delete these lines" in said
        return
    words = shlex.join(["bash", str(installer), str(checkout.root), "--python", sys.executable])
    assert f"Fix: {words} , or remove these lines: sed" in import_without_the_package(checkout).stdout


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


def test_what_runs_have_measured_goes_with_the_last_record(checkout: Checkout) -> None:
    before = trees.whole(checkout.root)
    apply.install(checkout)
    measured = checkout.root / STATE_FOLDER / FILE_NAME
    measured.write_text("{}\n")
    assert not apply.install(checkout).changed
    assert apply.status(checkout).problems == ()
    assert measured.exists()
    apply.uninstall(checkout)
    assert trees.whole(checkout.root) == before
