"""What a preflight must not do, refused where it is tried: write outside its folder, use the network, start programs.

Python reports such calls to audit hooks before they are made. A hook cannot be removed, so this is for a process of its
own only.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

# event -> positions of the paths that would be changed
_CHANGES: dict[str, tuple[int, ...]] = {
    "os.mkdir": (0,),
    "os.rename": (0, 1),
    "os.remove": (0,),
    "os.rmdir": (0,),
    "os.truncate": (0,),
    "os.link": (1,),
    "os.symlink": (1,),
    "os.chmod": (0,),
    "os.utime": (0,),
    "shutil.rmtree": (0,),
}
_NETWORK = ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname")
_DEVICES = ("/dev/", "/proc/self/", "nul", "NUL")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class ConfinedError(OSError):
    """The script tried what a preflight never does."""


def confine(folder: Path) -> None:
    """From now on this process writes below `folder` only, and connects to nothing.

    Args:
        folder: the temporary folder of this preflight.
    """
    home = os.path.realpath(folder)

    def inside(path: Any) -> bool:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return True  # a descriptor: opened under this rule already
        name = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 - a name that need not exist
        real = os.path.join(os.path.realpath(os.path.dirname(name)), os.path.basename(name))  # noqa: PTH118, PTH119, PTH120
        return real == home or real.startswith(home + os.sep) or real.startswith(_DEVICES)

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = (*args, None, None)[:3]
            writes = isinstance(flags, int) and flags & _WRITING
            if (writes or (isinstance(mode, str) and set(mode) & set("wax+"))) and not inside(path):
                raise ConfinedError(f"a preflight writes nothing outside its temporary folder: {path!r}")
        elif event in _CHANGES:
            for place in _CHANGES[event]:
                if place < len(args) and not inside(args[place]):
                    raise ConfinedError(f"a preflight changes nothing outside its temporary folder: {args[place]!r}")
        elif event in _NETWORK:
            if event == "socket.connect" and isinstance(args[1], (str, bytes)):
                return  # a socket of this machine
            raise ConfinedError("a preflight uses no network")

    sys.addaudithook(watch)
