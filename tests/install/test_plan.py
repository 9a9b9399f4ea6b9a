from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_ext.checkout.checkout import Checkout
from kohya_ext.core.errors import ConflictError
from kohya_ext.files.journal import Change, Effect
from kohya_ext.install import apply
from kohya_ext.install.plan import plan_install, plan_uninstall
from tests.systems import with_git

Make = Callable[..., Checkout]


def names(steps: tuple[object, ...]) -> list[str]:
    return [step.name if isinstance(step, Effect) else step.path for step in steps if isinstance(step, Change | Effect)]


@with_git
def test_git_is_told_before_the_files_change_and_after_they_are_back(make: Make) -> None:
    checkout = make("embedded")
    assert names(plan_install(checkout, "hook", {"presets/lora/x.json": b"{}"}).steps) == [
        "exclude",
        "skip-worktree",
        ".kohya_ext/backup/library/__init__.py",
        "library/__init__.py",
        "presets/lora/x.json",
        ".kohya_ext/manifest.json",
    ]
    apply.install(checkout, presets={"presets/lora/x.json": b"{}"})
    assert names(plan_uninstall(checkout).steps) == [
        "library/__init__.py",
        "presets/lora/x.json",
        ".kohya_ext/backup/library/__init__.py",
        ".kohya_ext/manifest.json",
        "skip-worktree",
        "exclude",
    ]


def test_diff(make: Make) -> None:
    checkout = make("submodule")
    (checkout.root / "kohya_gui/__init__.py").write_bytes(b'"""nothing here"""')
    diff = plan_install(checkout, "hook", {"presets/new.json": b"{}"}).diff()
    assert "--- a/sd-scripts/library/__init__.py\n+++ b/sd-scripts/library/__init__.py\n@@ -0,0 +1," in diff
    assert "--- /dev/null\n+++ b/presets/new.json\n@@ -0,0 +1 @@\n+{}\n\\ No newline at end of file\n" in diff
    assert '-"""nothing here"""\n\\ No newline at end of file\n+"""nothing here"""\n+# >>> kohya_ext' in diff
    assert ".kohya_ext/" not in diff


def test_nothing_to_do(make: Make) -> None:
    checkout = make("embedded")
    apply.install(checkout)
    plan = plan_install(checkout)
    assert not plan.changed
    assert plan.diff() == ""
    apply.uninstall(checkout)
    assert not plan_uninstall(checkout).changed
    assert plan_uninstall(checkout).notes


def test_the_package_is_remembered(make: Make) -> None:
    checkout = make("embedded")
    apply.install(checkout, package={"python": "/a"})
    assert not plan_install(checkout).changed
    assert not plan_install(checkout, package={"python": "/a"}).changed
    assert names(plan_install(checkout, package={"python": "/b"}).steps) == [".kohya_ext/manifest.json"]


@pytest.mark.parametrize("path", ["../x.json", "/x.json", ".git/x.json"])
def test_presets_cannot_lead_out(make: Make, path: str) -> None:
    with pytest.raises(ConflictError, match="outside of the checkout"):
        plan_install(make("embedded"), presets={path: b""})


def test_planning_writes_nothing(make: Make) -> None:
    checkout = make("split")

    def times() -> dict[Path, int]:
        return {path: path.lstat().st_mtime_ns for path in checkout.root.rglob("*")}

    before = times()
    plan_install(checkout, "inline", {"presets/new/x.json": b"{}"})
    assert times() == before
