"""Promise 9: a tree with the old replaced files is refused, with the command that restores it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from kohya_ext.checkout import legacy
from kohya_ext.checkout.checkout import Checkout
from kohya_ext.core.errors import ConflictError
from kohya_ext.install import apply
from tests.checkout import trees
from tests.systems import with_git

Make = Callable[..., Checkout]

MARKS = {
    "flag": "def f(parser):\n    parser.add_argument('--enable_ema', action='store_true')\n",
    "optimizer": "class AdaCoor:\n    pass\n",
    "average": "class EMAModel:\n    pass\n",
    "use": "def f(args):\n    return args.enable_ema\n",
}


@with_git
@pytest.mark.parametrize("mark", list(MARKS))
@pytest.mark.parametrize(
    ("era", "file"), [("embedded", "library/train_util.py"), ("submodule", "sd-scripts/sdxl_train.py")]
)
@pytest.mark.parametrize("patch_set", ["hook", "inline"])
def test_refused_and_fixed(make: Make, mark: str, era: str, file: str, patch_set: str) -> None:
    checkout = make(era, "with space")
    path = checkout.root / file
    path.write_text(path.read_text() + MARKS[mark])
    before = trees.whole(checkout.root)
    with pytest.raises(ConflictError) as caught:
        apply.install(checkout, patch_set=patch_set)
    assert trees.whole(checkout.root) == before
    assert file in str(caught.value)
    assert not apply.status(checkout).clean
    command = str(caught.value).split("Restore upstream's files: ")[1].splitlines()[0]
    assert command.startswith("git -C ")
    subprocess.run(command, shell=True, check=True)
    apply.install(checkout, patch_set=patch_set)
    assert apply.status(checkout).clean


@with_git
def test_many_files_one_command(make: Make) -> None:
    checkout = make("embedded")
    for name in ("library/train_util.py", "sdxl_train.py"):
        (checkout.root / name).write_text((checkout.root / name).read_text() + MARKS["use"])
    (checkout.root / "library/adacoor.py").write_text(MARKS["optimizer"])
    with pytest.raises(ConflictError) as caught:
        legacy.refuse(checkout)
    assert "checkout -- library/train_util.py sdxl_train.py" in str(caught.value)
    assert "git does not know" in str(caught.value)
    assert "library/adacoor.py" in str(caught.value)


@with_git
def test_over_our_own_patch(make: Make) -> None:
    """The old files copied over a tree that `inline` has patched, so that git overlooks them."""
    checkout = make("embedded")
    apply.install(checkout, patch_set="inline")
    path = checkout.root / "library/train_util.py"
    path.write_text(trees.training_files("classic")["library/train_util.py"] + MARKS["flag"])
    problem = next(problem for problem in apply.status(checkout).problems if "older EMA" in problem)
    command = problem.split("Restore upstream's files: ")[1].splitlines()[0]
    subprocess.run(command, shell=True, check=True)
    apply.install(checkout, patch_set="inline")
    assert apply.status(checkout).clean


@with_git
def test_committed_or_without_git(make: Make) -> None:
    checkout = make("embedded")
    path = checkout.root / "library/train_util.py"
    path.write_text(path.read_text() + MARKS["flag"])
    trees.commit(checkout.root)
    with pytest.raises(ConflictError, match=r"committed in this branch.*checkout TAG -- library/train_util\.py"):
        legacy.refuse(checkout)
    import shutil

    shutil.rmtree(checkout.root / ".git")
    with pytest.raises(ConflictError, match="git does not know these"):
        legacy.refuse(checkout)


def test_words_in_comments_and_names_do_not_count(make: Make) -> None:
    checkout = make("embedded")
    (checkout.root / "library/notes.py").write_text(
        "# --enable_ema, class AdaCoor, class EMAModel, enable_ema\n"
        "from somewhere import EMAModel\nclass AdaCoorVariant: ...\nx = 'see --enable_ema'\n"
    )
    legacy.refuse(checkout)
    apply.install(checkout)
    legacy.refuse(checkout)
