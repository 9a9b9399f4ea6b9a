from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_ext import presets
from kohya_ext.checkout.checkout import Checkout, describe
from kohya_ext.checkout.environment import inspect
from kohya_ext.core.about import VERSION
from kohya_ext.core.errors import CONFLICT, DONE, UNSUPPORTED, WRONG_USAGE, ConflictError
from kohya_ext.install import apply, installer, package
from kohya_ext.install.worksite import REGISTER
from tests.checkout import trees
from tests.checkout.pythons import IN_A_VENV, SITE, pretend, process
from tests.cli.conftest import PRESET, Ran, Terminal

Make = Callable[..., Checkout]
Run = Callable[..., Ran]
WithVenv = Callable[[Checkout], Checkout]


@pytest.mark.parametrize("era", ["embedded", "submodule", "split", "bare"])
def test_install_and_uninstall_leave_nothing(make: Make, with_venv: WithVenv, run: Run, era: str) -> None:
    checkout = with_venv(make(era))
    before = trees.whole(checkout.root)
    done = run("install", checkout.root)
    assert done.code == DONE, done.errors
    assert f"checkout     {checkout.root} ({checkout.kind} {checkout.release}, {checkout.layout})" in done.text
    assert f"kohya-ext {VERSION} installed into" in done.text
    assert apply.installed(checkout) is not None
    assert (checkout.root / "venv" / SITE / "kohya_ext" / "__init__.py").is_file()
    done = run("uninstall", checkout.root)
    assert done.code == DONE, done.errors
    assert trees.whole(checkout.root) == before


def test_twice_is_once(make: Make, with_venv: WithVenv, run: Run) -> None:
    checkout = with_venv(make("submodule"))
    run("install", checkout.root)
    before = trees.whole(checkout.root)
    done = run("install", checkout.root)
    assert done.code == DONE
    assert "everything is in place already" in done.text
    assert trees.whole(checkout.root) == before


