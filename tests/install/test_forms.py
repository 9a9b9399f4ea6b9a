"""Promise 6 and the file half of promise 5: every form a file can have comes back, or is refused untouched."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_ext.checkout.checkout import Checkout, describe
from kohya_ext.core.errors import ConflictError
from kohya_ext.install import apply
from tests.checkout import trees
from tests.systems import HAS_GIT, WINDOWS, needs_git

Make = Callable[..., Checkout]
BOM = b"\xef\xbb\xbf"
SETS = ("hook", "inline")

FORMS: dict[str, Callable[[bytes], bytes]] = {
    "LF": lambda data: data,
    "CRLF": lambda data: data.replace(b"\n", b"\r\n"),
    "BOM": lambda data: BOM + data,
    "BOM and CRLF": lambda data: BOM + data.replace(b"\n", b"\r\n"),
    "no final newline": lambda data: data.rstrip(b"\n"),
    "CRLF, no final newline": lambda data: data.rstrip(b"\n").replace(b"\n", b"\r\n"),
    "BOM, CRLF, no final newline": lambda data: BOM + data.rstrip(b"\n").replace(b"\n", b"\r\n"),
    "mixed": lambda data: data.replace(b"\n", b"\r\n", 2),
}
TARGETS = {
    "hook": ("sd-scripts/library/__init__.py", "kohya_gui/__init__.py"),
    "inline": ("sd-scripts/library/train_util.py", "kohya_gui/class_basic_training.py"),
}


@pytest.mark.parametrize("git", [True, False], ids=["git", "no git"])
@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("patch_set", SETS)
def test_form_of_the_text(make: Make, patch_set: str, form: str, git: bool) -> None:
    import shutil

    checkout = make("submodule")
    if git:
        needs_git()
    elif HAS_GIT:
        shutil.rmtree(checkout.root / ".git")
        (checkout.root / "sd-scripts/.git").unlink()
    originals = {}
    for name in TARGETS[patch_set]:
        path = checkout.root / name
        originals[name] = FORMS[form](path.read_bytes())
        path.write_bytes(originals[name])
        if not WINDOWS:
            path.chmod(0o755)
    before = trees.whole(checkout.root)
    apply.install(checkout, patch_set=patch_set)
    assert apply.status(checkout).clean
    for name in TARGETS[patch_set]:
        data = (checkout.root / name).read_bytes()
        compile(data, name, "exec")
        assert data.startswith(BOM) == ("BOM" in form)
        if "CRLF" in form and b"\r\n" in originals[name]:
            assert data.count(b"\n") == data.count(b"\r\n")
        if form == "LF":
            assert b"\r" not in data
    assert not apply.install(checkout, patch_set=patch_set).changed
    apply.uninstall(checkout)
    assert trees.whole(checkout.root) == before


@pytest.mark.parametrize("name", ["with space", "ünïcödé 日本", "quote'and\"dollar$", "brackets[1]*?", "back\\slash"])
def test_names_of_folders_and_files(make: Make, name: str) -> None:
    if WINDOWS and {*name} & {*'"*?\\'}:
        pytest.skip("no file on Windows has such a name")
    checkout = make("submodule", name)
    before = trees.whole(checkout.root)
    presets = {f"presets/{name}/{name} .json": b"{}", f"presets/lora/#{name}.json": b"{}"}
    apply.install(checkout, presets=presets)
    assert apply.status(checkout).clean
    assert not HAS_GIT or trees.git(checkout.root, "status", "--porcelain") == ""
    apply.uninstall(checkout)
    assert trees.whole(checkout.root) == before


@pytest.mark.parametrize("patch_set", SETS)
def test_read_only_file(make: Make, patch_set: str) -> None:
    checkout = make("submodule")
    name = TARGETS[patch_set][1]
    (checkout.root / name).chmod(0o444)
    before = trees.whole(checkout.root)
    with pytest.raises(ConflictError, match=f"{name} is read-only.*(chmod u\\+w|attrib -r)"):
        apply.install(checkout, patch_set=patch_set)
    assert trees.whole(checkout.root) == before


def test_file_made_read_only_since(make: Make) -> None:
    checkout = make("embedded")
    apply.install(checkout)
    (checkout.root / "library/__init__.py").chmod(0o444)
    before = trees.whole(checkout.root)
    with pytest.raises(ConflictError, match="read-only"):
        apply.uninstall(checkout)
    assert trees.whole(checkout.root) == before


def test_mode_changed_since_is_the_users(make: Make) -> None:
    checkout = make("embedded")
    apply.install(checkout)
    (checkout.root / "library/__init__.py").chmod(0o775)
    apply.uninstall(checkout)
    assert (checkout.root / "library/__init__.py").stat().st_mode & 0o777 == 0o775


@pytest.mark.parametrize("what", ["file", "folder"])
def test_link_within_the_checkout(make: Make, what: str) -> None:
    checkout = make("embedded")
    root = checkout.root
    if what == "file":
        (root / "library/__init__.py").rename(root / "library/real.py")
        (root / "library/__init__.py").symlink_to("real.py")
        real = "library/real.py"
    else:
        (root / "library").rename(root / "real_library")
        (root / "library").symlink_to("real_library")
        real = "real_library/__init__.py"
    trees.commit(root)
    before = trees.whole(root)
    apply.install(checkout)
    assert apply.status(checkout).clean
    assert b"kohya_ext" in (root / real).read_bytes()
    assert (root / "library/__init__.py").resolve() == root / real
    apply.uninstall(checkout)
    assert trees.whole(root) == before


@pytest.mark.parametrize("what", ["file", "folder", "presets"])
def test_link_that_leads_out(make: Make, tmp_path: Path, what: str) -> None:
    checkout = make("embedded")
    root = checkout.root
    name = {"file": "library/__init__.py", "folder": "library", "presets": "presets/lora"}[what]
    outside = tmp_path / "outside"
    (root / name).rename(outside)
    (root / name).symlink_to(outside)
    before = trees.whole(root)
    theirs = trees.snapshot(tmp_path / "outside") if outside.is_dir() else outside.read_bytes()
    with pytest.raises(ConflictError, match="outside of the checkout"):
        apply.install(describe(root), presets={"presets/lora/x.json": b"{}"})
    assert trees.whole(root) == before
    assert (trees.snapshot(outside) if outside.is_dir() else outside.read_bytes()) == theirs


def test_checkout_reached_through_a_link(make: Make, tmp_path: Path) -> None:
    checkout = make("embedded")
    before = trees.whole(checkout.root)
    (tmp_path / "link").symlink_to(checkout.root)
    apply.install(describe(tmp_path / "link"))
    assert apply.status(checkout).clean
    apply.uninstall(describe(tmp_path / "link"))
    assert trees.whole(checkout.root) == before


def test_preset_name_taken_by_a_folder(make: Make) -> None:
    checkout = make("embedded")
    (checkout.root / "presets/lora/x.json").mkdir()
    before = trees.whole(checkout.root)
    with pytest.raises(ConflictError, match=r"x\.json is a link or a folder"):
        apply.install(checkout, presets={"presets/lora/x.json": b"{}"})
    assert trees.whole(checkout.root) == before


def test_inside_a_foreign_repository(make: Make, tmp_path: Path) -> None:
    """A checkout copied without .git into somebody's own repository: their git must not notice us either."""
    outer = tmp_path / "outer [x]"
    (outer / "mine").mkdir(parents=True)
    (outer / "note").write_text("x")
    trees.write(outer / "mine/sd", trees.training_files("classic"))
    trees.commit(outer)
    before = trees.whole(outer)
    checkout = describe(outer / "mine/sd")
    apply.install(checkout)
    assert trees.git(outer, "status", "--porcelain") == ""
    assert apply.status(checkout).clean
    apply.uninstall(checkout)
    assert trees.whole(outer) == before


