"""What changes a checkout or an environment looks for a training that uses them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_ext.checkout.checkout import Checkout, describe
from kohya_ext.core.errors import CONFLICT, DONE
from kohya_ext.install import apply
from tests.checkout import trees
from tests.checkout.pythons import SITE, copy_venv, process
from tests.cli.conftest import PRESET, Ran, Terminal

Make = Callable[..., Checkout]
Run = Callable[..., Ran]
WithVenv = Callable[[Checkout], Checkout]
SAID = "sdxl_train.py (process 4711)"


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KOHYA_EXT_MACHINE", str(tmp_path / "machine"))
    (tmp_path / "machine" / "proc").mkdir(parents=True)
    return tmp_path / "machine" / "proc"


def train(proc: Path, checkout: Checkout, pid: int = 4711) -> None:
    process(proc, pid, ["python", "sdxl_train.py", "--output_dir=/out"], checkout.training_root)


@pytest.fixture
def installed(make: Make, with_venv: WithVenv, run: Run, tmp_path: Path) -> Checkout:
    """A clone that could be updated."""
    origin = make("embedded", "origin").root
    trees.git(tmp_path, "clone", "-q", str(origin), "mine")
    checkout = with_venv(describe(tmp_path / "mine"))
    assert run("install", checkout.root).code == DONE
    return checkout


def everything(checkout: Checkout) -> object:
    return trees.whole(checkout.root)


def damage(checkout: Checkout) -> None:
    """So that a reinstall has something to do."""
    (checkout.root / "venv" / SITE / "kohya_ext" / "__init__.py").write_text("old = 1\n")


@pytest.mark.parametrize("command", ["uninstall", "update", "install"])
def test_without_an_answer_nothing_is_changed(installed: Checkout, run: Run, proc: Path, command: str) -> None:
    damage(installed)
    before = everything(installed)
    train(proc, installed)
    done = run(command, installed.root)
    assert done.code == CONFLICT
    assert SAID in done.errors and "--yes" in done.errors
    assert everything(installed) == before
    assert run(command, installed.root, "--json").document["exit_code"] == CONFLICT
    assert everything(installed) == before


@pytest.mark.parametrize("command", ["uninstall", "update", "install"])
def test_with_yes_it_is_said_and_done(installed: Checkout, run: Run, proc: Path, command: str) -> None:
    damage(installed)
    train(proc, installed)
    done = run(command, installed.root, "--yes")
    assert done.code == DONE, done.errors
    assert SAID in done.errors
    assert (apply.installed(installed) is None) == (command == "uninstall")


@pytest.mark.parametrize("command", ["uninstall", "install"])
def test_a_dry_run_says_it(installed: Checkout, run: Run, proc: Path, command: str) -> None:
    damage(installed)
    train(proc, installed)
    before = everything(installed)
    done = run(command, installed.root, "--dry-run")
    assert (done.code, SAID in done.errors) == (DONE, True)
    assert everything(installed) == before


@pytest.mark.parametrize(("answer", "goes_on"), [("y", True), ("yes", True), ("", False), ("n", False)])
def test_a_person_is_asked(
    installed: Checkout, run: Run, proc: Path, monkeypatch: pytest.MonkeyPatch, answer: str, goes_on: bool
) -> None:
    train(proc, installed)
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    done = run("uninstall", installed.root)
    assert (done.code, SAID in done.errors) == (DONE, True)
    assert (apply.installed(installed) is None) == goes_on


def test_a_training_of_another_checkout_in_the_same_environment(
    make: Make, run: Run, proc: Path, kohya_venv: Path, tmp_path: Path
) -> None:
    python = copy_venv(kohya_venv, tmp_path / "shared")
    one, two = make("embedded", "one"), make("bare", "two")
    for checkout in (one, two):
        assert run("install", checkout.root, "--python", python).code == DONE
    process(proc, 4711, [str(python), "sdxl_train.py"], two.root)
    assert run("uninstall", one.root).code == CONFLICT
    assert SAID in run("uninstall", one.root).errors


def test_what_changes_nothing_for_a_training_goes_on(make: Make, with_venv: WithVenv, run: Run, proc: Path) -> None:
    """A first install, one that finds everything in place, one of presets, an uninstall of nothing."""
    checkout, other = with_venv(make("embedded")), make("embedded", "other")
    train(proc, checkout)
    assert run("uninstall", checkout.root).code == DONE
    assert run("install", checkout.root).code == DONE
    assert run("install", checkout.root).code == DONE
    (checkout.root / PRESET).unlink()
    assert run("install", checkout.root, "--presets-only").code == DONE
    assert run("install", other.root, "--no-package").code == DONE
    assert run("uninstall", other.root, "--no-package").code == DONE  # a training elsewhere
