"""SIGKILL at every boundary and at random times, in every verb: nothing in between, nothing lost, nothing left behind.

    python -m tests.install.kill_sweep [KILLS] [--seed N] [--era embedded|submodule|split|bare] [--verb VERB]

A world is a checkout, the environment that runs it and a temporary folder. Every kill hits a fresh copy of one, in the
middle of a verb, from outside and without warning. Then

* each file of Kohya must be a whole old or a whole new one, and the package be there wherever its lines are;
* `status` must tell the truth: no problem only where the world is wholly before or wholly after;
* `doctor` must bring all of it wholly to before or wholly to after, with no file more and no byte less, after which
  `status` says what it says of a world that was never disturbed.

The environment is a folder with the real wheel in it, installed file by file as pip does (`pretended`); `kill_real`
does the same to a real one with the real pip.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kohya_ext import presets
from kohya_ext.checkout.checkout import Checkout, describe
from kohya_ext.checkout.environment import Environment
from kohya_ext.core.errors import KohyaExtError
from kohya_ext.files import atomic
from kohya_ext.install import apply, installed, installer, package, repair, update
from kohya_ext.install import manifest as manifests
from kohya_ext.install.manifest import Known
from kohya_ext.install.worksite import REGISTER
from tests.checkout import pretended, trees, versions
from tests.files import faults

PRESET = "presets/new/ours.json"
PAUSE_SECONDS = 0.001  # at each boundary, so that the time between two writes is hit as often as the writes
OLD, NEW = "0.1.0", "0.2.0"

Act = Callable[["World"], object]


@dataclass(frozen=True)
class World:
    """A folder with everything that a verb may touch."""

    folder: Path

    @property
    def checkout(self) -> Checkout:
        return describe(self.folder / "mine")

    @property
    def environment(self) -> Environment:
        return environment_at(self.folder / "venv")

    @property
    def known(self) -> Known:
        recorded = apply.installed(self.checkout)
        return manifests.known(self.checkout.root, recorded) if recorded else Known(((self.environment, None),))


def environment_at(folder: Path) -> Environment:
    """What `inspect` would say of the environment in `folder`, from its files alone."""
    purelib = folder / "lib" / "site-packages"
    infos = [path.name.removesuffix(".dist-info").split("-") for path in purelib.glob("*.dist-info")]
    return Environment(
        python=folder / "bin" / "python",
        prefix=folder,
        version="3.11.9",
        kind="venv",
        has_pip=True,
        has_ensurepip=True,
        uv=None,
        packages={name.replace("_", "-"): version for name, version in infos},
        modules={"torch": True, "accelerate": True, "kohya_ext": (purelib / "kohya_ext").is_dir()},
        purelib=purelib,
        scripts=folder / "bin",
        writable=True,
        externally_managed=False,
    )


@contextlib.contextmanager
def light() -> Iterator[None]:
    """While this lasts, environments are folders, and no process but git is started."""

    def inspect(python: Path, **_: object) -> Environment:
        return environment_at(python.parent.parent if python.name == "python" else python)

    def collect(checkout: Checkout, **_: object) -> dict[str, bytes]:
        fitted = f'{{"optimizer": "AdaCoor", "for": "{checkout.release}"}}\n'.encode()
        return {PRESET: fitted} if checkout.presets_dir else {}

    with pytest.MonkeyPatch.context() as patch:
        for module in (package, manifests):
            patch.setattr(module, "inspect", inspect)
        for module in (package, installer):
            patch.setattr(module, "package_files", lambda: pretended.SMALL)
        patch.setattr(installer, "run", pretended.run)
        patch.setattr(installed, "_import_fault", lambda *_, **__: None)
        patch.setattr(presets, "collect", collect)
        patch.setattr(os, "fsync", lambda descriptor: None)
        for key, value in {"COUNT": "1", "KEY_0": "protocol.file.allow", "VALUE_0": "always"}.items():
            patch.setenv(f"GIT_CONFIG_{key}", value)
        yield


def install(world: World, patch_set: str = "hook") -> None:
    checkout = world.checkout
    files = presets.collect(checkout)
    apply.install(checkout, patch_set=patch_set, presets=files, environments=[world.environment])


def uninstall(world: World) -> None:
    apply.uninstall(world.checkout, environments=world.known.environments)


def run_update(world: World) -> None:
    update.update(world.checkout, lambda *_: None)


def spoil(world: World) -> None:
    """The package half gone, as an interrupted pip of another time leaves it."""
    install(world)
    shutil.rmtree(world.environment.purelib / "kohya_ext" / "runtime")


def upgrade(world: World) -> None:
    with versions.being(NEW, world.folder.parent):
        install(world)


def older(world: World) -> None:
    with versions.being(OLD, world.folder.parent):
        install(world)


def newer(world: World) -> None:
    upgrade(world)


def nothing(world: World) -> None:
    pass


VERBS: dict[str, tuple[Act, Act]] = {
    "install": (nothing, install),
    "switch": (install, lambda world: install(world, "inline")),
    "uninstall": (install, uninstall),
    "update": (install, run_update),
    "package": (spoil, install),
    "upgrade": (older, newer),
    "downgrade": (newer, older),
}


@contextlib.contextmanager
def version_of(verb: str, folder: Path) -> Iterator[None]:
    """The version that the process is afterwards: that of the verb."""
    chosen = {"upgrade": NEW, "downgrade": OLD}.get(verb)
    with versions.being(chosen, folder) if chosen else contextlib.nullcontext():
        yield


def doctor(world: World) -> None:
    """What the command does."""
    apply.recover(world.checkout)
    update.resume(world.checkout)
    repair.environments(world.checkout, world.known)


def snapshot(world: World) -> dict[str, Any]:
    """Every file of the world with its bytes and mode; what git says; and any trace of ours in git's own folders."""
    seen: dict[str, Any] = {}
    places = re.escape(str(world.folder)).encode()
    for name in ("mine", "venv", "tmp"):
        seen |= {f"{name}/{path}": what for path, what in trees.snapshot(world.folder / name).items()}
    register = world.environment.purelib / REGISTER
    for path in (register, world.environment.scripts / "kohya-ext"):
        if path.exists():  # these name places
            seen[str(path.relative_to(world.folder))] = re.sub(places, b"", path.read_bytes())
    record = world.environment.purelib.glob("kohya_ext-*.dist-info/RECORD")
    seen |= {str(path.relative_to(world.folder)): _without_script(path) for path in record}
    manifest = world.folder / "mine" / ".kohya_ext" / "manifest.json"
    if manifest.exists():
        seen["mine/.kohya_ext/manifest.json"] = re.sub(places, b"", manifest.read_bytes())
    seen["git"] = sorted(trees.git_view(world.folder / "mine").items())
    traces = list((world.folder / "mine" / ".git").rglob("*kohya_ext*"))
    seen["traces in git"] = sorted(str(path.relative_to(world.folder)) for path in traces)
    return seen


