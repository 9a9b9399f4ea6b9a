"""The verbs next to git: without it, and when it moves on under the patch (promise 7 of the design)."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_ext.checkout.checkout import Checkout, describe
from kohya_ext.install import apply
from tests.checkout import trees
from tests.systems import with_git

Make = Callable[..., Checkout]
Presets = Callable[[Checkout], dict[str, bytes]]
SETS = ("hook", "inline")


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


@with_git
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
    """git refuses, or takes our lines away, or leaves them on an old file: status says so and install fixes it."""
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
