from __future__ import annotations

from collections.abc import Callable

import pytest

from kohya_ext.checkout.checkout import Checkout
from kohya_ext.files.atomic import sha256
from kohya_ext.install import patchset, states
from kohya_ext.install.manifest import ManifestEntry
from kohya_ext.install.patchset import Edit, PatchTarget
from kohya_ext.install.states import State
from tests.checkout import trees
from tests.systems import HAS_GIT, needs_git, with_git

Make = Callable[..., Checkout]
NAME = "library/__init__.py"
PATCHED = patchset.load("hook").patched(b"")
ENTRY = ManifestEntry(NAME, "patched", sha256(b""), sha256(PATCHED), 0o644, f".kohya_ext/backup/{NAME}")


@pytest.mark.parametrize(
    ("data", "recorded", "git", "expected"),
    [
        (b"", False, True, State.PRISTINE),
        (b"", True, True, State.PRISTINE),
        (b"", True, False, State.PRISTINE),
        (b"", False, False, State.PRISTINE),
        (b"\xef\xbb\xbf\r\n", False, True, State.PRISTINE),
        (b"# note\n", False, True, State.FOREIGN),
        (b"# note\n", False, False, State.PRISTINE),  # the anchor still matches, and nobody can know better
        (b"# note\n", True, False, State.FOREIGN),
        (b"x = 1\n", False, False, State.FOREIGN),
        (PATCHED, True, True, State.OURS),
        (PATCHED, True, False, State.OURS),
        (PATCHED, False, True, State.UNRECORDED),
        (PATCHED, False, False, State.UNRECORDED),
        (PATCHED + b"x = 1\n", True, True, State.EDITED),
        (PATCHED + b"x = 1\n", False, True, State.EDITED),
        (b"x = 1\n" + PATCHED, True, True, State.EDITED),
        (None, True, True, State.MISSING),
    ],
)
def test_states(make: Make, data: bytes | None, recorded: bool, git: bool, expected: State) -> None:
    import shutil

    root = make("embedded").root
    if git:
        needs_git()
    elif HAS_GIT:
        shutil.rmtree(root / ".git")
    (root / NAME).unlink() if data is None else (root / NAME).write_bytes(data)
    target = PatchTarget(root / NAME, Edit(patchset.EMPTY_MODULE, "training", NAME))
    seen = states.inspect(root, NAME, ENTRY if recorded else None, target)
    assert seen.state is expected


@with_git
def test_a_new_commit_of_the_user_is_pristine(make: Make) -> None:
    root = make("embedded").root
    path = root / "library/train_util.py"
    path.write_text(path.read_text() + "x = 1\n")
    assert states.inspect(root, "library/train_util.py", None).state is State.FOREIGN
    trees.commit(root)
    assert states.inspect(root, "library/train_util.py", None).state is State.PRISTINE


def test_original_follows_git(make: Make) -> None:
    """Ours, but git has moved on under the flag: the original is what git has now, in our line ends."""
    root = make("embedded").root
    backup = root / str(ENTRY.backup)
    backup.parent.mkdir(parents=True)
    backup.write_bytes(b"a\r\n")
    entry = ManifestEntry(NAME, "patched", sha256(b"a\r\n"), sha256(b"p"), 0o644, ENTRY.backup)
    (root / NAME).write_bytes(b"p")
    seen = states.Inspected(NAME, states.inspect(root, NAME, entry).file, State.OURS, b"a\nb\n")
    assert states.original(root, seen, entry) == b"a\r\nb\r\n"
    assert states.original(root, states.Inspected(NAME, seen.file, State.OURS, b"a\n"), entry) == b"a\r\n"
    assert states.original(root, states.Inspected(NAME, seen.file, State.OURS, None), entry) == b"a\r\n"
