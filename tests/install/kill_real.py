"""`kill_sweep` with nothing pretended: the command itself, a real environment, the real pip, the whole wheel.

    python -m tests.install.kill_real [KILLS] [--seed N]

The command runs in processes of its own and is killed at a random moment of its run: it alone, so that pip or git goes
on without it, or all of its process group, as at the end of a container.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from kohya_ext.checkout.known_locations import MACHINE
from tests.checkout import trees
from tests.checkout.pythons import KOHYA, SITE, make_venv
from tests.install import kill_sweep

REPOSITORY = Path(__file__).parents[2]
COMMANDS = {"install": ("install",), "switch": ("install", "--patch-set", "inline"), "uninstall": ("uninstall",)}
NEEDED = {**KOHYA, "diffusers": "0.25.0", "safetensors": "0.4.2", "toml": "0.10.2", "gradio": "4.43.0", "scipy": "1.1"}
# What differs from run to run: compiled files, their lines in RECORD, and what pip's question for rustc leaves at home.
COMPILED = re.compile(r"__pycache__|\.pyc\b|^home/\.rustup")


def environ(world: Path) -> dict[str, str]:
    """Nothing of this machine's; temporary files go into the world, where they are seen."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "LD_LIBRARY_PATH")}
    return {
        **kept,
        MACHINE: str(world),
        "HOME": str(world / "home"),
        "KOHYA_EXT_MACHINE": str(world / "machine"),  # an empty one: no process, none of the templates' locations
        "TMPDIR": str(world / "tmp"),
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONDONTWRITEBYTECODE": "1",
        "KOHYA_EXT_TRACEBACK": "1",
    }


def started(world: Path, *words: str) -> subprocess.Popen[str]:
    """A command on the checkout of the world, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "kohya_ext", *words, str(world / "mine")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=world,
        env=environ(world),
        start_new_session=True,
    )


def ran(world: Path, *words: str, codes: tuple[int, ...] = (0,)) -> str:
    process = started(world, *words)
    said = process.communicate()[0]
    assert process.returncode in codes, f"{words} ended with {process.returncode}: {said}"
    return said


def status(world: Path) -> tuple[int, tuple[str, ...]]:
    """Exit code and problems, without the places."""
    document = json.loads(ran(world, "status", "--json", codes=(0, 1)))
    return document["exit_code"], tuple(sorted(text.replace(str(world), "") for text in document["problems"]))


def snapshot(world: Path) -> dict[str, Any]:
    """Every file of the world with its bytes and mode, and what git says."""
    seen: dict[str, object] = {
        path: what for path, what in trees.snapshot(world).items() if not path.startswith("mine/.git/")
    }
    seen["git"] = sorted(trees.git_view(world / "mine").items())
    seen["traces in git"] = sorted(str(path) for path in (world / "mine" / ".git").rglob("*kohya_ext*"))
    for path in (world / "venv" / SITE).glob("kohya_ext-*.dist-info/RECORD"):
        rows = [row for row in path.read_text().splitlines() if not COMPILED.search(row)]
        seen[str(path.relative_to(world))] = rows
    return {path: what for path, what in seen.items() if not COMPILED.search(path)}


def snapshot_of_a_moment(world: Path, *, settled: bool) -> dict[str, Any]:
    """The snapshot; one that is like no other where a pip that goes on removes a file under our eyes."""
    try:
        return snapshot(world)
    except FileNotFoundError:
        if settled:
            raise
        return {"pip": "is still writing"}


def fresh(source: Path, world: Path) -> Path:
    shutil.rmtree(world, ignore_errors=True)
    return trees.copy(source, world)


def sweep(folder: Path, verb: str, kills: int, seed: int) -> Counter[str]:
    """Kill the command until `kills` have hit; the count of each outcome. Raises AssertionError on any loss."""
    chance = random.Random(f"{seed} real {verb}")
    landed: Counter[str] = Counter()
    world = fresh(folder / "pristine", folder / "world")
    if verb != "install":
        ran(world, "install", "--python", str(world / "venv"))
    start = fresh(world, folder / "start")
    sides, said = [snapshot(world)], [status(world)]
    words = (*COMMANDS[verb], *(("--python", str(world / "venv")) if verb != "uninstall" else ()))
    begun = time.perf_counter()
    ran(world, *words)
    seconds = time.perf_counter() - begun
    sides.append(snapshot(world))
    said.append(status(world))
    while landed["kills"] < kills:
        fresh(start, world)
        process = started(world, *words)
        threading.Event().wait(chance.uniform(0.1, 1.1) * seconds)
        alone = chance.random() < 0.5
        if process.poll() is None:
            if alone:
                process.kill()
            else:
                os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        code = process.returncode
        if code >= 0:
            assert code == 0, output
            landed["missed"] += 1
            continue
        landed["kills"] += 1
        landed["alone" if alone else "with its children"] += 1
        with kill_sweep.counted(landed):
            judged(world, verb, sides, said, landed, settled=not alone)
    return landed


def judged(
    world: Path,
    verb: str,
    sides: list[dict[str, Any]],
    said: list[tuple[int, tuple[str, ...]]],
    landed: Counter[str],
    *,
    settled: bool,
) -> None:
    """All that must be true after a kill. settled: no pip goes on writing, so what status says can be compared."""
    seen = status(world)
    now = snapshot_of_a_moment(world, settled=settled)
    if settled:
        assert seen == said[sides.index(now)] if now in sides else seen[0] == 1, f"{verb}: status says {seen}"
    landed["killed in a whole state" if now in sides else "killed in between"] += 1
    ran(world, "doctor", codes=(0, 1, 5))
    after = snapshot(world)
    assert after in sides, f"{verb}: {kill_sweep.difference(after, sides)}"
    landed["after" if after == sides[1] else "before"] += 1
    assert status(world) == said[sides.index(after)], f"{verb}: status says {status(world)}"


def build(folder: Path) -> None:
    """A pristine checkout with a real environment."""
    pristine = folder / "pristine"
    for name in ("home", "tmp"):
        (pristine / name).mkdir(parents=True)
    trees.embedded(pristine / "mine")
    make_venv(pristine / "venv", NEEDED)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("kills", nargs="?", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    kill_sweep.go_on = True
    begun = time.time()
    with tempfile.TemporaryDirectory() as scratch:
        build(Path(scratch))
        total: Counter[str] = Counter()
        for number, verb in enumerate(COMMANDS):
            share = options.kills // len(COMMANDS) + (number < options.kills % len(COMMANDS))
            landed = sweep(Path(scratch), verb, share, options.seed)
            total += landed
            print(f"{verb:<12}", ", ".join(f"{what}: {count}" for what, count in sorted(landed.items())), flush=True)
    print(f"{'total':<12}", ", ".join(f"{what}: {count}" for what, count in sorted(total.items())))
    return kill_sweep.verdict(total, time.time() - begun)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