def _without_script(path: Path) -> list[str]:
    return [row for row in path.read_text().splitlines() if "bin/kohya-ext" not in row]


def problems(world: World) -> tuple[str, ...]:
    """What `status` says, without the places."""
    found = apply.status(world.checkout, world.known if apply.installed(world.checkout) else None)
    return tuple(sorted(text.replace(str(world.folder), "") for text in found.problems))


@dataclass
class Sweep:
    """One verb: the world that it starts from, its two sides, what `status` says of them, and what it crosses."""

    verb: str
    start: World
    sides: list[dict[str, Any]]
    said: list[tuple[str, ...]]
    crossed: list[str]

    def act(self, world: World) -> None:
        VERBS[self.verb][1](world)


def build(folder: Path, era: str) -> World:
    """A pristine world whose checkout has a newer release to be pulled."""
    origin = trees.BUILDERS[era](folder / "origin")
    trees.git(folder, "clone", "-q", "--recurse-submodules", str(origin), "world/mine")
    shutil.rmtree(folder / "world/mine/.git/hooks", ignore_errors=True)
    trees.write(origin, {".release": "v99.9.0", "new.py": "x = 1\n"})
    trees.commit(origin, "v99.9.0")
    world = World(folder / "world")
    for name in ("venv/lib/site-packages", "venv/bin", "tmp"):
        (world.folder / name).mkdir(parents=True)
    (world.folder / "venv/bin/python").write_text("#!/bin/sh\n")
    return world


