"""SIGKILL at random times between the first and the last write: where they landed, and that nothing was lost.

    python -m tests.install.kill_sweep [KILLS] [--era embedded|submodule|split|bare] [--checkout FOLDER] [--seed N]

Every kill hits a fresh copy of a checkout in the middle of an install, a switch of the patch set, or an uninstall, from
outside and without warning. Then each file of Kohya must be a whole old or a whole new one, and after recovery the tree
must be wholly as before or wholly as after. With --checkout a real checkout is copied instead of a small one.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from kohya_ext.install import apply
from kohya_ext.install.checkout import Checkout, describe
from tests.files import faults
from tests.install import trees

PRESETS = {"presets/new/ours.json": b'{"optimizer": "AdaCoor"}\n'}
PAUSE_SECONDS = 0.002  # at each boundary, so that the time between two writes is hit as often as the writes

VERBS = {
    "install": (
        lambda checkout: None,
        lambda checkout: apply.install(checkout, presets=PRESETS if checkout.presets_dir else {}),
    ),
    "switch": (
        lambda checkout: apply.install(checkout, presets=PRESETS if checkout.presets_dir else {}),
        lambda checkout: apply.install(checkout, patch_set="inline"),
    ),
    "uninstall": (
        lambda checkout: apply.install(checkout, presets=PRESETS if checkout.presets_dir else {}),
        lambda checkout: apply.uninstall(checkout),
    ),
}


def prepared(source: Path, folder: Path, verb: str) -> tuple[Checkout, object, object, float]:
    """The tree that the verb starts from, its two sides, and how long the verb takes from its first write on."""
    first, action = VERBS[verb]
    start = describe(trees.copy(source, folder / "start" / "checkout"))
    first(start)
    before = trees.whole(start.root)
    done = describe(trees.copy(start.root, folder / "done" / "checkout"))
    times: list[float] = []

    def listener(name: str) -> None:
        times.append(time.perf_counter())
        time.sleep(PAUSE_SECONDS)

    with faults.listening(listener):
        action(done)
    return start, before, trees.whole(done.root), times[-1] - times[0]


def sweep(source: Path, verb: str, kills: int, seed: int) -> Counter[str]:
    """Kill `verb` until `kills` kills have hit it; the count of each outcome. Raises AssertionError on any loss."""
    chance = random.Random(seed)
    landed: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        start, before, after, seconds = prepared(source, folder, verb)
        while landed["kills"] < kills:
            shutil.rmtree(folder / "copy", ignore_errors=True)
            checkout = describe(trees.copy(start.root, folder / "copy" / "checkout"))
            hit = faults.killed_after(
                chance.uniform(0, seconds * 1.15),
                lambda checkout=checkout: VERBS[verb][1](checkout),
                slow=PAUSE_SECONDS,
            )
            if hit is None:
                landed["missed: had ended"] += 1
                continue
            landed["kills"] += 1
            landed[stage_of(checkout.root)] += 1
            whole_files(checkout.root, before, after)
            recovery = apply.recover(checkout)
            now = trees.whole(checkout.root)
            assert now in (before, after), f"{verb} killed at {hit}: in between after {recovery}"
            landed["recovered to after" if now == after else "recovered to before"] += 1
            assert apply.recover(checkout) is None
    return landed


def stage_of(root: Path) -> str:
    """What the kill left on the disk."""
    state = root / ".kohya_ext"
    if (state / "done.json").exists():
        return "in clearing up"
    if (state / "journal.json").exists():
        return "among the writes"
    return "in staging" if (state / "staged").exists() else "outside of the journal"


def whole_files(root: Path, before: object, after: object) -> None:
    """Each file of Kohya is the whole old or the whole new one."""
    now = trees.snapshot(root)
    sides = [side[0] for side in (before, after)]  # type: ignore[index]
    for path in {path for side in sides for path in side} | set(now):
        if not path.startswith((".kohya_ext", ".git/")) and not path.endswith(".kohya_ext-tmp"):
            assert now.get(path) in [side.get(path) for side in sides], path


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("kills", nargs="?", type=int, default=500)
    parser.add_argument("--era", choices=list(trees.BUILDERS), default="submodule")
    parser.add_argument("--checkout", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        source = options.checkout or trees.BUILDERS[options.era](Path(scratch) / "template")
        total: Counter[str] = Counter()
        for number, verb in enumerate(VERBS):
            share = options.kills // len(VERBS) + (number < options.kills % len(VERBS))
            landed = sweep(source, verb, share, options.seed + number)
            total += landed
            print(f"{verb:<10}", ", ".join(f"{what}: {count}" for what, count in sorted(landed.items())), flush=True)
    print(f"{'total':<10}", ", ".join(f"{what}: {count}" for what, count in sorted(total.items())))
    print("0 trees in between, 0 bytes lost")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
