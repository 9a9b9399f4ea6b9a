from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from kohya_ext.checkout.checkout import Checkout, describe
from kohya_ext.core.errors import CONFLICT, ConflictError
from kohya_ext.install import apply, update
from tests.checkout import trees

Make = Callable[..., Checkout]


def try_git(checkout: Checkout, *words: str) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        trees.git(checkout.root, *words)


@pytest.fixture
def torn(make: Make) -> Checkout:
    """Two branches that disagree about a file that we read; `theirs` is the other one."""
    checkout = make("embedded")
    path = checkout.library / "train_util.py"
    text = path.read_text()
    trees.git(checkout.root, "checkout", "-q", "-b", "theirs")
    path.write_text("theirs = 1\n" + text)
    trees.commit(checkout.root)
    trees.git(checkout.root, "checkout", "-q", "master")
    path.write_text("mine = 1\n" + text)
    trees.commit(checkout.root)
    return checkout


@pytest.mark.parametrize(
    ("words", "said", "command"),
    [
        (("merge", "-q", "theirs"), "a merge", "merge --abort"),
        (("rebase", "-q", "theirs"), "a rebase", "rebase --abort"),
        (("cherry-pick", "theirs"), "a cherry-pick", "cherry-pick --abort"),
    ],
)
def test_what_git_has_not_finished_is_called_that(
    torn: Checkout, words: tuple[str, ...], said: str, command: str
) -> None:
    try_git(torn, *words)
    checkout = describe(torn.root)
    before = trees.snapshot(checkout.root)
    for act in (apply.install, apply.uninstall):
        with pytest.raises(ConflictError, match=f"half merged: git has not finished {said}.*train_util") as error:
            act(checkout)
        assert error.value.exit_code == CONFLICT
    assert trees.snapshot(checkout.root) == before
    problem = "".join(apply.status(checkout).problems)
    assert said in problem and problem.endswith(command)
    subprocess.run(problem.partition("abort it: ")[2], shell=True, check=True)  # as printed
    assert not apply.status(describe(checkout.root)).problems
    apply.install(describe(checkout.root))


def test_a_stash_that_does_not_fit(torn: Checkout) -> None:
    """No MERGE_HEAD then, only names that are not merged."""
    path = torn.library / "train_util.py"
    path.write_text("stashed = 1\n" + path.read_text())
    trees.git(torn.root, "stash")
    path.write_text("other = 1\n" + path.read_text())
    trees.commit(torn.root)
    try_git(torn, "stash", "pop")
    with pytest.raises(ConflictError, match=r"not merged: library/train_util\.py"):
        apply.install(describe(torn.root))


def test_a_merge_without_conflicts_that_is_not_committed(make: Make) -> None:
    checkout = make("embedded")
    trees.git(checkout.root, "checkout", "-q", "-b", "theirs")
    trees.write(checkout.root, {"new.py": ""})
    trees.commit(checkout.root)
    trees.git(checkout.root, "checkout", "-q", "master")
    trees.write(checkout.root, {"other.py": ""})
    trees.commit(checkout.root)
    trees.git(checkout.root, "merge", "-q", "--no-commit", "theirs")
    with pytest.raises(ConflictError, match=r"has not finished a merge there\. Finish it"):
        apply.install(checkout)
    with pytest.raises(ConflictError, match=r"branch|has not finished a merge"):
        update.update(checkout, lambda *_: None)


def test_in_the_submodule(make: Make) -> None:
    checkout = make("submodule")
    scripts = checkout.training_root
    for branch in ("one", "two"):
        trees.git(scripts, "checkout", "-q", "--detach", "pin1")
        trees.git(scripts, "checkout", "-q", "-b", branch)
        (scripts / "library/train_util.py").write_text(f"{branch} = 1\n")
        trees.commit(scripts)
    with pytest.raises(subprocess.CalledProcessError):
        trees.git(scripts, "merge", "-q", "one")
    with pytest.raises(ConflictError, match="sd-scripts is half merged"):
        apply.install(describe(checkout.root))


@pytest.mark.parametrize("name", ["library/train_util.py", "library/__init__.py"])
def test_markers_that_were_committed(make: Make, name: str) -> None:
    checkout = make("embedded")
    separator = r"[/\\]"
    text = (checkout.root / name).read_text()
    (checkout.root / name).write_text(f"<<<<<<< HEAD\nmine = 1\n=======\ntheirs = 1\n>>>>>>> theirs\n{text}")
    with pytest.raises(ConflictError, match=f"{name.replace('/', separator)} contains merge conflict markers"):
        apply.install(checkout)
