"""Presets that were fitted to the release before an upgrade are refitted as the GUI starts, before it lists them.

A command of ours does it, in a process of its own, under the installer's lock; the preset files are all it changes.
Whatever goes wrong, one line says so and the GUI starts.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from kohya_ext.core import about, shell
from kohya_ext.files.revision import commits, moved
from kohya_ext.runtime.run import say
from kohya_ext.spec.hooks import RELEASE_FILE, REPOSITORIES

SECONDS = 60
REASON_LENGTH = 300


def refit_presets(root: Path) -> None:
    """Refit the presets in the checkout `root` where the record names another release or commit; else this takes no
    time.
    """
    try:
        recorded, now = _recorded(root), _release(root)
        was = str(recorded.get("release", ""))
        if not was or not now or not any(_is_preset(row) for row in recorded["files"]):
            return
        if was == now and not _moved(root, recorded):
            return
        _tell(was, now, _refitted(root))
    except Exception as error:
        reason = " ".join(str(error).split())[:REASON_LENGTH] or type(error).__name__
        command = shell.line(sys.executable, "-m", about.PACKAGE, "presets", "refit", root)
        say(f"the presets may not fit this release of Kohya: {reason}. To fit them, run: {command}")


def _recorded(root: Path) -> dict[str, Any]:
    """The record of the installation; empty where there is none."""
    path = root / about.MANIFEST
    found = json.loads(path.read_bytes()) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def _moved(root: Path, recorded: dict[str, Any]) -> bool:
    """Whether a checkout of the recorded release is at another commit: a branch keeps the name of its last release."""
    return moved(recorded.get("commits", ()), commits(root / folder for folder in REPOSITORIES))


def _release(root: Path) -> str:
    path = root / RELEASE_FILE
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""


def _is_preset(row: Any) -> bool:
    return isinstance(row, dict) and row.get("kind") == "preset"


def _refitted(root: Path) -> dict[str, Any]:
    """What the command says that it has done. Raises RuntimeError with its words where it failed."""
    command = [sys.executable, "-m", about.PACKAGE, "presets", "refit", str(root), "--python", sys.executable, "--json"]
    done = subprocess.run(
        command,
        cwd=(root / about.MANIFEST).parent,  # where no module lies that Python would take for one of its own
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=SECONDS,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip() or f"exit code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _tell(was: str, now: str, done: dict[str, Any]) -> None:
    count = len(done["files"])
    if was == now and not count:  # most commits change nothing that a preset depends on
        return
    kept = sorted(Path(path).stem for path in done["kept"])
    said = f"; edited by you and not touched: {', '.join(kept)}" if kept else ""
    before = "another commit" if was == now else was
    say(f"{count} preset{'s' * (count != 1)} fitted to {now} (before: {before}){said}")