def copied(world: World, target: Path) -> World:
    shutil.rmtree(target, ignore_errors=True)
    return World(trees.copy(world.folder, target))


def at_home(world: World) -> None:
    """Temporary files go into the world, where they are seen."""
    tempfile.tempdir = str(world.folder / "tmp")


def prepared(pristine: World, folder: Path, verb: str) -> Sweep:
    first, action = VERBS[verb]
    done = copied(pristine, folder / "copy")  # all of it happens in this one place, which the records name
    with version_of(verb, folder):
        first(done)
        start = copied(done, folder / "start")
        before, said_before = snapshot(done), problems(done)
        crossed = faults.boundaries(lambda: action(done))
        sides = [before, snapshot(done)]
        said = [said_before, problems(done)]
    return Sweep(verb, start, sides, said, crossed)


def judged(sweep: Sweep, world: World, landed: Counter[str], where: str) -> None:
    """All that must be true after a kill at `where`. Raises AssertionError."""
    now = snapshot(world)
    whole_files(sweep, now, where)
    said = problems(world)
    if now in sweep.sides:
        landed["killed in a whole state"] += 1
        assert said == sweep.said[sweep.sides.index(now)], f"{where}: status of a whole world says {said}"
    else:
        landed["killed in between"] += 1
        assert said, f"{where}: status is silent about {difference(now, sweep.sides)}"
    assert snapshot(world) == now, f"{where}: status has written"
    doctor(world)
    after = snapshot(world)
    sides = [*sweep.sides, *healed(sweep)]
    assert after in sides, f"{where}: after doctor {difference(after, sides)}"
    landed["after" if after == sweep.sides[1] else "before"] += 1
    if after in sweep.sides:
        assert problems(world) == sweep.said[sweep.sides.index(after)], where
    doctor(world)
    assert snapshot(world) == after, f"{where}: a second doctor changes something"


def healed(sweep: Sweep) -> list[dict[str, Any]]:
    """A world that was damaged before may also be repaired by doctor: to what the verb would have made of it."""
    return [sweep.sides[1]]


def difference(now: dict[str, Any], sides: list[dict[str, Any]]) -> str:
    texts = []
    for name, side in zip(("before", "after"), sides, strict=False):
        differing = sorted(path for path in {*now, *side} if now.get(path) != side.get(path))
        texts.append(f"{name}: {differing[:6]}")
    return "; ".join(texts)


def whole_files(sweep: Sweep, now: dict[str, Any], where: str) -> None:
    """Each file of Kohya is the whole old or the whole new one."""
    for path in {path for side in sweep.sides for path in side} | set(now):
        mine = path.startswith("mine/") and not path.startswith(("mine/.kohya_ext", "mine/.git/"))
        if mine and not path.endswith(atomic.TEMPORARY_SUFFIX):
            expected = [side.get(path) for side in sweep.sides]
            if sweep.verb == "update":  # git pulls, and our lines are off meanwhile
                continue
            assert now.get(path) in expected, f"{where}: {path}"


def sweep(pristine: World, folder: Path, verb: str, kills: int, seed: int) -> Counter[str]:
    """Kill `verb` at each of its boundaries, then at random times until `kills` have hit; the count of each outcome."""
    chance = random.Random(f"{seed} {verb}")
    landed: Counter[str] = Counter()
    made = prepared(pristine, folder, verb)
    boundaries = list(range(len(made.crossed)))
    if kills < len(boundaries):
        boundaries = sorted(chance.sample(boundaries, kills))
    with version_of(verb, folder):
        for number in boundaries:
            world = copied(made.start, folder / "copy")
            at_home(world)
            assert faults.killed_at(number, partial(made.act, world)), made.crossed[number]
            landed["kills"] += 1
            with counted(landed):
                judged(made, world, landed, f"{verb} killed at {made.crossed[number]!r} ({number})")
        while landed["kills"] < kills:
            world = copied(made.start, folder / "copy")
            at_home(world)
            number, delay = chance.randrange(len(made.crossed)), chance.uniform(0, 3 * PAUSE_SECONDS)
            hit = faults.killed_near(number, delay, partial(made.act, world), slow=PAUSE_SECONDS)
            if hit is None:
                landed["missed"] += 1
                continue
            landed["kills"] += 1
            with counted(landed):
                judged(made, world, landed, f"{verb} killed after {hit}")
    tempfile.tempdir = None
    return landed


