"""One input after another, each in a fork that is stopped when it takes too long or too much memory."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import resource
import shlex
import shutil
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from kohya_ext.cli import main as cli
from kohya_ext.core.errors import ConflictError
from kohya_ext.install import installer
from tests.bounds import EXPIRED, MEGABYTES, SECONDS, address_space, limit_time
from tests.checkout import pretended
from tests.fuzz import mutate
from tests.fuzz.verbs import SLOW, arguments, verbs
from tests.fuzz.world import World, differing, snapshot

UNCHANGED = (2, 3, 4)  # exit codes after which nothing may have changed
CODES = range(6)
CRASHED = 99
SPOILT = 0.45  # share of the inputs before which a file is spoilt
ENCODINGS = ("utf-8", "utf-8", "utf-8", "ascii", "latin-1", "cp1252")
DOCUMENTS = (("prompts",), ("card",))  # what these print is somebody's file
WITH_TORCH = ("lora", "grid", "demo")
RELEVANT = {  # what of the world a group of verbs reads
    "captions": ("images", "edited", "cut short"),
    "audit": ("images", "cut short"),
    "prompts": ("images", "edited"),
    "lora": ("models",),
    "card": ("models", "files"),
    "grid": ("models", "files"),
    "base-model": ("models",),
}


@dataclass(frozen=True)
class Input:
    """One command line, in a world of which one file is spoilt, or none."""

    number: int
    line: tuple[str, ...]
    spoilt: str
    how: str
    encoding: str
    cwd: str

    def __str__(self) -> str:
        spoilt = f" with {self.spoilt!a} spoilt ({self.how})" if self.spoilt else ""
        return f"#{self.number}: kohya-ext {shlex.join(self.line)!a} in {self.cwd!r}, {self.encoding}{spoilt}"


@dataclass
class Tally:
    """What came of all inputs. faults: the inputs that broke a promise, each with what it did."""

    codes: Counter[int] = field(default_factory=Counter)
    verbs: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    largest: int = 0
    faults: list[str] = field(default_factory=list)


def fuzz(world: World, seed: int, count: int, *, first: int = 0, log: Path | None = None) -> Tally:
    """Try `count` inputs from number `first` on; each depends on `seed` and its number alone."""
    tally, known = Tally(), verbs()
    names, files = list(known), world.mutable()
    out, err = world.root.with_name("stdout"), world.root.with_name("stderr")
    chances = {number: random.Random(f"{seed}:{number}") for number in range(first, first + count)}
    shares = [SLOW.get(name, 1.0) for name in names]
    words = {number: chance.choices(names, shares)[0] for number, chance in chances.items()}
    gc.freeze()  # what is here now need not be looked through, and copied, in each fork
    for number in sorted(words, key=lambda number: words[number][0] in WITH_TORCH):
        if words[number][0] in WITH_TORCH:
            _import_torch()
        one = _prepared(world, number, words[number], chances[number], known, files)
        before = world.spoilt(one.spoilt) if one.spoilt else world.whole
        began = time.monotonic()
        status, megabytes = _run(world, one, out, err)
        seconds = time.monotonic() - began
        after = snapshot(world.root)
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
        tally.codes[code] += 1
        tally.verbs[" ".join(one.line[:1])] += 1
        tally.slowest, tally.largest = max(tally.slowest, seconds), max(tally.largest, megabytes)
        told = out.read_bytes() + err.read_bytes()
        for fault in _faults(one, code, seconds, megabytes, told, differing(before, after)):
            text = f"{one}\n  {fault}\n  {told[-1500:].decode('utf-8', 'replace')!a}"
            tally.faults.append(text)
            if log is not None:
                with log.open("a", encoding="utf-8") as file:
                    file.write(f"seed {seed} {text}\n")
        world.restore(after)
    gc.unfreeze()
    return tally


def _import_torch() -> None:
    """Before the forks, so that not every one has to."""
    with contextlib.suppress(ImportError):
        import kohya_ext.lora.extract
        import kohya_ext.lora.resize  # noqa: F401


def _prepared(
    world: World, number: int, words: tuple[str, ...], chance: random.Random, known: Any, files: list[str]
) -> Input:
    line = arguments(words, known[words], chance, world.places)
    spoilt = how = ""
    if chance.random() < SPOILT:
        spoilt = _spoilable(words, line, chance, files)
        try:
            how = mutate.spoil(world.root / spoilt, chance)
        except OSError as error:
            how = f"not at all: {error}"
    cwd = chance.choice(("", "", "", "gui", "installed", "images"))
    line = [
        f"{'../' if cwd else ''}{word}" if cwd and os.path.lexists(world.root / word) and word else word
        for word in line
    ]
    return Input(number, tuple(line), spoilt, how, chance.choice(ENCODINGS), cwd)


def _is_place(world: World, word: str) -> bool:
    return word.startswith("out/") or os.path.lexists(world.root / word)


def _spoilable(words: tuple[str, ...], line: list[str], chance: random.Random, files: list[str]) -> str:
    """A file that the command line names or leads to, most of the time."""
    roots = RELEVANT.get(words[0]) or tuple(word for word in line if word)
    near = [name for name in files if name.startswith(tuple(f"{root}/" for root in roots)) or name in line]
    read = [
        name for name in near if name.endswith((".py", ".json", ".toml", "requirements.txt")) or ".kohya_ext" in name
    ]
    if chance.random() < 0.1 or not near:
        return chance.choice(files)
    return chance.choice(read if read and chance.random() < 0.6 else near)


def _faults(one: Input, code: int, seconds: float, megabytes: int, told: bytes, changed: list[str]) -> list[str]:
    found = []
    if -code in EXPIRED:
        found.append(f"took more than {SECONDS} s of the processor, or hung")
    elif code < 0:
        found.append(f"died of signal {-code}")
    elif code not in CODES:
        found.append(f"ended with {code}")
    if b"internal error" in told or b"Traceback (most recent" in told:
        found.append("internal error")
    if megabytes >= MEGABYTES:
        found.append(f"took {megabytes} MB")
    if changed and b"the fuzzer does not train" in told:
        changed = []
    if changed and (code in UNCHANGED or ("--dry-run" in one.line and code in (0, 1))):
        found.append(f"ended with {code} and changed {changed[:5]!a}")
    if one.line[:1] not in DOCUMENTS and (b"\x1b" in told or "\u202e".encode() in told):
        found.append("steered the terminal")
    return found


def _run(world: World, one: Input, out: Path, err: Path) -> tuple[int, int]:
    """The status of the child, and the megabytes that it or a child of its own had at most."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _be_the_command(world, one, out, err)
    _, status, usage = os.wait4(child, 0)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)  # what it may have started
    return status, usage.ru_maxrss // 1024


