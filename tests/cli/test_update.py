from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_ext import presets
from kohya_ext.checkout.checkout import Checkout, describe
from kohya_ext.core.errors import CONFLICT, DONE, FOUND_PROBLEMS, RECOVERED
from kohya_ext.install import apply, update
from kohya_ext.install.status import status
from tests.checkout import trees
from tests.cli.conftest import PRESET, Ran
from tests.files.faults import boundaries, killed_at
from tests.systems import with_git

Make = Callable[..., Checkout]
Run = Callable[..., Ran]


@pytest.fixture
def cloned(make: Make, tmp_path: Path) -> tuple[Path, Checkout]:
    """An origin with a newer release, and a patched clone of the older one."""
    origin = make("embedded", "origin").root
    trees.git(tmp_path, "clone", "-q", str(origin), "mine")
    checkout = describe(tmp_path / "mine")
    apply.install(checkout, presets={PRESET: b"{}\n"})
    trees.write(origin, {".release": "v22.4.0", "library/train_util.py": trees.define(*trees.COMMON) + "NEW = 1\n"})
    trees.commit(origin, "v22.4.0")
    return origin, checkout


def test_it_says_what_it_did(cloned: tuple[Path, Checkout], run: Run) -> None:
    done = run("update", cloned[1].root)
    assert done.code == DONE, done.errors
    assert "uninstalled  library/__init__.py" in done.text
    assert "release      v22.3.1 -> v22.4.0" in done.text
    assert "installed    library/__init__.py" in done.text
    assert "restart the GUI" in done.text


def test_gits_words_when_it_refuses(cloned: tuple[Path, Checkout], run: Run) -> None:
    checkout = cloned[1]
    (checkout.library / "train_util.py").write_text(trees.define(*trees.COMMON) + "MINE = 1\n")
    done = run("update", checkout.root)
    assert done.code == FOUND_PROBLEMS
    assert "train_util.py" in done.errors and "git pull" in done.errors
    assert status(checkout).clean


def test_json(cloned: tuple[Path, Checkout], run: Run) -> None:
    document = run("update", cloned[1].root, "--json").document
    assert (document["before"], document["after"], document["failure"]) == ("v22.3.1", "v22.4.0", None)
    assert document["reinstalled"]["changed"] is True


def test_a_dry_run_asks_the_remote_and_changes_nothing(cloned: tuple[Path, Checkout], run: Run) -> None:
    root = cloned[1].root
    before = trees.whole(root)
    done = run("update", root, "--dry-run")
    assert done.code == DONE, done.errors
    assert "uninstall    library/__init__.py" in done.text
    assert "git          git pull --ff-only: origin/" in done.text and "has new commits" in done.text
    assert run("update", root, "--dry-run", "--json").document["commits_to_pull"] is True
    assert trees.whole(root) == before
    assert run("update", root).code == DONE
    assert "nothing new in origin/" in run("update", root, "--dry-run").text


def test_a_dry_run_where_the_remote_is_gone(cloned: tuple[Path, Checkout], run: Run) -> None:
    origin, checkout = cloned
    origin.rename(origin.with_name("moved"))
    done = run("update", checkout.root, "--dry-run")
    assert done.code == FOUND_PROBLEMS and "git ls-remote origin" in done.errors
    assert run("update", checkout.root, "--dry-run", "--json").document["commits_to_pull"] is None


@with_git
def test_a_dry_run_where_there_is_nothing_to_pull_from(make: Make, run: Run) -> None:
    assert run("update", make("embedded").root, "--dry-run").code == CONFLICT


@with_git
def test_where_there_is_nothing_to_pull_from(make: Make, run: Run) -> None:
    assert run("update", make("embedded").root).code == CONFLICT


def test_doctor_puts_on_again_what_a_killed_update_took_off(
    cloned: tuple[Path, Checkout], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = cloned[1]
    child = os.fork()
    if child == 0:
        update._pull = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        update.update(checkout, lambda *_: None)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    done = run("doctor", checkout.root)
    assert done.code == RECOVERED, done.errors
    assert "an interrupted update" in done.text
    assert status(checkout).clean and status(checkout).installed


EVERY = 7


@pytest.mark.parametrize("offset", [0, *[pytest.param(n, marks=pytest.mark.slow) for n in range(1, EVERY)]])
def test_killed_anywhere_it_ends_whole(make: Make, tmp_path: Path, offset: int) -> None:
    """At each boundary: what doctor does then leaves the tree wholly patched, whichever release it is at."""
    origin = make("embedded", "origin").root
    trees.git(tmp_path, "clone", "-q", str(origin), "pristine")
    trees.write(origin, {".release": "v22.4.0", "new.py": "x = 1\n"})
    trees.commit(origin, "v22.4.0")

    def patched(name: str) -> Checkout:
        checkout = describe(trees.copy(tmp_path / "pristine", tmp_path / name))
        apply.install(checkout, presets=presets.collect(checkout))
        return checkout

    whole = patched("whole")
    count = len(boundaries(lambda: update.update(whole, lambda *_: None)))
    assert count > 2 * EVERY
    for number in range(offset, count, EVERY):
        checkout = patched(f"killed{number}")
        assert killed_at(number, lambda checkout=checkout: update.update(checkout, lambda *_: None))  # type: ignore[misc]
        apply.recover(checkout)
        update.resume(checkout)
        checkout = describe(checkout.root)
        found = status(checkout)
        assert found.clean and found.installed, (number, found.problems)
        assert trees.git(checkout.root, "status", "--porcelain") == ""
        assert apply.install(checkout, presets=presets.collect(checkout)).changed is False
