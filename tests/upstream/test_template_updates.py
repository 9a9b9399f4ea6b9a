"""Kohya upgraded as templates do it, by git's commands: the next start of the GUI has presets that fit.

The checkout is a clone that follows a branch of a repository on this machine, with the releases' own trees.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kohya_ext.presets.document import bundled
from kohya_ext.spec.preset_files import USER_PRESETS
from tests.upstream import real_gui, trees
from tests.upstream.real_gui import BUNDLE, ERAS
from tests.upstream.test_every_release import kohya_ext

pytestmark = pytest.mark.upstream

SUBMODULE = ("submodule", "update", "--init", "--recursive")  # gui.sh does it at each start
UPDATES: dict[str, tuple[tuple[str, ...], ...]] = {
    "pull": (("checkout", "master"), ("pull",), SUBMODULE),  # RunPod
    "stash": (("stash",), ("checkout", "master"), ("pull",), SUBMODULE),  # ai-dock
    "tag": (("fetch", "--all", "--tags"), ("checkout", "new"), SUBMODULE),  # by hand, to a release
}
# release, the one that it moves to, and what the GUI's line says was before: the release, unless both have one name
MOVES = {"v26.0.0": ("v24.1.7", "v24.1.7"), "master": ("v26.0.0", "another commit")}
EDITED = "AdaCoor-48GB"


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=tests", "-c", "user.email=tests@localhost", "-c", "protocol.file.allow=always"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *words], check=True, capture_output=True, text=True
    ).stdout


@dataclass(frozen=True)
class Published:
    """A repository that publishes `old`, and `new` as soon as it is told to."""

    origin: Path
    new: str

    def publish(self) -> None:
        git(self.origin, "update-ref", "refs/heads/master", self.new)
        git(self.origin, "tag", "new", self.new)


def published(old: str, new: str, folder: Path) -> Published:
    """Both releases in one history; the training code of both in one repository."""
    first, second = trees.export_kohya(old, folder / "old"), trees.export_kohya(new, folder / "new")
    training = folder / "training.git"
    git(folder, "init", "--quiet", "--bare", str(training))
    for number, one in enumerate((first, second)):
        git(one / "sd-scripts", "push", "--quiet", str(training), f"HEAD:refs/heads/training{number}")
    git(first, "fetch", "--quiet", str(second), "HEAD")
    commit = git(first, "commit-tree", "FETCH_HEAD^{tree}", "-p", "HEAD", "-m", new).strip()
    return Published(first, commit)


def clone(origin: Path, folder: Path) -> Path:
    """A clone with its submodule, which comes from this machine too."""
    git(folder.parent, "clone", "--quiet", "--branch", "master", str(origin), str(folder))
    git(folder, "config", "submodule.sd-scripts.url", str(origin.parent / "training.git"))
    git(folder, *SUBMODULE)
    return folder


def checked(root: Path) -> dict[str, list[str]]:
    """Name -> errors and warnings that `presets check --all` has about each bundled preset of the checkout."""
    done = kohya_ext("presets", "check", "--all", str(root), "--json")
    rows: list[dict[str, Any]] = json.loads(done.stdout)["presets"]
    ours = {preset.name for preset in bundled()}
    return {
        row["preset"]: [one["rule"] for one in row["findings"] if one["level"] in ("error", "warning")]
        for row in rows
        if row["preset"] in ours
    }


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("new", MOVES)
def test_the_next_start_has_presets_that_fit(new: str, update: str, tmp_path: Path) -> None:
    era = ERAS[new]
    real_gui.require(era, browser=False)
    old, before = MOVES[new]
    source = published(old, new, tmp_path)
    root = clone(source.origin, tmp_path / "kohya_ss")
    assert kohya_ext("install", str(root), "--no-package", "--yes").returncode == 0
    edited = next(root.glob(f"presets/finetune/{USER_PRESETS}/{EDITED}.json"))
    edited.write_text(edited.read_text("ascii").replace('"epoch": ', '"epoch": 1'), "ascii")
    mine = edited.read_bytes()
    assert kohya_ext("status", str(root)).returncode == 0
    source.publish()
    for command in UPDATES[update]:
        git(root, *command)
    assert git(root, "rev-parse", "HEAD").strip() == source.new
    stale = kohya_ext("status", str(root))
    assert (stale.returncode, "fitted to another" in stale.stdout) == (1, True), stale.stdout
    files = {path: path.read_bytes() for path in root.glob(f"presets/*/{USER_PRESETS}/*.json")}
    said = started(era, root, tmp_path / "first.log")
    changed = sum(path.read_bytes() != data for path, data in files.items())
    line = f"{changed} presets fitted to v26.0.0 (before: {before}); edited by you and not touched: {EDITED}"
    assert said == [f"kohya_ext: {line}"]
    assert edited.read_bytes() == mine
    found = checked(root)
    assert len(found) == len(files)
    assert {name: rules for name, rules in found.items() if rules and name != EDITED} == {}
    assert kohya_ext("status", str(root)).returncode == 0
    assert started(era, root, tmp_path / "second.log") == []


def started(era: real_gui.Era, root: Path, log: Path) -> list[str]:
    """What of ours one start of the GUI prints, up to the page being served."""
    server = real_gui.start(era, root, log, programs=BUNDLE)
    try:
        return [line for line in server.printed().splitlines() if line.startswith("kohya_ext: ")]
    finally:
        server.stop()