def _be_the_command(world: World, one: Input, out: Path, err: Path) -> NoReturn:
    code: Any = CRASHED
    try:
        os.setsid()
        limit_time(SECONDS)
        limit = address_space() + (2 * MEGABYTES << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        os.chdir(world.root / one.cwd)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for path, number in ((out, 1), (err, 2)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding=one.encoding, errors="strict", newline="", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding=one.encoding, errors="strict", newline="", closefd=False)  # noqa: SIM115
        installer.run = pretended.run
        if one.line[:1] == ("demo",):
            _no_training()
        else:
            sys.executable = str(world.python)
        socket.socket.connect = _no_network  # type: ignore[method-assign]
        try:
            code = cli.main(list(one.line))
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        os.write(2, traceback.format_exc().encode("ascii", "backslashreplace"))
        code = CRASHED
    finally:
        os._exit(code if isinstance(code, int) and 0 <= code < 256 else CRASHED)


def _no_training() -> None:
    """All of the demo but its minute of training."""
    from kohya_ext.demo import run

    def refuse(*_: object) -> None:
        raise ConflictError("the fuzzer does not train")

    vars(run)["train"] = refuse


def _no_network(*_: object) -> None:
    raise OSError(101, "Network is unreachable")


def clear(world: World) -> None:
    """Remove the world."""
    for path in (world.root, world.pristine):
        shutil.rmtree(path, ignore_errors=True)
