"""`status` tells the truth about package, hook, presets and release together, and what it says to do can be pasted."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_ext.checkout.checkout import Checkout
from kohya_ext.core.about import VERSION
from kohya_ext.core.errors import DONE, FOUND_PROBLEMS
from kohya_ext.install import apply
from kohya_ext.install.installer import package_files
from tests.checkout import trees
from tests.checkout.pythons import SITE, copy_venv
from tests.checkout.versions import being
from tests.cli.conftest import PRESET, Ran, words_of
from tests.systems import HAS_GIT

Make = Callable[..., Checkout]
Run = Callable[..., Ran]
WithVenv = Callable[[Checkout], Checkout]
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def installed(make: Make, with_venv: WithVenv, run: Run) -> Checkout:
    checkout = with_venv(make("submodule"))
    assert run("install", checkout.root).code == DONE
    return checkout


def site(checkout: Checkout) -> Path:
    return checkout.root / "venv" / SITE


def fresh_environment(checkout: Checkout, kohya_venv: Path) -> None:
    """What vast.ai, a new pod of RunPod and `uv sync` do: Python and Kohya's packages as ever, ours gone."""
    shutil.rmtree(checkout.root / "venv")
    copy_venv(kohya_venv, checkout.root / "venv")


def spoil_preset(data: bytes) -> Callable[[Checkout, Path], None]:
    def spoil(checkout: Checkout, _: Path) -> None:
        (checkout.root / PRESET).write_bytes(data)

    return spoil


def no_python(checkout: Checkout, _: Path) -> None:
    shutil.rmtree(checkout.root / "venv")


DAMAGE: dict[str, tuple[Callable[[Checkout, Path], object], str]] = {
    "a fresh environment": (fresh_environment, "is not in"),
    "an empty file": (lambda c, _: (site(c) / "kohya_ext/core/about.py").write_bytes(b""), "is damaged in"),
    "half removed": (lambda c, _: shutil.rmtree(site(c) / "kohya_ext/runtime"), "is half in"),
    "no metadata": (lambda c, _: shutil.rmtree(next(site(c).glob("kohya_ext-*"))), "is half in"),
    "pip's leftovers": (lambda c, _: (site(c) / "kohya_ext").rename(site(c) / "~ohya_ext"), "is half in"),
    "the hook gone": (lambda c, _: (c.library / "__init__.py").write_bytes(b""), "the hook is missing"),
    "the GUI's hook missing": (lambda c, _: (c.root / "kohya_gui/__init__.py").unlink(), "gone"),
    "a hook edited": (lambda c, _: (c.library / "__init__.py").write_bytes(b"x = 1\n"), "edited since"),
    "a preset removed": (lambda c, _: (c.root / PRESET).unlink(), "was removed"),
    "an empty preset": (spoil_preset(b""), "cannot be read as a preset"),
    "a preset of zeros": (spoil_preset(b"\0" * 40), "cannot be read as a preset"),
    "half a preset": (spoil_preset(b'{"optimizer": "Ada'), "cannot be read as a preset"),
    "records lost": (lambda c, _: shutil.rmtree(c.root / ".kohya_ext"), "no record of it"),
    "another release": (lambda c, _: (c.root / ".release").write_text("v25.9.0"), "fitted to another release"),
}


