"""Run as a process of its own: hold the lock of a folder, say so, and let go when standard input ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from kohya_ext.files import lock


def main(folder: str, child: bool = False) -> None:
    with lock.locked(Path(folder), 0):
        if child:  # it outlives us and holds what we hold
            subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], **lock.handed_on())
        print("held", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], child="--child" in sys.argv[2:])
