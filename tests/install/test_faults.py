"""Promise 4: a failure or a kill at any write, of any verb, ends wholly before or wholly after, harmless in between."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kohya_ext.checkout.checkout import Checkout, describe
from kohya_ext.core.errors import ConflictError
from kohya_ext.install import apply
from tests.checkout import trees
from tests.files import faults

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills need fork")

ENOSPC = OSError(28, "No space left on device")
EACCES = PermissionError(13, "Permission denied")
PRESETS = {"presets/new/ours.json": b'{"optimizer": "AdaCoor"}\n'}
NEWER = {"presets/new/ours.json": b'{"optimizer": "AdaCoor", "epoch": 2}\n'}


def install(checkout: Checkout) -> None:
    apply.install(checkout, presets=PRESETS)


def install_inline(checkout: Checkout) -> None:
    apply.install(checkout, patch_set="inline", presets=NEWER)


def uninstall(checkout: Checkout) -> None:
    apply.uninstall(checkout)


@dataclass(frozen=True)
class Scenario:
    """What was done before, and the verb that is disturbed."""

    first: tuple[Callable[[Checkout], None], ...]
    verb: Callable[[Checkout], None]


SCENARIOS = {
    "install": Scenario((), install),
    "switch and renew": Scenario((install,), install_inline),
    "uninstall": Scenario((install,), uninstall),
    "uninstall inline": Scenario((install_inline,), uninstall),
}


Whole = tuple[dict[str, tuple[object, ...]], dict[str, tuple[str, list[str]]]]


@dataclass
class Stage:
    """A scenario on a tree: how it is before and after, the boundaries between, and copies to spoil."""

    checkout: Checkout
    folder: Path
    verb: Callable[[Checkout], None]
    before: Whole
    after: Whole
    crossed: list[str]
    copies: int = 0

    def fresh(self) -> Checkout:
        shutil.rmtree(self.folder / f"{self.copies}", ignore_errors=True)
        self.copies += 1
        return describe(trees.copy(self.checkout.root, self.folder / f"{self.copies}" / "checkout"))

    def wholes(self) -> tuple[Any, Any]:
        return self.before, self.after

    def assert_harmless(self, checkout: Checkout) -> None:
        """Each file of Kohya is the whole old or the whole new one."""
        now = trees.snapshot(checkout.root)
        for path in {*self.before[0], *self.after[0]}:
            if not path.startswith((".kohya_ext", ".git/")):
                assert now.get(path) in (self.before[0].get(path), self.after[0].get(path)), path
        stray = [path for path in now if path.endswith((".py", ".json")) and not path.startswith(".kohya_ext")]
        assert set(stray) <= {*self.before[0], *self.after[0]}


def stages(usual_era: str, *usual: str) -> pytest.MarkDecorator:
    """The `usual` scenarios on one era, and all of them on all eras with --slow."""
    cases = [
        pytest.param(
            (era, scenario),
            id=f"{scenario} {era}",
            marks=[] if era == usual_era and scenario in usual else [pytest.mark.slow],
        )
        for era in ("embedded", "submodule", "no git")
        for scenario in SCENARIOS
    ]
    return pytest.mark.parametrize("stage", cases, indirect=True)


def _renamed(whole: Whole) -> Whole:
    """What git says of the copy, which is in another folder."""
    files, git = whole
    return files, {"checkout" if name == "start" else name: said for name, said in git.items()}


@pytest.fixture
def stage(request: pytest.FixtureRequest, make: Callable[..., Checkout], tmp_path: Path) -> Iterator[Stage]:
    era, name = request.param
    scenario = SCENARIOS[name]
    checkout = make("embedded" if era == "no git" else era, "start")
    if era == "no git":
        shutil.rmtree(checkout.root / ".git")
    for verb in scenario.first:
        verb(checkout)
    before = trees.whole(checkout.root)
    copy = describe(trees.copy(checkout.root, tmp_path / "done" / "start"))
    crossed = faults.boundaries(lambda: scenario.verb(copy))
    after = trees.whole(copy.root)
    yield Stage(checkout, tmp_path / "copies", scenario.verb, _renamed(before), _renamed(after), crossed)
    shutil.rmtree(tmp_path / "copies", ignore_errors=True)


@stages("embedded", "install", "switch and renew", "uninstall")
def test_kill_at_every_boundary(stage: Stage) -> None:
    commit = stage.crossed.index("after commit")
    for number, name in enumerate(stage.crossed):
        checkout = stage.fresh()
        assert faults.killed_at(number, partial(stage.verb, checkout))
        stage.assert_harmless(checkout)
        if number % 5 == 0:
            has_git = (checkout.root / ".git").exists()
            porcelain = trees.git(checkout.root, "status", "--porcelain") if has_git else ""
            assert ".kohya_ext" not in porcelain or "gitignore" in name, name
            seen = trees.snapshot(checkout.root)
            apply.status(checkout)
            assert trees.snapshot(checkout.root) == seen  # it only reports
        recovery = apply.recover(checkout)
        assert trees.whole(checkout.root) == (stage.after if number >= commit else stage.before), name
        assert recovery is None or recovery.side == ("after" if number >= commit else "before")
        assert apply.recover(checkout) is None


@stages("no git", *SCENARIOS)
def test_kill_then_the_same_verb_again(stage: Stage) -> None:
    """Nobody has to know of doctor: the next command recovers by itself."""
    for number in range(0, len(stage.crossed), 5):
        checkout = stage.fresh()
        assert faults.killed_at(number, partial(stage.verb, checkout))
        stage.verb(checkout)
        assert trees.whole(checkout.root) == stage.after, stage.crossed[number]


@stages("no git", *SCENARIOS)
@pytest.mark.parametrize("error", [ENOSPC, EACCES], ids=["ENOSPC", "EACCES"])
def test_error_at_every_boundary(stage: Stage, error: OSError) -> None:
    commit = stage.crossed.index("after commit")
    step = 1 if error is ENOSPC else 7
    for number in range(0, len(stage.crossed), step):
        checkout = stage.fresh()
        expected = pytest.raises(ConflictError) if number <= commit else contextlib.nullcontext()
        with expected as caught:
            faults.failing_at(number, error, partial(stage.verb, checkout))
        if caught is not None:
            assert ("no space left" if error is ENOSPC else "no permission") in str(caught.value)
        apply.recover(checkout) if number > commit else None
        assert trees.whole(checkout.root) == (stage.after if number >= commit else stage.before), stage.crossed[number]


@stages("no git", "uninstall")
def test_kill_in_a_recovery(stage: Stage) -> None:
    commit = stage.crossed.index("after commit")
    for number in range(2, len(stage.crossed), 9):
        for inner in range(number % 4, 200, 4):
            checkout = stage.fresh()
            assert faults.killed_at(number, partial(stage.verb, checkout))
            killed = faults.killed_at(inner, partial(apply.recover, checkout))
            stage.assert_harmless(checkout)
            apply.recover(checkout)
            assert trees.whole(checkout.root) == (stage.after if number >= commit else stage.before)
            if not killed:
                break


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("patch_set", ["hook", "inline"])
def test_a_disk_that_is_really_full(make: Callable[..., Checkout], tmp_path: Path, patch_set: str) -> None:
    mount = tmp_path / "disk"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mount)], capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        checkout = describe(trees.copy(make("embedded").root, mount / "checkout"))
        before = trees.whole(checkout.root)
        refused = 0
        for pages in range(40):
            fill(mount, leave=pages)
            try:
                apply.install(checkout, patch_set=patch_set, presets=PRESETS)
            except ConflictError as error:
                refused += 1
                assert "no space left" in str(error) or "git cannot update its index" in str(error)
                (mount / "filler").unlink()
                assert trees.whole(checkout.root) == before
            else:
                break
        assert refused > 3
        (mount / "filler").unlink(missing_ok=True)
        assert apply.status(checkout).clean
        apply.uninstall(checkout)
        assert trees.whole(checkout.root) == before
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def fill(mount: Path, leave: int) -> None:
    """Use up the disk except for `leave` pages of 4 KiB."""
    (mount / "filler").unlink(missing_ok=True)
    free = os.statvfs(mount)
    with (mount / "filler").open("wb") as file:
        file.write(bytes(max(0, free.f_bavail - leave) * free.f_bsize))