def test_dry_run_writes_nothing_and_prints_the_diff(
    make: Make, with_venv: WithVenv, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = with_venv(make("submodule"))
    monkeypatch.setattr(installer, "run", lambda *_: pytest.fail("no installer may run"))
    before = trees.whole(checkout.root)
    done = run("install", checkout.root, "--dry-run")
    assert done.code == DONE
    assert "+++ b/sd-scripts/library/__init__.py" in done.text
    assert f"+++ b/{PRESET}" not in done.text
    assert f"presets      1 to add in {Path(PRESET).parent.as_posix()} (--verbose" in done.text
    assert f"+++ b/{PRESET}" in run("install", checkout.root, "--dry-run", "--verbose").text
    assert "would be installed into" in done.text
    assert trees.whole(checkout.root) == before
    document = run("install", checkout.root, "--dry-run", "--json").document
    assert document["dry_run"] is True
    assert "+++ b/kohya_gui/__init__.py" in document["diff"]
    assert trees.whole(checkout.root) == before


def test_the_diff_is_what_install_does(make: Make, with_venv: WithVenv, run: Run, tmp_path: Path) -> None:
    checkout, twin = with_venv(make("embedded", "one")), make("embedded", "two")
    diff = run("install", checkout.root, "--dry-run", "--json").document["diff"]
    (tmp_path / "patch").write_text(diff)
    trees.git(twin.root, "apply", str(tmp_path / "patch"))
    run("install", checkout.root)
    for path in ("library/__init__.py", PRESET):
        assert (twin.root / path).read_bytes() == (checkout.root / path).read_bytes()


def test_json_of_install(make: Make, with_venv: WithVenv, run: Run) -> None:
    checkout = with_venv(make("submodule"))
    done = run("install", checkout.root, "--json")
    document = done.document
    assert (document["command"], document["exit_code"], document["version"]) == ("install", 0, VERSION)
    assert document["checkout"] == {
        "root": str(checkout.root),
        "kind": "kohya_ss",
        "release": "v25.2.1",
        "layout": "submodule",
        "second_gui": False,
    }
    assert document["environment"]["python"] == str(checkout.root / "venv" / IN_A_VENV)
    assert document["package"]["action"] == "installed"
    assert document["patch_set"] == "hook"
    assert document["changed"] is True
    assert set(document["files"]) == {"sd-scripts/library/__init__.py", "kohya_gui/__init__.py", PRESET}
    assert {check["name"]: check["level"] for check in document["checks"]}["torch"] == "ok"
    assert document["warnings"] == []
    assert "restart the GUI" in document["restart"]


def test_json_of_an_error_names_it(run: Run, tmp_path: Path) -> None:
    done = run("install", tmp_path, "--json")
    assert done.code == UNSUPPORTED
    assert done.document["exit_code"] == UNSUPPORTED
    assert "not a Kohya checkout" in done.document["error"]
    assert "not a Kohya checkout" in done.errors


def test_no_package_leaves_pythons_alone(make: Make, with_venv: WithVenv, run: Run) -> None:
    checkout = with_venv(make("embedded"))
    done = run("install", checkout.root, "--no-package")
    assert done.code == DONE
    assert "environment" not in done.text
    assert not (checkout.root / "venv" / SITE / "kohya_ext").exists()
    assert apply.installed(checkout) is not None


@pytest.mark.parametrize("more", [("--no-package",), ("--presets-only",)])
def test_presets_are_fitted_to_the_python_that_is_named(
    more: tuple[str, ...], make: Make, with_venv: WithVenv, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where nothing is put into it: xformers may be missing there."""
    asked: list[bool | None] = []

    def collect(_: Checkout, *, xformers: bool | None = None) -> dict[str, bytes]:
        asked.append(xformers)
        return {}

    monkeypatch.setattr(presets, "collect", collect)
    checkout = with_venv(make("submodule"))
    venv = (checkout.root / "venv").rename(tmp_path / "elsewhere")  # where nobody looks
    assert run("install", checkout.root, *more, "--python", venv / "nowhere").code == WRONG_USAGE
    assert run("install", checkout.root, *more, "--python", venv / "bin" / "python").code == DONE
    assert asked[0] is False


def test_presets_only_patches_nothing(make: Make, with_venv: WithVenv, run: Run) -> None:
    checkout = with_venv(make("submodule"))
    before = trees.whole(checkout.root)
    done = run("install", checkout.root, "--presets-only")
    assert done.code == DONE, done.errors
    assert (checkout.root / PRESET).is_file()
    assert (checkout.library / "__init__.py").read_bytes() == b""
    assert not (checkout.root / "venv" / SITE / "kohya_ext").exists()
    assert run("status", checkout.root).code == DONE
    assert run("install", checkout.root, "--presets-only").code == DONE
    assert run("uninstall", checkout.root).code == DONE
    assert trees.whole(checkout.root) == before


def test_presets_only_keeps_a_patch_and_install_adds_one(make: Make, with_venv: WithVenv, run: Run) -> None:
    checkout = with_venv(make("submodule"))
    run("install", checkout.root, "--presets-only")
    run("install", checkout.root)
    patched = (checkout.library / "__init__.py").read_bytes()
    assert b"kohya_ext" in patched
    run("install", checkout.root, "--presets-only")
    assert (checkout.library / "__init__.py").read_bytes() == patched


def test_a_second_install_keeps_the_patch_set(make: Make, with_venv: WithVenv, run: Run) -> None:
    checkout = with_venv(make("embedded"))
    assert run("install", checkout.root, "--patch-set", "inline").code == DONE
    assert run("install", checkout.root).code == DONE
    found = apply.installed(checkout)
    assert found is not None and found.patch_set == "inline"
    run("install", checkout.root, "--patch-set", "hook")
    found = apply.installed(checkout)
    assert found is not None and found.patch_set == "hook"


def test_two_environments_are_both_remembered_and_both_left(
    make: Make, with_venv: WithVenv, run: Run, kohya_venv: Path, tmp_path: Path
) -> None:
    from tests.checkout.pythons import copy_venv

    checkout = with_venv(make("submodule"))
    other = copy_venv(kohya_venv, tmp_path / "other")
    run("install", checkout.root)
    run("install", checkout.root, "--python", other)
    for folder in (checkout.root / "venv", tmp_path / "other"):
        assert (folder / SITE / "kohya_ext").exists()
    run("uninstall", checkout.root)
    for folder in (checkout.root / "venv", tmp_path / "other"):
        assert not (folder / SITE / "kohya_ext" / "__init__.py").exists()


def test_the_package_stays_while_another_checkout_uses_it(
    make: Make, run: Run, kohya_venv: Path, tmp_path: Path
) -> None:
    from tests.checkout.pythons import copy_venv

    python = copy_venv(kohya_venv, tmp_path / "shared")
    one, two = make("embedded", "one"), make("bare", "two")
    for checkout in (one, two):
        assert run("install", checkout.root, "--python", python).code == DONE
    assert "stays" in run("uninstall", one.root).text
    assert package.state(inspect(python)) == "same"
    assert "removed from" in run("uninstall", two.root).text
    assert not (tmp_path / "shared" / SITE / REGISTER).exists()


def test_a_killed_uninstall_is_finished_by_the_next(make: Make, with_venv: WithVenv, run: Run) -> None:
    """Killed between the checkout and the package: the manifest is gone, the register still names the checkout."""
    checkout = with_venv(make("embedded"))
    run("install", checkout.root)
    apply.uninstall(checkout)
    assert "removed from" in run("uninstall", checkout.root).text


def test_when_the_checkout_cannot_be_changed_the_package_goes_again(
    make: Make, with_venv: WithVenv, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = with_venv(make("embedded"))
    real = apply.install

    def full(checkout: Checkout, *, dry_run: bool = False, **options: object) -> apply.Outcome:
        if dry_run:
            return real(checkout, dry_run=True, **options)  # type: ignore[arg-type]
        raise ConflictError("no space left")

    monkeypatch.setattr(apply, "install", full)
    before = trees.whole(checkout.root)
    done = run("install", checkout.root)
    assert (done.code, "no space left" in done.errors) == (CONFLICT, True)
    monkeypatch.undo()
    assert trees.snapshot(checkout.root) == before[0]


def test_a_foreign_edit_is_refused_before_the_package(make: Make, with_venv: WithVenv, run: Run) -> None:
    checkout = with_venv(make("embedded"))
    (checkout.library / "__init__.py").write_text("mine = 1\n")
    before = trees.snapshot(checkout.root)
    done = run("install", checkout.root)
    assert done.code == CONFLICT
    assert "library/__init__.py" in done.errors
    assert trees.snapshot(checkout.root) == before


def test_a_missing_hook_is_unsupported(make: Make, with_venv: WithVenv, run: Run) -> None:
    checkout = with_venv(make("embedded"))
    (checkout.library / "train_util.py").write_text("")
    done = run("install", checkout.root)
    assert done.code == UNSUPPORTED
    assert "get_optimizer" in done.errors


def test_half_a_checkout_says_the_cure(make: Make, run: Run) -> None:
    import shutil

    root = make("submodule").root
    shutil.rmtree(root / "sd-scripts")
    done = run("install", root)
    assert done.code == UNSUPPORTED
    assert "submodule update --init" in done.errors


@pytest.mark.parametrize("command", ["install", "uninstall", "status", "doctor", "update"])
def test_no_checkout_is_unsupported_everywhere(run: Run, tmp_path: Path, command: str) -> None:
    done = run(command, tmp_path)
    assert done.code == UNSUPPORTED
    assert len(done.errors.splitlines()) == 1


def test_a_wrong_python_is_wrong_usage(make: Make, run: Run, tmp_path: Path) -> None:
    checkout = make("embedded")
    before = trees.whole(checkout.root)
    done = run("install", checkout.root, "--python", tmp_path / "nothing")
    assert done.code == WRONG_USAGE
    assert "no such file" in done.errors
    assert trees.whole(checkout.root) == before


def test_the_current_folder_is_found(
    make: Make, with_venv: WithVenv, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = with_venv(make("submodule"))
    monkeypatch.chdir(checkout.root / "sd-scripts")
    done = run("install")
    assert done.code == DONE
    assert f"{checkout.root} (" in done.text and "current folder" in done.text


# ---- where more than one checkout may be meant


@pytest.fixture
def standing(make: Make, with_venv: WithVenv, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, Path]:
    """The current folder's checkout, and that of a running GUI."""
    here, running = with_venv(make("submodule", "here")), with_venv(make("embedded", "running"))
    process(tmp_path / "machine" / "proc", 41, ["python", "kohya_gui.py"], running.root)
    monkeypatch.setenv("KOHYA_EXT_MACHINE", str(tmp_path / "machine"))
    monkeypatch.chdir(here.root)
    return here.root, running.root


def test_without_a_terminal_both_are_named(standing: tuple[Path, Path], run: Run) -> None:
    before = [trees.snapshot(root) for root in standing]
    for words in (("install",), ("install", "--yes"), ("update",), ("status",), ("doctor",), ("install", "--dry-run")):
        done = run(*words)
        assert done.code == WRONG_USAGE
        assert all(str(root) in done.errors for root in standing)
        assert f"kohya-ext {words[0]} {standing[0]}" in done.errors
    assert run("status", "--json").document["exit_code"] == WRONG_USAGE
    assert [trees.snapshot(root) for root in standing] == before


@pytest.mark.parametrize(("answer", "meant"), [("1", 0), ("2", 1), ("", None), ("3", None), ("y", None)])
def test_at_a_terminal_one_is_chosen(
    standing: tuple[Path, Path], run: Run, monkeypatch: pytest.MonkeyPatch, answer: str, meant: int | None
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    done = run("install", "--yes")
    assert all(str(root) in done.text for root in standing)
    assert done.code == (WRONG_USAGE if meant is None else DONE)
    assert [apply.installed(describe(root)) is not None for root in standing] == [meant == 0, meant == 1]


def test_uninstall_leaves_the_current_folders_checkout_only(standing: tuple[Path, Path], run: Run) -> None:
    here, running = standing
    assert run("install", running).code == DONE
    before = trees.whole(running)
    done = run("uninstall", "--yes")
    assert (done.code, "not installed" in done.text) == (DONE, True)
    assert run("install", here).code == DONE
    assert run("uninstall", "--yes").code == DONE
    assert apply.installed(describe(here)) is None
    assert trees.whole(running) == before


def test_missing_scipy_is_said_with_the_command(make: Make, with_venv: WithVenv, run: Run) -> None:
    import shutil

    checkout = with_venv(make("submodule"))
    for path in (checkout.root / "venv" / SITE).glob("scipy*"):
        shutil.rmtree(path)
    done = run("install", checkout.root)
    assert done.code == DONE
    assert "-m pip install scipy" in done.text


def test_uninstall_of_nothing_is_nothing(make: Make, run: Run) -> None:
    checkout = make("embedded")
    before = trees.whole(checkout.root)
    done = run("uninstall", checkout.root)
    assert (done.code, "not installed" in done.text) == (DONE, True)
    assert trees.whole(checkout.root) == before


def test_uninstall_dry_run_writes_nothing(make: Make, with_venv: WithVenv, run: Run) -> None:
    checkout = with_venv(make("embedded"))
    run("install", checkout.root)
    before = trees.whole(checkout.root)
    done = run("uninstall", checkout.root, "--dry-run")
    assert "--- a/library/__init__.py" in done.text
    assert trees.whole(checkout.root) == before


def test_an_edited_preset_stays_and_is_named(make: Make, with_venv: WithVenv, run: Run) -> None:
    checkout = with_venv(make("embedded"))
    run("install", checkout.root)
    (checkout.root / PRESET).write_text('{"mine": 1}\n')
    assert PRESET in run("install", checkout.root).text
    done = run("uninstall", checkout.root)
    assert f"kept         {PRESET}" in done.text
    assert (checkout.root / PRESET).read_text() == '{"mine": 1}\n'


@pytest.mark.parametrize(("answer", "installed"), [("n", False), ("y", True), ("", True)])
def test_a_person_is_asked(
    make: Make, with_venv: WithVenv, run: Run, monkeypatch: pytest.MonkeyPatch, answer: str, installed: bool
) -> None:
    checkout = with_venv(make("embedded"))
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert run("install", checkout.root).code == DONE
    assert (apply.installed(checkout) is not None) == installed


def test_yes_is_not_asked(make: Make, with_venv: WithVenv, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = with_venv(make("embedded"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    assert run("install", checkout.root, "--yes").code == DONE
    assert run("uninstall", checkout.root, "--yes").code == DONE
    assert describe(checkout.root) == checkout


def test_the_line_that_gradio_6_needs_is_written_when_told(make: Make, with_venv: WithVenv, run: Run) -> None:
    import shutil

    checkout = with_venv(make("submodule"))  # a release whose warm-up slider starts as a text
    for path in (checkout.root / "venv" / SITE).glob("gradio*"):
        shutil.rmtree(path)
    pretend(checkout.root / "venv" / SITE, {"gradio": "6.17.3"})
    config = checkout.root / "config.toml"
    done = run("install", checkout.root, "--yes")
    assert done.code == DONE
    assert "--fix-warmup" in done.text
    assert not config.exists()
    done = run("install", checkout.root, "--yes", "--fix-warmup")
    assert done.code == DONE
    assert config.read_text() == "[basic]\nlr_warmup = 0\n"
    again = run("install", checkout.root, "--yes", "--fix-warmup")
    assert (again.code, "lr_warmup" in again.text) == (DONE, False)
    assert "lr_warmup" not in run("doctor", checkout.root).text
    assert run("uninstall", checkout.root).code == DONE
    assert config.exists()
