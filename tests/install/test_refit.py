"""Presets alone are brought to the release that is there now: edited ones, and all else, stay."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_ext.checkout.checkout import Checkout, describe
from kohya_ext.core import about
from kohya_ext.core.errors import ConflictError
from kohya_ext.files.transaction import Transaction
from kohya_ext.install import apply
from kohya_ext.install.manifest import NAME, PRESET
from tests.checkout import trees

Make = Callable[..., Checkout]
FOLDER = "presets/finetune/user_presets"
NAMES = ("edited", "gone", "kept", "refused")


def files(release: str, *names: str) -> dict[str, bytes]:
    return {f"{FOLDER}/{name}.json": f'{{"for": "{release}"}}\n'.encode() for name in names}


@pytest.fixture(params=["embedded", "submodule"])
def upgraded(request: pytest.FixtureRequest, make: Make) -> Checkout:
    """Installed, one preset edited and one removed by the user; then another release."""
    checkout = make(request.param)
    apply.install(checkout, presets=files("old", *NAMES))
    (checkout.root / FOLDER / "edited.json").write_text('{"mine": 1}')
    (checkout.root / FOLDER / "gone.json").unlink()
    (checkout.root / ".release").write_text("v99.0.0\n")
    return describe(checkout.root)


def content(checkout: Checkout) -> dict[str, str]:
    return {path.stem: path.read_text() for path in sorted((checkout.root / FOLDER).glob("*.json"))}


def test_only_our_own_unedited_presets_change(upgraded: Checkout) -> None:
    hooks = {
        entry.path: (upgraded.root / entry.path).read_bytes() for entry in recorded(upgraded) if entry.kind != PRESET
    }
    wanted = files("new", "edited", "gone", "kept", "another")
    before = trees.whole(upgraded.root)
    planned = apply.refit(upgraded, wanted, dry_run=True)
    assert trees.whole(upgraded.root) == before
    done = apply.refit(upgraded, wanted)
    assert [one.path for one in done.plan.changes] == [one.path for one in planned.plan.changes]
    assert content(upgraded) == {"edited": '{"mine": 1}', "kept": '{"for": "new"}\n'}
    assert done.plan.kept == (f"{FOLDER}/edited.json",)
    assert {path: (upgraded.root / path).read_bytes() for path in hooks} == hooks
    assert json.loads((upgraded.root / NAME).read_bytes())["release"] == "v99.0.0"
    once = trees.whole(upgraded.root)
    assert apply.refit(upgraded, wanted).changed is False
    assert trees.whole(upgraded.root) == once


def recorded(checkout: Checkout) -> tuple:  # type: ignore[type-arg]
    found = apply.installed(checkout)
    assert found is not None
    return found.files


def test_afterwards_all_of_it_can_be_taken_off(make: Make) -> None:
    checkout = make("submodule")
    before = trees.whole(checkout.root)
    apply.install(checkout, presets=files("old", "kept"))
    apply.refit(checkout, files("new", "kept"))
    assert apply.status(checkout).files[-1].problem is None
    apply.uninstall(checkout)
    assert trees.whole(checkout.root) == before


def test_what_is_not_installed_by_this_version_is_left_alone(make: Make) -> None:
    checkout = make("submodule")
    with pytest.raises(ConflictError, match="not installed"):
        apply.refit(checkout, files("new", "kept"))
    apply.install(checkout, presets=files("old", "kept"))
    path = checkout.root / NAME
    path.write_text(path.read_text().replace(f'"version": "{about.VERSION}"', '"version": "0.0.1"'))
    with pytest.raises(ConflictError, match=r"0\.0\.1 was installed"):
        apply.refit(checkout, files("new", "kept"))
    assert content(checkout) == {"kept": '{"for": "old"}\n'}


def test_an_interrupted_install_is_the_doctors(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = make("submodule")
    apply.install(checkout, presets=files("old", "kept"))
    monkeypatch.setattr(Transaction, "interrupted", lambda _: True)
    with pytest.raises(ConflictError, match="doctor"):
        apply.refit(checkout, files("new", "kept"))


def test_a_folder_of_another_user_is_said(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = make("submodule")
    apply.install(checkout, presets=files("old", "kept"))
    monkeypatch.setattr("kohya_ext.install.planning.os.access", lambda *_: False)
    before = trees.whole(Path(checkout.root))
    with pytest.raises(ConflictError, match="may not be written"):
        apply.refit(checkout, files("new", "kept"))
    assert trees.whole(checkout.root) == before
