from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_ext.checkout.checkout import Checkout
from kohya_ext.checkout.environment import inspect
from kohya_ext.core.about import VERSION
from kohya_ext.core.errors import DONE, FOUND_PROBLEMS, RECOVERED, WRONG_USAGE
from kohya_ext.core.shell import command
from kohya_ext.install import apply, package
from kohya_ext.spec.outputs import SAVING_PREFIX
from tests.checkout import trees
from tests.checkout.pythons import IN_A_VENV, SITE
from tests.cli.conftest import Ran
from tests.files.faults import boundaries, killed_at
from tests.presets.second_guis import SECOND

Make = Callable[..., Checkout]
Run = Callable[..., Ran]
WithVenv = Callable[[Checkout], Checkout]


@pytest.fixture
def installed(make: Make, with_venv: WithVenv, run: Run) -> Checkout:
    checkout = with_venv(make("submodule"))
    assert run("install", checkout.root).code == DONE
    return checkout


def test_status_of_an_untouched_checkout(make: Make, run: Run) -> None:
    done = run("status", make("embedded").root)
    assert done.code == DONE
    assert "installed    no" in done.text


def test_status_of_an_installation(installed: Checkout, run: Run) -> None:
    before = trees.whole(installed.root)
    done = run("status", installed.root)
    assert done.code == DONE
    assert f"kohya_ext {VERSION}, patch set hook, onto v25.2.1" in done.text
    assert "sd-scripts/library/__init__.py: as installed" in done.text
    assert trees.whole(installed.root) == before


def test_status_lists_the_hooks_when_asked(installed: Checkout, run: Run) -> None:
    assert "get_optimizer" in run("status", installed.root, "--hooks").text


def test_status_reports_drift_and_changes_nothing(installed: Checkout, run: Run) -> None:
    (installed.library / "__init__.py").write_bytes(b"")
    before = trees.whole(installed.root)
    done = run("status", installed.root)
    assert done.code == FOUND_PROBLEMS
    assert "PROBLEM" in done.text and command("install", installed.root) in done.text
    assert trees.whole(installed.root) == before
    assert run("install", installed.root).code == DONE
    assert run("status", installed.root).code == DONE


def test_json_of_status(installed: Checkout, run: Run) -> None:
    document = run("status", installed.root, "--json").document
    assert (document["command"], document["exit_code"], document["clean"]) == ("status", 0, True)
    assert document["checkout"]["release"] == "v25.2.1"
    assert {file["state"] for file in document["files"]} == {"ours"}


def test_a_healthy_installation(installed: Checkout, run: Run) -> None:
    done = run("doctor", installed.root)
    assert done.code == DONE, done.text
    assert "the one installed into" in done.text
    assert "No problems found." in done.text
    assert "'Max train steps: 6' in the GUI's log" in done.text
    assert "images without captions" in done.text


def test_doctor_misses_the_package_after_a_uv_sync(installed: Checkout, run: Run) -> None:
    """An exact `uv sync` removes what its lock does not name."""
    site = installed.root / "venv" / SITE
    shutil.rmtree(site / "kohya_ext")
    shutil.rmtree(site / f"kohya_ext-{VERSION}.dist-info")
    done = run("doctor", installed.root)
    assert done.code == FOUND_PROBLEMS
    assert f"Run: {command('install', '--python', installed.root / 'venv' / IN_A_VENV, installed.root)}" in done.text
    assert run("install", installed.root).code == DONE
    assert run("doctor", installed.root).code == DONE


def test_doctor_misses_what_a_run_needs(installed: Checkout, run: Run) -> None:
    shutil.rmtree(installed.root / "venv" / SITE / "accelerate")
    done = run("doctor", installed.root, "--json")
    assert done.code == FOUND_PROBLEMS
    levels = {check["name"]: check["level"] for check in done.document["checks"]}
    assert levels["accelerate"] == "problem" and levels["torch"] == "ok"


def test_doctor_with_a_wrong_python(installed: Checkout, run: Run) -> None:
    assert run("doctor", installed.root, "--python", "/nowhere/python").code == WRONG_USAGE


def test_doctor_without_any_environment(make: Make, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from kohya_ext.checkout import environment
    from kohya_ext.core.errors import UsageError

    def nothing(*_: object, **__: object) -> None:
        raise UsageError("no Python with torch and accelerate found")

    monkeypatch.setattr(environment, "search", nothing)
    done = run("doctor", make("embedded").root)
    assert done.code == FOUND_PROBLEMS
    assert "no Python with torch" in done.text


@pytest.mark.parametrize("where", [0.3, 0.9])
def test_doctor_recovers_an_interrupted_install(make: Make, with_venv: WithVenv, run: Run, where: float) -> None:
    checkout = with_venv(make("submodule"))
    twin = make("submodule", "twin")
    environment = inspect(checkout.root / "venv")
    count = len(boundaries(lambda: apply.install(twin, environments=[environment])))
    apply.uninstall(twin, environments=[environment])
    before = trees.whole(checkout.root)
    assert killed_at(int(count * where), lambda: apply.install(checkout, environments=[environment]))
    assert run("status", checkout.root).code == FOUND_PROBLEMS
    assert run("install", checkout.root, "--dry-run").code != DONE
    done = run("doctor", checkout.root)
    assert done.code == RECOVERED
    assert "recovered    found " in done.text and " interrupted " in done.text
    assert trees.whole(checkout.root) == before or apply.installed(checkout) is not None
    assert run("doctor", checkout.root).code == DONE


def test_install_after_a_kill_recovers_and_goes_on(make: Make, with_venv: WithVenv, run: Run) -> None:
    checkout = with_venv(make("embedded"))
    assert killed_at(12, lambda: apply.install(checkout))
    done = run("install", checkout.root)
    assert done.code == DONE
    assert "recovered" in done.text
    assert run("status", checkout.root).code == DONE
    assert package.state(inspect(checkout.root / "venv")) == "same"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no locks on folders there")
@pytest.mark.parametrize("verb", ["doctor", "install", "uninstall"])
def test_what_a_killed_save_has_left_is_removed(installed: Checkout, run: Run, verb: str) -> None:
    from kohya_ext.runtime import safe_save

    outputs = installed.root / "outputs" / "model"
    outputs.mkdir(parents=True)
    with safe_save.moved_into_place(str(outputs / "living.safetensors")) as living:
        Path(living).write_text("in the middle of it")
        left = outputs / f"{SAVING_PREFIX}x1"
        left.mkdir()
        (left / "model-ema.safetensors").write_bytes(b"half")
        done = run(verb, installed.root)
        assert done.code == (RECOVERED if verb == "doctor" else DONE)
        assert f"{left}: left by a save that was killed" in done.text
        assert not left.exists() and Path(living).exists()
    assert [path.name for path in outputs.iterdir()] == ["living.safetensors"]


@pytest.mark.parametrize("alone", [False, True], ids=["both", "alone"])
def test_a_second_gui_is_named(make: Make, with_venv: WithVenv, run: Run, alone: bool) -> None:
    checkout = with_venv(make("submodule"))
    trees.write(checkout.root, SECOND)
    if alone:
        for module in (checkout.root / "kohya_gui").glob("*_gui.py"):
            module.unlink()
    installed = run("install", checkout.root)
    assert installed.code == DONE
    assert ("user_presets" in installed.text) is not alone
    for verb in ("status", "doctor"):
        said = run(verb, checkout.root).text
        assert "python kohya_gui_v2.py" in said
        assert ("the second GUI alone" in said) is alone
    assert run("uninstall", "--yes", checkout.root).code == DONE
