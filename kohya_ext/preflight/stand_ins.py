"""What a preflight puts in the place of files that are not available: images, and model files of which only a header is
there.
"""

from __future__ import annotations

import json
import math
import re
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

from kohya_ext.preflight.shapes import checkpoint
from kohya_ext.tensors.header import SIZES as BYTES
from kohya_ext.tensors.header import TensorEntry, encode

SIZES = ((1024, 1024), (1152, 896), (896, 1152), (1344, 768))  # pixels of the images
REPEATS = 10
CAPTIONS = (".txt", ".caption")
FOLDER = f"{REPEATS}_stand-in"
HALF, FLOAT8 = "F16", "F8_E4M3"  # how the published files hold their weights
FAMILIES = {"sdxl": "sdxl", "flux": "flux"}  # how a script's name begins -> whose shapes we know
# the same -> parts with files, and arguments, of their own
PARTS = {"flux": ("ae", "clip_l", "t5xxl"), "sd3": ("clip_l", "clip_g", "t5xxl")}
SD3 = "sd3"
# those with text encoders inside (`sd3_medium_incl_clips`) are not among them
SD3_NAMES = {"sd3.5-medium": r"3.?5.?medium", "sd3.5-large": r"3.?5.?large", "sd3-medium": r"3.?medium(?!_incl)"}
PLAIN = ("train_network", "train_db", "fine_tune", "train_textual_inversion", "train_controlnet", "train_control_net")


def family_of(script: str, *, v2: bool, model: str = "") -> str | None:
    """The family of the models that a script trains, as `shapes.checkpoint` calls it; None for those it has not.

    Args:
        script: its name or path.
        v2: what the argument of that name says.
        model: the file that is missing. SD3's come in three sizes, which only the name of a published one tells apart.
    """
    name = Path(script).stem
    if name.startswith(SD3):
        file = Path(model).stem.casefold()
        return next((family for family, pattern in SD3_NAMES.items() if re.search(pattern, file)), None)
    known = next((family for begin, family in FAMILIES.items() if name.startswith(begin)), None)
    return known or (("sd2" if v2 else "sd1") if name.startswith(PLAIN) else None)


def part_of(script: str, argument: str) -> str | None:
    """The same for a part of a model that an argument names."""
    name = Path(script).stem
    return argument if any(name.startswith(begin) and argument in parts for begin, parts in PARTS.items()) else None


def dtype_of(file: str) -> str:
    """The dtype of a published file's weights, which its name gives away (`t5xxl_fp8_e4m3fn.safetensors`)."""
    return FLOAT8 if "fp8" in Path(file).name.casefold() else HALF


def write_images(folder: Path, *, in_concept: bool) -> Path:
    """A few images of one colour with captions.

    Args:
        folder: is made.
        in_concept: in a folder called REPEATS_NAME, as most tabs want it.

    Returns:
        The folder to train from.
    """
    where = folder / FOLDER if in_concept else folder
    where.mkdir(parents=True)
    for number, (width, height) in enumerate(SIZES):
        (where / f"image{number}.png").write_bytes(_png(width, height))
        for ending in CAPTIONS:
            (where / f"image{number}{ending}").write_text(f"a stand-in, number {number}\n", encoding="utf-8")
    return folder


def write_metadata(file: Path) -> None:
    """Captions and sizes of the images, as the preparation steps of a fine-tune would write them."""
    entries = {
        f"image{number}": {"caption": f"a stand-in, number {number}", "train_resolution": [width, height]}
        for number, (width, height) in enumerate(SIZES)
    }
    file.write_text(json.dumps(entries), encoding="utf-8")


def write_model(file: Path, family: str | None, dtype: str = HALF) -> None:
    """A safetensors file with the header of a full-size model, and no weights on the disk.

    Args:
        file: is made, sparse.
        family: as `family_of` says; None: a file that nobody can read the shapes from.
        dtype: of every weight, as the format calls it.
    """
    entries, place = {}, 0
    shapes: Mapping[str, tuple[int, ...]] = checkpoint(family) if family else {}
    for name, shape in shapes.items():
        end = place + math.prod(shape) * BYTES[dtype]
        entries[name] = TensorEntry(dtype, shape, place, end)
        place = end
    header = encode(entries, {})
    with file.open("wb") as opened:
        opened.write(header)
        opened.truncate(len(header) + place)


def _png(width: int, height: int) -> bytes:
    row = b"\0" + b"\x80\x80\x80" * width

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packed = zlib.compress(row * height, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
