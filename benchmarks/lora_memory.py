"""What an extraction from two full-size SDXL files keeps in memory, and how long it takes.

    python -m benchmarks.lora_memory [--folder DIR] [-- EXTRACT OPTIONS]

Writes a base and a fine-tune of it (6.9 GB each, float16, random weights and a random difference, see
`benchmarks.sdxl`) in DIR, where they stay for the next run, or in a temporary folder; runs `kohya-ext lora extract`
on them in a process of its own, and samples /proc/PID/status. RssAnon is memory that is the process' own; pages of the
mapped files, which the system takes back when it needs them, are RssFile. Linux only; needs 20 GB of disk.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.sdxl import write_pair

EVERY = 0.01  # seconds between samples
FIELDS = ("RssAnon", "RssFile", "VmHWM")
MIB = 1 << 10  # /proc counts in KiB


def watch(command: Sequence[str]) -> tuple[dict[str, int], float]:
    """Run `command`: (highest value of each field in KiB, seconds). Raises SystemExit when it fails."""
    begin = time.monotonic()
    process = subprocess.Popen(command)
    peaks = dict.fromkeys(FIELDS, 0)
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            break
        for line in lines:
            name, _, value = line.partition(":")
            if name in peaks:
                peaks[name] = max(peaks[name], int(value.split()[0]))
        time.sleep(EVERY)
    if process.wait():
        raise SystemExit(f"ended with {process.returncode}: {' '.join(command)}")
    return peaks, time.monotonic() - begin


def measure(folder: Path, options: Sequence[str]) -> None:
    base, tuned = folder / "base_fp16.safetensors", folder / "tuned_fp16.safetensors"
    if not (base.exists() and tuned.exists()):
        begin = time.monotonic()
        write_pair(base, tuned)
        print(f"made two files of {base.stat().st_size / 1e9:.2f} GB in {time.monotonic() - begin:.0f} s", flush=True)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        words = ["--base", str(base), "--tuned", str(tuned), "--out", str(Path(out) / "full.safetensors"), *options]
        peaks, seconds = watch([sys.executable, "-m", "kohya_ext", "lora", "extract", *words])
    shown = ", ".join(f"{name} {value / MIB:.0f} MiB" for name, value in peaks.items())
    print(f"{seconds:.0f} s; highest: {shown}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="for the two files, which stay there (default: a temporary one)")
    parser.add_argument("options", nargs="*", help="of `lora extract`, after --, e.g. -- --rank 128,16")
    arguments = parser.parse_args()
    if arguments.folder:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        measure(arguments.folder, arguments.options)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), arguments.options)


if __name__ == "__main__":
    main()