@pytest.fixture(autouse=True)
def old_console(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows commands are printed for cmd, which runs them here."""
    if os.name == "nt":
        monkeypatch.setenv("PROMPT", "$P$G")


def pasted(command: str, run: Run) -> None:
    """Run the command as printed, in a shell; our own verbs in this process, where the installer is pretended."""
    for part in command.split(" && "):
        arguments = words_of(part)
        if arguments[0] == str(REPOSITORY / "install.sh"):
            assert run("install", *arguments[1:]).code == DONE
        elif ours := [number for number, word in enumerate(arguments) if Path(word).name == "kohya_ext"]:
            run(*arguments[ours[0] + 1 :])
        else:  # `move` is a word of cmd's own
            subprocess.run(part if os.name == "nt" else arguments, shell=os.name == "nt", check=True)


def followed(problem: str, checkout: Checkout, run: Run, release: Path) -> None:
    """Do what the message says. release: an untouched tree, to copy from where git cannot bring a file back."""
    by_hand = re.search(r"Copy (\S+) from the same release \(this is not a git repository\); then run: (.+)", problem)
    if by_hand is None:
        pasted(problem.rpartition("Run: ")[2], run)
        return
    assert not HAS_GIT
    shutil.copyfile(release / by_hand[1], checkout.root / by_hand[1])
    pasted(by_hand[2], run)


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_damage_is_seen_and_the_command_mends_it(
    installed: Checkout, make: Make, kohya_venv: Path, run: Run, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    act, words = DAMAGE[damage]
    if damage == "another release":
        from kohya_ext import presets

        def refitted(checkout: Checkout, **_: object) -> dict[str, bytes]:
            return {PRESET: f'{{"for": "{checkout.release}"}}\n'.encode()}

        monkeypatch.setattr(presets, "collect", refitted)
        run("install", installed.root)
    act(installed, kohya_venv)
    before = trees.whole(installed.root)
    done = run("status", installed.root)
    assert done.code == FOUND_PROBLEMS, done.text
    assert words in done.text
    assert trees.whole(installed.root) == before  # it only looks
    document = run("status", installed.root, "--json").document
    assert document["exit_code"] == FOUND_PROBLEMS and not document["clean"]
    untouched = make("submodule", "untouched").root
    for problem in document["problems"]:
        followed(problem, installed, run, untouched)
    done = run("status", installed.root)
    assert done.code == DONE, done.text


def test_a_python_that_is_gone_is_said(installed: Checkout, run: Run) -> None:
    no_python(installed, installed.root)
    done = run("status", installed.root)
    assert done.code == FOUND_PROBLEMS
    assert "is gone" in done.text or "is not in" in done.text


def test_an_edited_preset_is_edited_and_no_problem(installed: Checkout, run: Run) -> None:
    (installed.root / PRESET).write_text('{"optimizer": "AdamW"}')
    done = run("status", installed.root)
    assert done.code == DONE
    assert "edited by you; kept" in done.text


def test_a_python_known_only_by_its_path_is_remembered(make: Make, run: Run, kohya_venv: Path, tmp_path: Path) -> None:
    checkout = make("bare")
    before = trees.whole(checkout.root)
    copy_venv(kohya_venv, tmp_path / "far" / "away")
    assert run("install", checkout.root, "--python", tmp_path / "far" / "away").code == DONE
    assert f"package      {VERSION} in {tmp_path / 'far' / 'away'}: intact" in run("status", checkout.root).text
    shutil.rmtree(tmp_path / "far" / "away" / SITE / "kohya_ext")
    done = run("status", checkout.root)
    assert done.code == FOUND_PROBLEMS and "--python" in done.text
    doctor = run("doctor", checkout.root)
    assert "is intact again" in doctor.text  # half there: the next doctor mends it
    assert run("install", checkout.root).code == DONE
    assert run("status", checkout.root).code == DONE
    assert run("uninstall", checkout.root).code == DONE
    assert not list((tmp_path / "far" / "away" / SITE).glob("*ohya_ext*"))
    assert trees.whole(checkout.root) == before


def test_the_package_of_another_version_than_the_lines(
    installed: Checkout, make: Make, with_venv: WithVenv, run: Run, tmp_path: Path
) -> None:
    """Two checkouts share an environment, and the newer clone was used for one of them only."""
    second = make("bare", "second")
    with being("0.9.0", tmp_path):
        assert run("install", second.root, "--python", installed.root / "venv").code == DONE
    done = run("status", installed.root)
    assert done.code == FOUND_PROBLEMS
    assert "is 0.9.0, the patch in Kohya's files is" in done.text
    assert run("install", installed.root).code == DONE
    assert run("status", installed.root).code == DONE
    assert run("status", second.root).code == FOUND_PROBLEMS


def test_another_build_of_the_same_version(installed: Checkout, make: Make, run: Run, tmp_path: Path) -> None:
    second = make("bare", "second")
    files = {**package_files(), "kohya_ext/more.py": b""}
    with being(VERSION, tmp_path, files):
        assert run("install", second.root, "--python", installed.root / "venv").code == DONE
    done = run("status", installed.root)
    assert done.code == FOUND_PROBLEMS and "another build" in done.text


def test_a_tree_that_was_moved_with_its_environment(installed: Checkout, run: Run, tmp_path: Path) -> None:
    moved = installed.root.rename(tmp_path / "moved")
    assert run("status", moved).code == DONE
    assert run("install", moved).code == DONE
    assert run("uninstall", moved).code == DONE
    assert not (moved / "venv" / SITE / "kohya_ext").exists()


def test_a_tree_that_was_copied_with_its_environment(installed: Checkout, run: Run, tmp_path: Path) -> None:
    copy = trees.copy(installed.root, tmp_path / "copy")
    assert run("status", copy).code == DONE
    assert run("uninstall", copy).code == DONE
    assert not (copy / "venv" / SITE / "kohya_ext").exists()
    assert run("status", installed.root).code == DONE


def test_presets_only_needs_no_package(make: Make, with_venv: WithVenv, run: Run) -> None:
    checkout = with_venv(make("submodule"))
    run("install", checkout.root, "--presets-only")
    assert run("status", checkout.root).code == DONE


def test_the_lines_without_a_package_are_a_problem(make: Make, with_venv: WithVenv, run: Run) -> None:
    checkout = with_venv(make("submodule"))
    run("install", checkout.root, "--no-package")
    done = run("status", checkout.root)
    assert done.code == FOUND_PROBLEMS and "is not in" in done.text


def test_the_commands_that_are_printed_run(make: Make, tmp_path: Path) -> None:
    """Real processes, from another folder: the clone's install.sh, and our module with the clone on its path."""
    from kohya_ext.core.shell import command

    root = make("bare", "with space").root
    for verb in ("status", "doctor"):
        done = subprocess.run(command(verb, root), shell=True, cwd=tmp_path, capture_output=True, text=True)
        assert "with space" in done.stdout, done.stderr
    words = command("install", root) + " --dry-run --presets-only"
    assert subprocess.run(words, shell=True, cwd=tmp_path).returncode == DONE
    assert sys.executable in command("doctor", root)
    assert apply.status(make("bare", "x")).clean
