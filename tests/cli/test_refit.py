"""`presets refit`: after an upgrade of Kohya the installed presets fit again, and `status` is content."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kohya_ext import presets
from kohya_ext.checkout.checkout import Checkout
from kohya_ext.core.errors import CONFLICT, DONE, FOUND_PROBLEMS
from tests.checkout import trees
from tests.cli.conftest import PRESET, Ran
from tests.systems import with_git

Make = Callable[..., Checkout]
Run = Callable[..., Ran]


@pytest.fixture
def upgraded(make: Make, run: Run, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    def collect(checkout: Checkout, **_: object) -> dict[str, bytes]:
        return {PRESET: f'{{"for": "{checkout.release}"}}\n'.encode()}

    monkeypatch.setattr(presets, "collect", collect)
    checkout = make("submodule")
    assert run("install", checkout.root, "--no-package").code == DONE
    (checkout.root / ".release").write_text("v99.0.0\n")
    return checkout


def test_stale_presets_are_a_problem_until_they_are_refitted(upgraded: Checkout, run: Run) -> None:
    said = run("status", upgraded.root)
    assert said.code == FOUND_PROBLEMS
    assert "fitted to another release of the GUI" in said.text
    before = trees.whole(upgraded.root)
    assert f"would be fitted {PRESET}" in run("presets", "refit", upgraded.root, "--dry-run").text
    assert trees.whole(upgraded.root) == before
    done = run("presets", "refit", upgraded.root, "--json").document
    assert (done["files"], done["kept"], done["release"]) == ([PRESET], [], "v99.0.0")
    assert "fitted to another" not in run("status", upgraded.root).text
    assert "the presets fit v99.0.0" in run("presets", "refit", upgraded.root).text


@with_git
def test_a_branch_may_keep_the_name_of_its_release(make: Make, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted_to = ["old"]
    monkeypatch.setattr(presets, "collect", lambda *_, **__: {PRESET: f'{{"for": "{fitted_to[0]}"}}\n'.encode()})
    checkout = make("submodule")
    run("install", checkout.root, "--no-package")
    fitted_to[0] = "new"
    assert "fitted to another environment" in run("status", checkout.root).text
    trees.git(checkout.root, "commit", "--quiet", "--allow-empty", "--message", "another")
    said = run("status", checkout.root)
    assert (said.code, "fitted to another commit of the GUI" in said.text) == (FOUND_PROBLEMS, True)
    run("presets", "refit", checkout.root)
    fitted_to[0] = "newest"
    assert "fitted to another environment" in run("status", checkout.root).text


def test_an_edited_preset_is_named_and_kept(upgraded: Checkout, run: Run) -> None:
    (upgraded.root / PRESET).write_text('{"mine": 1}')
    done = run("presets", "refit", upgraded.root)
    assert done.code == DONE
    assert f"{PRESET} (edited since)" in done.text
    assert (upgraded.root / PRESET).read_text() == '{"mine": 1}'


def test_without_an_installation_it_is_refused(make: Make, run: Run) -> None:
    done = run("presets", "refit", make("submodule").root)
    assert (done.code, "not installed" in done.errors) == (CONFLICT, True)