def two_at_once(pristine: World, folder: Path, kills: int, seed: int) -> Counter[str]:
    """An install and an uninstall of the same checkout at the same time, and one of them is killed."""
    chance = random.Random(f"{seed} two")
    landed: Counter[str] = Counter()
    world = copied(pristine, folder / "copy")
    sides, said = [snapshot(world)], [problems(world)]
    install(world)
    sides.append(snapshot(world))
    said.append(problems(world))
    patched = copied(world, folder / "patched")
    while landed["kills"] < kills:
        world = copied(chance.choice((pristine, patched)), folder / "copy")
        at_home(world)
        children = []
        for act in chance.sample((install, uninstall), 2):
            children.append(_forked(act, world))
            threading.Event().wait(chance.uniform(0, 0.05))
        threading.Event().wait(chance.uniform(0, 0.25))
        victim = chance.choice(children)
        os.kill(victim, signal.SIGKILL)
        ended = [os.waitpid(child, 0)[1] for child in children]
        if not any(os.WIFSIGNALED(status) for status in ended):
            landed["missed"] += 1
            continue
        landed["kills"] += 1
        with counted(landed):
            assert all(os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0 for status in ended), ended
            now = snapshot(world)
            assert problems(world) == said[sides.index(now)] if now in sides else problems(world), "status is silent"
            landed["killed in a whole state" if now in sides else "killed in between"] += 1
            doctor(world)
            after = snapshot(world)
            assert after in sides, difference(after, sides)
            landed["on" if after == sides[1] else "off"] += 1
            assert problems(world) == said[sides.index(after)]
    tempfile.tempdir = None
    return landed


go_on = False  # count what fails instead of stopping at it


@contextlib.contextmanager
def counted(landed: Counter[str]) -> Iterator[None]:
    """Where the whole sweep is wanted: what fails is printed and counted."""
    try:
        yield
    except (AssertionError, KohyaExtError) as error:
        if not go_on:
            raise
        landed["FAILED"] += 1
        print(f"FAILED: {type(error).__name__}: {error}", flush=True)


def _forked(act: Act, world: World) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        from kohya_ext.files import faultpoints

        faultpoints.listener = lambda name: time.sleep(PAUSE_SECONDS)
        act(world)
        code = 0
    finally:
        os._exit(code)


def shares(kills: int) -> dict[str, int]:
    """How many of `kills` go to each verb."""
    names = [*VERBS, "two at once"]
    return {name: kills // len(names) + (number < kills % len(names)) for number, name in enumerate(names)}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("kills", nargs="?", type=int, default=500)
    parser.add_argument("--era", choices=list(trees.BUILDERS), default="embedded")
    parser.add_argument("--verb", choices=[*VERBS, "two at once"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    global go_on
    go_on = True
    begun = time.time()
    with tempfile.TemporaryDirectory() as scratch, light():
        pristine = build(Path(scratch), options.era)
        total: Counter[str] = Counter()
        wanted = {options.verb: options.kills} if options.verb else shares(options.kills)
        for verb, kills in wanted.items():
            folder = Path(scratch) / verb
            folder.mkdir()
            run = two_at_once(pristine, folder, kills, options.seed) if verb == "two at once" else None
            landed = run if run is not None else sweep(pristine, folder, verb, kills, options.seed)
            total += landed
            print(f"{verb:<12}", ", ".join(f"{what}: {count}" for what, count in sorted(landed.items())), flush=True)
    print(f"{'total':<12}", ", ".join(f"{what}: {count}" for what, count in sorted(total.items())))
    return verdict(total, time.time() - begun)


def verdict(total: Counter[str], seconds: float) -> int:
    """The last line, and the exit code."""
    failed = total["FAILED"]
    said = "0 in between, 0 bytes lost, 0 files left, status true each time" if not failed else f"{failed} FAILED"
    print(f"{said}; {seconds / 3600:.2f} hours", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
