"""The verbs where files are others', edited, damaged or somebody else is at work: promises 3 and 5 of the design."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_ext.checkout.checkout import Checkout
from kohya_ext.core.errors import ConflictError
from kohya_ext.install import apply
from kohya_ext.install.manifest import NAME
from tests.checkout import trees
from tests.files.faults import held_elsewhere
from tests.systems import with_git

Make = Callable[..., Checkout]
SETS = ("hook", "inline")


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


@with_git
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


@with_git
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
        command = found.problems[0].partition("Run: ")[2].partition(" && ")[0]
        subprocess.run(command, shell=True, check=True)  # the fix that status names
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


def test_two_installers(make: Make) -> None:
    checkout = make("embedded")
    before = trees.whole(checkout.root)
    with held_elsewhere(checkout.root), pytest.raises(ConflictError, match="another kohya-ext"):
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
        with pytest.raises(ConflictError, match=r"outside of the checkout|not valid"):
            verb(checkout)
    assert trees.whole(checkout.root) == before
    assert victim.read_text() == "precious"


@with_git
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
    apply.install(checkout, patch_set=patch_set)
    assert apply.status(checkout).clean
    apply.uninstall(checkout)
    assert trees.whole(checkout.root) == before


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
