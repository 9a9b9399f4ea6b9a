"""The verbs on small checkouts of every era: promises 1, 2, 3, 5 and 7 of the design."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_ext.errors import ConflictError, UnsupportedError, UsageError
from kohya_ext.files.lock import locked
from kohya_ext.install import apply
from kohya_ext.install.checkout import Checkout, describe
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
    assert first.startswith("kohya_ext is not installed in this Python")
    assert run.stderr == ""
    assert "kohya_ext" not in second


@pytest.mark.parametrize("patch_set", SETS)
def test_another_missing_module_is_not_swallowed(make: Make, tmp_path: Path, patch_set: str) -> None:
    checkout = make("embedded")
    apply.install(checkout, patch_set=patch_set)
    fake = tmp_path / "site/kohya_ext"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("")
    (fake / "runtime.py").write_text("import surely_absent")
    module = "library" if patch_set == "hook" else "library.train_util"
    code = f"import sys; sys.path[:0] = [{str(checkout.root)!r}, {str(tmp_path / 'site')!r}]; import {module}"
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert "surely_absent" in run.stderr
    (fake / "runtime.py").write_text(
        "def activate(name): print('activate', name)\ndef install(names): print('install', names['__name__'])"
    )
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert run.stdout == ("activate library\n" if patch_set == "hook" else "install library.train_util\n")


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


def test_without_git(checkout: Checkout, presets: Presets, tmp_path: Path) -> None:
    import shutil

    for path in sorted(checkout.root.rglob(".git")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = trees.snapshot(checkout.root)
    for patch_set in SETS:
        apply.install(checkout, patch_set=patch_set, presets=presets(checkout))
        assert apply.status(checkout).clean
        assert not apply.install(checkout, patch_set=patch_set, presets=presets(checkout)).changed
        apply.uninstall(checkout)
        assert trees.snapshot(checkout.root) == before


def test_git_not_installed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = make("embedded")
    before = trees.whole(checkout.root)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "/nonexistent")
        apply.install(checkout)
        assert apply.status(checkout).clean
        apply.uninstall(checkout)
    assert trees.whole(checkout.root) == before


# ---- promise 3: what is not ours


def test_foreign_target(make: Make) -> None:
    checkout = make("submodule")
    (checkout.root / "kohya_gui/__init__.py").write_text("x = 1\n")
    (checkout.root / "sd-scripts/library/__init__.py").write_text("y = 1\n")
    before = trees.whole(checkout.root)
    with pytest.raises(ConflictError) as caught:
        apply.install(checkout)
    assert caught.value.exit_code == 4
    assert "kohya_gui/__init__.py" in str(caught.value)
    assert "sd-scripts/library/__init__.py" in str(caught.value)
    assert trees.whole(checkout.root) == before


def test_fork_with_code_in_init_is_told_of_inline(make: Make) -> None:
    checkout = make("embedded")
    (checkout.root / "library/__init__.py").write_text("x = 1\n")
    trees.commit(checkout.root)
    with pytest.raises(ConflictError, match="--patch-set inline"):
        apply.install(checkout)
    before = trees.whole(checkout.root)
    apply.install(checkout, patch_set="inline")
    apply.uninstall(checkout)
    assert trees.whole(checkout.root) == before


@pytest.mark.parametrize("edit", ["append", "replace"])
@pytest.mark.parametrize("patch_set", SETS)
def test_patched_file_edited_by_the_user(make: Make, edit: str, patch_set: str) -> None:
    checkout = make("embedded")
    before = trees.whole(checkout.root)
    apply.install(checkout, patch_set=patch_set)
    path = checkout.root / ("library/__init__.py" if patch_set == "hook" else "library/train_util.py")
    name = path.relative_to(checkout.root).as_posix()
    text = path.read_text()
    path.write_text((text if edit == "append" else text.partition("# >>> kohya_ext")[0]) + "mine = 1\n")
    edited = trees.whole(checkout.root)
    for verb in (apply.uninstall, apply.install):
        with pytest.raises(ConflictError, match=name):
            verb(checkout)
        assert trees.whole(checkout.root) == edited
    if patch_set == "hook":
        found = apply.status(checkout)
        assert found.exit_code == 1
        assert any(name in problem and "edited" in problem for problem in found.problems)
        command = next(line for line in found.problems[0].split("(") if line.startswith("git -C")).split(")")[0]
        subprocess.run(command, shell=True, check=True)  # the cure that status names
        assert apply.status(checkout).problems
        apply.uninstall(checkout)
        assert trees.whole(checkout.root) == before


def test_presets_of_others_and_edited_ones_stay(make: Make) -> None:
    checkout = make("embedded")
    theirs, ours, edited = (f"presets/finetune/{name}.json" for name in ("theirs", "ours", "edited"))
    (checkout.root / theirs).write_text("{}")
    outcome = apply.install(checkout, presets=dict.fromkeys((theirs, ours, edited), b'{"a": 1}'))
    assert outcome.plan.kept == (theirs,)
    (checkout.root / edited).write_text('{"a": 2}')
    found = apply.status(checkout)
    assert found.clean
    assert any(edited in note for note in found.notes)
    again = apply.install(checkout, presets=dict.fromkeys((theirs, ours, edited), b'{"a": 3}'))
    assert set(again.plan.kept) == {theirs, edited}
    assert (checkout.root / ours).read_bytes() == b'{"a": 3}'
    gone = apply.uninstall(checkout)
    assert gone.plan.kept == (edited,)
    assert (checkout.root / edited).read_text() == '{"a": 2}'
    assert (checkout.root / theirs).read_text() == "{}"
    assert not (checkout.root / ours).exists()
    assert not (checkout.root / ".kohya_ext").exists()


def test_preset_that_is_no_longer_shipped_goes(make: Make) -> None:
    checkout = make("embedded")
    before = trees.whole(checkout.root)
    apply.install(checkout, presets={"presets/new/folder/a.json": b"{}", "presets/lora/b.json": b"{}"})
    apply.install(checkout, presets={"presets/lora/b.json": b"{}"})
    assert not (checkout.root / "presets/new").exists()
    apply.uninstall(checkout)
    assert trees.whole(checkout.root) == before


def test_removed_preset_is_reported_and_comes_back(make: Make) -> None:
    checkout = make("embedded")
    presets = {"presets/lora/b.json": b"{}"}
    apply.install(checkout, presets=presets)
    (checkout.root / "presets/lora/b.json").unlink()
    assert not apply.status(checkout).clean
    apply.install(checkout, presets=presets)
    assert apply.status(checkout).clean


def test_exclude_lines_of_the_user_survive(make: Make) -> None:
    checkout = make("embedded")
    exclude = checkout.root / ".git/info/exclude"
    exclude.parent.mkdir(exist_ok=True)
    exclude.write_bytes(b"# mine\r\n/mine")
    before = exclude.read_bytes()
    apply.install(checkout, presets={"presets/lora/b.json": b"{}"})
    assert exclude.read_bytes().startswith(before)
    apply.uninstall(checkout)
    assert exclude.read_bytes() == before
    apply.install(checkout)
    with exclude.open("ab") as file:
        file.write(b"/later\n")
    apply.uninstall(checkout)
    assert b"kohya_ext" not in exclude.read_bytes()
    assert exclude.read_bytes().split() == [b"#", b"mine", b"/mine", b"/later"]


def test_a_flag_of_the_user_stays(make: Make) -> None:
    checkout = make("embedded")
    trees.git(checkout.root, "update-index", "--skip-worktree", "library/__init__.py")
    before = trees.whole(checkout.root)
    apply.install(checkout)
    apply.uninstall(checkout)
    assert trees.whole(checkout.root) == before


# ---- promise 5: refusals


def test_two_installers(make: Make) -> None:
    checkout = make("embedded")
    before = trees.whole(checkout.root)
    with locked(checkout.root), pytest.raises(ConflictError, match="another kohya-ext"):
        apply.install(checkout, wait_seconds=0.1)
    assert trees.whole(checkout.root) == before


def test_two_installers_in_earnest(make: Make) -> None:
    checkout = make("embedded")
    before = trees.whole(checkout.root)
    children = []
    for patch_set in (*SETS, *SETS):
        child = os.fork()
        if child == 0:
            try:
                apply.install(checkout, patch_set=patch_set)
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    assert apply.status(checkout).clean
    apply.uninstall(checkout)
    assert trees.whole(checkout.root) == before


@pytest.mark.parametrize("where", ["path", "backup", "created_dirs", "skip_worktree"])
def test_manifest_that_leads_out(make: Make, where: str, tmp_path: Path) -> None:
    checkout = make("embedded")
    apply.install(checkout)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    document = json.loads((checkout.root / NAME).read_bytes())
    if where in ("path", "backup"):
        document["files"][0][where] = "../victim"
    else:
        document[where] = ["../victim"] if where == "created_dirs" else {"..": ["victim"]}
    (checkout.root / NAME).write_text(json.dumps(document))
    before = trees.whole(checkout.root)
    for verb in (apply.uninstall, apply.install, apply.status):
        with pytest.raises(ConflictError, match=r"leads out|cannot be"):
            verb(checkout)
    assert trees.whole(checkout.root) == before
    assert victim.read_text() == "precious"


def test_damaged_backup(make: Make) -> None:
    checkout = make("embedded")
    apply.install(checkout, patch_set="inline")
    backup = checkout.root / ".kohya_ext/backup/library/train_util.py"
    backup.write_text("rubbish")
    before = trees.whole(checkout.root)
    with pytest.raises(ConflictError, match=r"damaged.*checkout --ignore-skip-worktree-bits -- library/train_util\.py"):
        apply.uninstall(checkout)
    assert trees.whole(checkout.root) == before
    assert not apply.status(checkout).clean
    trees.git(checkout.root, "checkout", "--ignore-skip-worktree-bits", "--", "library/train_util.py")
    apply.uninstall(checkout)
    assert not (checkout.root / ".kohya_ext").exists()


@pytest.mark.parametrize("patch_set", SETS)
def test_lost_records_are_adopted(checkout: Checkout, patch_set: str) -> None:
    import shutil

    before = trees.whole(checkout.root)
    apply.install(checkout, patch_set=patch_set)
    shutil.rmtree(checkout.root / ".kohya_ext")
    assert any("no record" in problem for problem in apply.status(checkout).problems)
    with pytest.raises(ConflictError, match="kohya-ext install"):
        apply.uninstall(checkout)
    apply.install(checkout, patch_set=patch_set)
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


# ---- promise 7: what users do with git afterwards


def moved_on(root: Path) -> None:
    """A next release: the training code and the GUI change, the package files do not."""
    (root / "library/train_util.py").write_text("# new\n" + (root / "library/train_util.py").read_text())
    (root / ".release").write_text("v22.4.0")
    trees.commit(root, "v22.4.0")
    trees.git(root, "checkout", "-q", "v22.3.1")


@pytest.mark.parametrize("what", [("checkout", "-q", "v22.4.0"), ("reset", "-q", "--hard", "v22.4.0"), ("stash",)])
def test_git_moves_on_under_the_hook(make: Make, what: tuple[str, ...]) -> None:
    checkout = make("embedded")
    moved_on(checkout.root)
    apply.install(checkout, presets={"presets/lora/x.json": b"{}"})
    trees.git(checkout.root, *what)
    checkout = describe(checkout.root)
    found = apply.status(checkout)
    assert found.clean, found.problems
    assert bool(found.notes) == (what != ("stash",))
    apply.uninstall(checkout)
    assert trees.git_view(checkout.root)["checkout"] == ("", [])


@pytest.mark.parametrize("what", [("checkout", "-q", "v22.4.0"), ("reset", "-q", "--hard", "v22.4.0"), ("stash",)])
def test_git_moves_on_under_inline(make: Make, what: tuple[str, ...]) -> None:
    """git refuses, or takes our lines away, or leaves them on an old file: status says so and install cures it."""
    checkout = make("embedded")
    moved_on(checkout.root)
    apply.install(checkout, patch_set="inline")
    try:
        trees.git(checkout.root, *what)
    except subprocess.CalledProcessError as error:
        assert "would be overwritten" in error.stderr or "not uptodate" in error.stderr
    checkout = describe(checkout.root)
    found = apply.status(checkout)
    if not found.clean:
        assert all("kohya-ext install" in problem for problem in found.problems)
        apply.install(checkout, patch_set="inline")
    assert apply.status(checkout).clean
    apply.uninstall(checkout)
    assert trees.git_view(checkout.root)["checkout"] == ("", [])
    head = trees.git(checkout.root, "show", "HEAD:library/train_util.py")
    assert (checkout.root / "library/train_util.py").read_text() == head


@pytest.mark.parametrize("patch_set", SETS)
def test_submodule_update_by_force(make: Make, patch_set: str) -> None:
    checkout = make("submodule")
    apply.install(checkout, patch_set=patch_set)
    trees.git(checkout.root, "submodule", "update", "--force")
    trees.git(checkout.root / "sd-scripts", "reset", "-q", "--hard")
    found = apply.status(checkout)
    assert found.clean or all("kohya-ext install" in problem for problem in found.problems)
    if patch_set == "hook":
        assert found.clean
    apply.install(checkout, patch_set=patch_set)
    assert apply.status(checkout).clean
    assert trees.git(checkout.root, "status", "--porcelain") == ""
    apply.uninstall(checkout)
    assert trees.git(checkout.root, "status", "--porcelain") == ""


def test_submodule_moves_to_the_split_release(make: Make, tmp_path: Path) -> None:
    """kohya_ss v25 -> v26: the pointer of sd-scripts moves over our flagged file."""
    checkout = make("submodule")
    origin = Path(trees.git(checkout.root / "sd-scripts", "remote", "get-url", "origin").strip())
    inner = checkout.root / "sd-scripts"
    (inner / "library/train_util.py").unlink()
    trees.write(inner, trees.training_files("split"))
    trees.git(inner, "add", "--all")
    trees.git(inner, "commit", "-q", "-m", "pin2")
    assert origin.is_dir()
    (checkout.root / ".release").write_text("v26.0.0")
    trees.commit(checkout.root, "v26.0.0")
    trees.git(checkout.root, "checkout", "-q", "v25.2.1")
    trees.git(checkout.root, "submodule", "--quiet", "update")
    apply.install(describe(checkout.root))
    trees.git(checkout.root, "checkout", "-q", "v26.0.0")
    trees.git(checkout.root, "submodule", "--quiet", "update")
    moved = describe(checkout.root)
    assert (inner / "library/args.py").exists()
    assert apply.status(moved).clean
    assert apply.status(moved).notes
    apply.uninstall(moved)
    assert trees.git(checkout.root, "status", "--porcelain") == ""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_root_leaves_the_files_to_their_owner(make: Make) -> None:
    checkout = make("submodule")
    subprocess.run(["chown", "-R", "1234:2345", str(checkout.root)], check=True)
    before = trees.snapshot(checkout.root)
    apply.install(checkout, presets={"presets/new/x.json": b"{}"})
    assert apply.status(checkout).clean

    def strangers() -> list[str]:
        return [str(p) for p in checkout.root.rglob("*") if (p.lstat().st_uid, p.lstat().st_gid) != (1234, 2345)]

    assert strangers() == []
    apply.uninstall(checkout)
    assert strangers() == []
    subprocess.run(["chown", "-R", f"{os.geteuid()}:{os.getegid()}", str(checkout.root)], check=True)
    assert trees.snapshot(checkout.root) == before


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
