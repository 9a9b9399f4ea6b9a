"""Spoiling one file of the world: bytes, numbers, structure, and what the file is."""

from __future__ import annotations

import json
import os
import random
import re
from pathlib import Path
from typing import Any

HOSTILE_SOURCE = (
    "x = 'a' * 10**10",
    "x = 9**9**9",
    "x = [0]\nfor i in x:\n    x.append(i)",
    "x = [0]\n" + "x = x + x\n" * 60,
    "x = " + "(" * 300,
    "x = " + "-" * 5000 + "1",
    "def f(:",
    "\0",
    "x = '\\ud800'",
    "return 1",
    "break",
    "from x import *",
    "import os\nos.system('touch PWNED')",
    "raise SystemExit(3)",
    "class A(A): pass\nA().b",
    "# -*- coding: utf-7 -*-",
    "y = [0]\n" + "y = [y, y, y, y, y, y]\n" * 30 + "x = f'{y}'",
    "a\n" * 100_000,
    "\ufeff\ufeff",
    "def get_optimizer(*a): pass",
)
HOSTILE_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1e308,
    10**40,
    "",
    "a" * 100_000,
    "\x1b[2J",
    "\udcff",
    [],
    {},
    [[]],
    {"a": {"b": []}},
    "../../x",
    "/dev/zero",
    "NaN",
    "1e999",
    [1] * 1000,
    "\u202e",
    "\0",
)


def spoil(path: Path, chance: random.Random) -> str:
    """Change `path` in one way, and say how."""
    data = path.read_bytes() if path.stat().st_size < 1 << 24 else b""
    kinds = [_bytes, _bytes, _cut, _grown, _numbers, _another]
    if path.suffix == ".json":
        kinds += [_json, _json, _json]
    if path.suffix == ".py":
        kinds += [_source, _source, _source]
    if path.suffix == ".safetensors":
        kinds += [_header, _header, _header]
    kind = chance.choice(kinds)
    if kind is _another:
        return _another_kind(path, chance)
    changed = kind(data, chance)
    path.unlink()  # git shares files between repositories
    path.write_bytes(changed)
    return kind.__name__.strip("_")


def _bytes(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data or b"x")
    for _ in range(chance.choice((1, 1, 2, 8, 64))):
        changed[chance.randrange(len(changed))] = chance.choice((0, 10, 34, 92, 123, 127, 255, chance.randrange(256)))
    return bytes(changed)


def _cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def _grown(data: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(data) + 1)
    return (
        data[:place]
        + chance.choice((b"\0" * 9, b"\xff\xfe", b"[" * 3000, b"{" * 3000, b"\x1b[2J", data, b"9" * 6000))
        + data[place:]
    )


def _numbers(data: bytes, chance: random.Random) -> bytes:
    new = chance.choice((b"0", b"-1", b"99999999999999999999", b"1e999", b"9" * 5000, b"1.5", b"true", b"NaN"))
    found = list(re.finditer(rb"\d+", data))
    if not found:
        return data + new
    one = chance.choice(found)
    return data[: one.start()] + new + data[one.end() :]


def _another(data: bytes, chance: random.Random) -> bytes:
    raise NotImplementedError


def _another_kind(path: Path, chance: random.Random) -> str:
    if ".git" in path.parts:  # git itself would wait for ever, and we for git, a minute
        return "not at all"
    kind = chance.choice(("fifo", "/dev/zero", "folder", "gone", "empty", "itself", "sparse", "unreadable"))
    if kind == "sparse":
        path.unlink()
        with path.open("wb") as file:
            file.truncate(1 << 35)
        return kind
    if kind == "unreadable":
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
        path.chmod(0)
        return kind
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind in ("/dev/zero", "itself"):
        path.symlink_to(path.name if kind == "itself" else kind)
    return kind


def _json(data: bytes, chance: random.Random) -> bytes:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return _bytes(data, chance)
    holders: list[Any] = []

    def gather(node: Any) -> None:
        if isinstance(node, (dict, list)) and node:
            holders.append(node)
            for inner in node.values() if isinstance(node, dict) else node:
                gather(inner)

    gather(document)
    if not holders:
        return json.dumps(chance.choice(HOSTILE_VALUES)).encode()
    holder = chance.choice(holders)
    key = chance.choice(list(holder)) if isinstance(holder, dict) else chance.randrange(len(holder))
    if chance.random() < 0.25:
        del holder[key]
    elif chance.random() < 0.2 and isinstance(holder, dict):
        holder[chance.choice(("\x1b", "", "__proto__", "_about", "a" * 1000, str(key).upper()))] = holder.pop(key)
    else:
        holder[key] = chance.choice(HOSTILE_VALUES)
    return json.dumps(document).encode()


def _source(data: bytes, chance: random.Random) -> bytes:
    lines = data.decode("utf-8", "replace").split("\n")
    for _ in range(chance.choice((1, 1, 3))):
        place = chance.randrange(len(lines))
        what = chance.choice(("insert", "remove", "double", "swap", "indent"))
        if what == "insert":
            indent = re.match(r"\s*", lines[place])
            prefix = indent.group() if indent else ""
            lines.insert(place, "\n".join(prefix + line for line in chance.choice(HOSTILE_SOURCE).split("\n")))
        elif what == "remove":
            del lines[place : place + chance.choice((1, 1, 5))]
        elif what == "double":
            lines.insert(place, lines[place])
        elif what == "swap":
            other = chance.randrange(len(lines))
            lines[place], lines[other] = lines[other], lines[place]
        else:
            lines[place] = "    " + lines[place]
        lines = lines or [""]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _header(data: bytes, chance: random.Random) -> bytes:
    """The header of a safetensors file spoilt as JSON, its length right again more often than not."""
    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= len(data):
        return _bytes(data, chance)
    text = chance.choice((_json, _json, _numbers, _bytes))(data[8 : 8 + length], chance)
    told = len(text) if chance.random() < 0.9 else chance.choice((0, 1, length, 1 << 30, (1 << 64) - 1))
    return told.to_bytes(8, "little") + text + data[8 + length :]
