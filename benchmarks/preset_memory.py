"""What each bundled preset takes on a card, counted by a preflight on a real kohya_ss, and written into its file.

    python -m benchmarks.preset_memory CHECKOUT --python KOHYAS_PYTHON [NAME ...] [--write]

Prints the figures of each preset next to those that its file holds; --write puts them there, and the sentence that is
made of them (`kohya_ext.presets.memory_text`). `docs/generate.py` makes the table of presets and cards of the same
figures. Run it after a change to a preset or to what a preflight counts; a preset takes a minute or two.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kohya_ext.checkout.checkout import describe
from kohya_ext.presets.document import bundled
from kohya_ext.presets.memory_text import figures, memory_text
from kohya_ext.spec.preset_files import ABOUT

PRESETS = Path(__file__).resolve().parents[1] / "presets"


def counted(asked: Sequence[str], python: str, words: Sequence[str] = ()) -> dict[str, Any]:
    """The `memory` of a preflight. Raises SystemExit where there is none.

    Args:
        asked: what it is asked about: a preset and a checkout, or a checkout alone.
        python: that runs Kohya.
        words: a script and its flags, where no preset is named.
    """
    command = [sys.executable, "-m", "kohya_ext", "preflight", *asked, "--only", "memory", "--json"]
    command += ["--python", python, *(("--", *words) if words else ())]
    done = subprocess.run(command, capture_output=True, text=True)
    memory: dict[str, Any] = (json.loads(done.stdout).get("memory") if done.stdout else None) or {}
    if "peak_bytes" not in memory:
        raise SystemExit(
            f"{' '.join((*asked, *words))}: nothing was counted: {memory.get('reason') or done.stderr[-500:]}"
        )
    return memory


def main() -> None:
    """Count, print, and write where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--python", required=True)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    release = f"kohya_ss {describe(arguments.checkout).release}"
    for preset in bundled():
        if arguments.names and preset.name not in arguments.names:
            continue
        file = PRESETS / preset.tab / f"{preset.name}.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        vram = content[ABOUT]["vram"]
        found = figures(counted([preset.name, str(arguments.checkout)], arguments.python), release)
        print(f"{preset.name}: {memory_text(found)}\n  in its file: {vram.get('gib')}", flush=True)
        if arguments.write:
            content[ABOUT]["vram"] = {"tier_gb": vram["tier_gb"], **found, "estimate": memory_text(found)}
            file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