def test_further_work_tree(make: Make, tmp_path: Path) -> None:
    """`git worktree add`: .git is a file there, and the exclude file lies with the main one."""
    main = make("embedded")
    trees.git(main.root, "worktree", "add", "-q", str(tmp_path / "second"))
    before = trees.snapshot(main.root), trees.whole(tmp_path / "second")
    second = describe(tmp_path / "second")
    apply.install(second, presets={"presets/lora/x.json": b"{}"})
    assert trees.git(second.root, "status", "--porcelain") == ""
    apply.uninstall(second)
    assert (trees.snapshot(main.root), trees.whole(second.root)) == before


# ---- an ordinary user


def as_nobody(action: Callable[[], object]) -> str:
    """Run `action` as user 65534; what it raised, or "done"."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        said = "done"
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            os.environ["HOME"] = "/nonexistent"
            action()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        finally:
            os.write(writing, said.encode())
            os._exit(0)
    os.close(writing)
    heard = b""
    while piece := os.read(reading, 65536):
        heard += piece
    os.close(reading)
    os.waitpid(child, 0)
    return heard.decode()


root_only = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root to become others")


@root_only
@pytest.mark.parametrize("where", ["", "library", "presets/lora"])
def test_no_permission(make: Make, public: Path, where: str) -> None:
    checkout = describe(trees.copy(make("embedded").root, public / "checkout"))
    for path in [checkout.root, *checkout.root.rglob("*")]:
        os.chown(path, 65534, 65534)
    denied = checkout.root / where
    os.chown(denied, 0, 0)
    before = trees.whole(checkout.root)
    said = as_nobody(lambda: apply.install(checkout, presets={"presets/lora/x.json": b"{}"}))
    assert said.startswith("ConflictError")
    assert re.search("run as (that user|the user that owns it)", said.lower())
    assert trees.whole(checkout.root) == before


@root_only
@pytest.mark.parametrize("name", ["library/train_util.py", "library/__init__.py", ".kohya_ext/manifest.json"])
def test_unreadable_file(make: Make, public: Path, name: str) -> None:
    checkout = describe(trees.copy(make("embedded").root, public / "checkout"))
    apply.install(checkout)
    for path in [checkout.root, *checkout.root.rglob("*")]:
        os.chown(path, 65534, 65534)
    (checkout.root / name).chmod(0)
    assert as_nobody(lambda: apply.install(checkout)).startswith("ConflictError")
    # `status` goes on past a module of Kohya's and reports it
    told = as_nobody(lambda: apply.status(checkout).problems or 1 / 0)
    assert told.startswith("done" if name == "library/train_util.py" else "ConflictError")


@root_only
def test_ordinary_user(make: Make, public: Path) -> None:
    checkout = describe(trees.copy(make("submodule").root, public / "checkout"))
    for path in [checkout.root, *checkout.root.rglob("*")]:
        os.chown(path, 65534, 65534, follow_symlinks=False)
    before = trees.snapshot(checkout.root)
    assert as_nobody(lambda: apply.install(checkout, presets={"presets/lora/x.json": b"{}"})) == "done"
    assert apply.status(checkout).clean
    assert as_nobody(lambda: apply.uninstall(checkout)) == "done"
    assert trees.snapshot(checkout.root) == before


@root_only
def test_group_writable_tree_of_another_user(make: Make, public: Path) -> None:
    """Files of root that our group may write, as on shared machines: works, as a git pull of ours would."""
    checkout = describe(trees.copy(make("embedded").root, public / "checkout"))
    for path in [checkout.root, *checkout.root.rglob("*")]:
        os.chown(path, 0, 65534)
        path.chmod(path.stat().st_mode | 0o020)
    before = trees.snapshot(checkout.root)
    assert as_nobody(lambda: apply.install(checkout)) == "done"
    assert as_nobody(lambda: apply.uninstall(checkout)) == "done"
    after = trees.snapshot(checkout.root)
    assert after == before
