"""How long the audit of a large data set takes: images of 12 megapixels with captions, one format after another.

    python -m benchmarks.audit [--jpeg 1000] [--png 100] [--webp 100] [--folder DIR]

The images look like photographs to a codec (smooth patches, edges, a little grain; a JPEG has about 3.5 MB), no two
are alike. They are made beforehand, in DIR, where they stay for the next run, or in a temporary folder, and are in the
system's cache as files that were just copied do. What is timed is the command, in a process of its own.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from PIL import Image, ImageChops

WIDTH, HEIGHT = 4000, 3000
FORMATS = {
    "jpeg": (".jpg", {"quality": 92}),
    "png": (".png", {"compress_level": 1}),
    "webp": (".webp", {"quality": 85}),
}


def image(seed: int) -> Image.Image:
    """Patches at two sizes, and grain."""
    chance = random.Random(seed)
    coarse, fine = (
        Image.frombytes("RGB", size, chance.randbytes(3 * size[0] * size[1])) for size in ((8, 6), (200, 150))
    )
    patches = Image.blend(coarse.resize((800, 600), Image.Resampling.BICUBIC), fine.resize((800, 600)), 0.25)
    grain = ImageChops.offset(_grain(), chance.randrange(WIDTH), chance.randrange(HEIGHT))
    return ImageChops.add(patches.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR), grain)


@functools.cache
def _grain() -> Image.Image:
    levels = bytes(value & 15 for value in range(256))
    noise = random.Random(0).randbytes(WIDTH * HEIGHT).translate(levels)
    return Image.frombytes("L", (WIDTH, HEIGHT), noise).convert("RGB")


def save(path: Path, seed: int, how: dict[str, int]) -> None:
    if path.exists():
        return
    waiting = path.with_name(f"_{path.name}")
    image(seed).save(waiting, **how)
    waiting.rename(path)
    path.with_suffix(".txt").write_text(f"a woman ewpp in dress number {seed}\n")


def make(folder: Path, kind: str, count: int) -> None:
    suffix, how = FORMATS[kind]
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        running = [
            pool.submit(save, folder / f"{number:04}{suffix}", hash_of(kind, number), how) for number in range(count)
        ]
        for one in running:
            one.result()


def hash_of(kind: str, number: int) -> int:
    """Another image for each number and format."""
    return 10_000 * list(FORMATS).index(kind) + number


def measure(folder: Path, kind: str, count: int) -> None:
    make(folder, kind, count)
    files = [path for path in folder.iterdir() if path.suffix == FORMATS[kind][0]]
    size = sum(path.stat().st_size for path in files) / len(files) / 1e6
    begin, worked = time.perf_counter(), _cpu()
    command = [sys.executable, "-m", "kohya_ext", "audit", str(folder), "--token", "ewpp", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    seconds, worked = time.perf_counter() - begin, _cpu() - worked
    if done.returncode not in (0, 1):
        raise SystemExit(f"the audit ended with {done.returncode}")
    each = 1000 * worked / len(files)
    print(
        f"{kind:5} {len(files)} images of {size:.1f} MB: {seconds:.1f} s; processor time {worked:.1f} s, "
        f"{each:.0f} ms each",
        flush=True,
    )


def _cpu() -> float:
    """Processor seconds of all processes that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for kind, count in (("jpeg", 1000), ("png", 100), ("webp", 100)):
        parser.add_argument(f"--{kind}", type=int, default=count, metavar="N", help=f"how many (default {count})")
    parser.add_argument("--folder", type=Path, help="for the images, which stay there (default: a temporary one)")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, images of {WIDTH}x{HEIGHT}")
    with tempfile.TemporaryDirectory() as temporary:
        for kind in FORMATS:
            if count := getattr(arguments, kind):
                measure((arguments.folder or Path(temporary)) / kind, kind, count)


if __name__ == "__main__":
    main()
