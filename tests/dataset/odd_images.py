"""A hundred odd image files as people have them, made on the spot: damaged, mislabelled, of strange modes and names."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

SIZE = (320, 256)
EMPTY = b""


def picture(mode: str = "RGB", size: tuple[int, int] = SIZE) -> Any:
    """A gradient with some texture, so that compressed data has a middle that can be damaged."""
    base = Image.effect_noise(size, 60).convert("RGB")
    base.paste((200, 40, 40), (size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 2))
    if mode in ("RGBA", "LA"):
        base = base.convert(mode)
        base.putalpha(Image.linear_gradient("L").resize(size))
        return base
    if mode in ("I;16", "I", "F"):
        return base.convert("L").convert("I" if mode != "F" else "F").convert(mode)
    return base.convert(mode)


def saved(form: str, image: Any = None, **options: Any) -> bytes:
    """The bytes of an image in a format."""
    file = io.BytesIO()
    (picture() if image is None else image).save(file, form, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes, *, right: bool = True) -> bytes:
    """A chunk of a PNG. right: with the checksum that belongs to it."""
    crc = zlib.crc32(kind + data) ^ (0 if right else 1)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png(width: int, height: int, depth: int, colour: int, rows: bytes = b"", *, more: bytes = b"") -> bytes:
    """A PNG by hand, for what Pillow does not write. rows: its pixels, a filter byte before each row."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def with_chunk(extra: bytes) -> bytes:
    """A PNG with one more chunk after its head."""
    data = saved("PNG")
    return data[:33] + extra + data[33:]


def damaged(data: bytes, at: float, change: bytes = b"\x00\xff\x13\x37") -> bytes:
    """The same bytes with some of them overwritten. at: where, as a share of the length."""
    place = int(len(data) * at)
    return data[:place] + change + data[place + len(change) :]


def turned(orientation: int) -> Any:
    """EXIF data that ask for a rotation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def tga() -> bytes:
    """An uncompressed TGA, which has no signature at its beginning."""
    return saved("TGA")


def _pngs() -> Iterator[tuple[str, bytes]]:
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"):
        yield f"png-{mode.replace(';', '')}.png", saved("PNG", picture(mode))
    yield "png-palette-transparent.png", saved("PNG", picture("P"), transparency=3)
    yield "png-rgb16.png", png(64, 64, 16, 2, (b"\x00" + b"\x12\x34" * 3 * 64) * 64)
    yield "png-grey16-alpha.png", png(64, 64, 16, 4, (b"\x00" + b"\x12\x34" * 2 * 64) * 64)
    yield "png-two-bits.png", png(64, 64, 2, 0, (b"\x00" + b"\x1b" * 16) * 64)
    yield "png-animated.png", saved("PNG", save_all=True, append_images=[picture().rotate(90), picture()])
    yield "png-rotated.png", saved("PNG", exif=turned(6))
    yield "png-profile.png", saved("PNG", icc_profile=b"\x00" * 200)
    yield "png-broken-text.png", with_chunk(chunk(b"tEXt", b"a\x00b", right=False))
    yield "png-text-bomb.png", with_chunk(chunk(b"zTXt", b"a\x00\x00" + zlib.compress(b"0" * (80 << 20))))
    yield "png-unknown-chunk.png", with_chunk(chunk(b"kExt", b"ours"))
    yield "png-broken-pixels.png", damaged(saved("PNG"), 0.5)
    yield "png-broken-head.png", damaged(saved("PNG"), 0.0003, b"\x07")
    yield "png-half.png", saved("PNG")[: len(saved("PNG")) // 2]
    yield "png-without-end.png", saved("PNG")[:-12]
    yield "png-cut-by-20.png", saved("PNG")[:-20]
    yield "png-head-only.png", saved("PNG")[:33]
    yield "png-signature-only.png", saved("PNG")[:8]
    yield "png-trailing.png", saved("PNG") + b"more" * 50
    yield "png-no-pixels.png", png(0, 0, 8, 2)
    yield "png-bomb.png", png(60_000, 60_000, 8, 2)
    yield "png-few-rows.png", png(64, 64, 8, 2, (b"\x00" + b"\x10" * 3 * 64) * 30)
    yield "png-one-pixel.png", saved("PNG", picture(size=(1, 1)))
    yield "png-line.png", saved("PNG", picture(size=(6000, 1)))
    yield "png-narrow.png", saved("PNG", picture(size=(8, 4000)))
    yield "png-large.png", saved("PNG", Image.new("L", (9000, 9000)))
    yield "png-very-large.png", saved("PNG", Image.new("1", (11_000, 11_000)))
    yield "png-too-large.png", saved("PNG", Image.new("1", (14_000, 14_000)))


def _jpegs() -> Iterator[tuple[str, bytes]]:
    plain = saved("JPEG")
    yield "jpeg-RGB.jpg", plain
    yield "jpeg-L.jpeg", saved("JPEG", picture("L"))
    yield "jpeg-CMYK.jpg", saved("JPEG", picture("CMYK"))
    yield "jpeg-progressive.jpg", saved("JPEG", progressive=True)
    yield "jpeg-444.jpg", saved("JPEG", subsampling=0, quality=100)
    yield "jpeg-profile.jpg", saved("JPEG", icc_profile=b"\x00" * 200)
    for orientation in (2, 3, 6, 8, 9):
        yield f"jpeg-rotated-{orientation}.jpg", saved("JPEG", exif=turned(orientation))
    yield "jpeg-broken-exif.jpg", saved("JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    yield "jpeg-two-images.jpg", saved("MPO", save_all=True, append_images=[picture()])
    yield "jpeg-half.jpg", plain[: len(plain) // 2]
    yield "jpeg-without-end.jpg", plain[:-2]
    yield "jpeg-cut-by-9.jpg", plain[:-9]
    yield "jpeg-head-only.jpg", plain[:300]
    yield "jpeg-first-bytes.jpg", plain[:4]
    yield "jpeg-damaged.jpg", damaged(plain, 0.6)
    yield "jpeg-progressive-half.jpg", saved("JPEG", progressive=True)[: len(plain) // 2]
    yield "jpeg-trailing.jpg", plain + b"\x00" * 5000
    yield "jpeg-leading.jpg", b"\x00\x00" + plain
    yield "jpeg-huge-in-its-head.jpg", plain.replace(struct.pack(">HH", *SIZE[::-1]), b"\xff\xdc\xff\xdc", 1)


def _others() -> Iterator[tuple[str, bytes]]:
    webp = saved("WEBP")
    yield "webp.webp", webp
    yield "webp-lossless.webp", saved("WEBP", lossless=True)
    yield "webp-alpha.webp", saved("WEBP", picture("RGBA"))
    yield "webp-animated.webp", saved("WEBP", save_all=True, append_images=[picture().rotate(90)])
    yield "webp-rotated.webp", saved("WEBP", exif=turned(6))
    yield "webp-half.webp", webp[: len(webp) // 2]
    yield "webp-head.webp", webp[:20]
    for mode in ("RGB", "L", "P", "1", "RGBA"):
        yield f"bmp-{mode}.bmp", saved("BMP", picture(mode))
    yield "bmp-half.bmp", saved("BMP")[: len(saved("BMP")) // 2]
    yield "bmp-head.bmp", saved("BMP")[:20]


def _mislabelled() -> Iterator[tuple[str, bytes]]:
    for form in ("JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "TGA", "ICO", "PCX", "DDS", "SGI", "ICNS", "EPS", "PDF"):
        yield f"{form.lower()}-as.png", saved(form)
    yield "png-as.jpg", saved("PNG")
    yield "gif-animated-as.jpg", saved("GIF", save_all=True, append_images=[picture().rotate(90)])
    yield "tiff16-as.png", saved("TIFF", picture("I;16"))
    yield "tiff-float-as.png", saved("TIFF", picture("F"))
    yield "tiff-lzw-as.webp", saved("TIFF", compression="tiff_lzw")
    yield "empty.jpg", EMPTY
    yield "empty.png", EMPTY
    yield "text-as.png", b"not an image at all\n"
    yield "page-as.jpg", b"<!DOCTYPE html><html><body>403</body></html>"
    yield "svg-as.png", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    yield "zip-as.png", b"PK\x05\x06" + bytes(18)
    yield "heic-as.jpg", b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(64)
    yield "mp4-as.jpg", b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2" + bytes(64)
    yield "pointer-as.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"
    yield "zeros.png", bytes(4096)


def _names() -> Iterator[tuple[str, bytes]]:
    plain, small = saved("PNG", picture(size=(300, 300))), saved("JPEG", picture(size=(280, 300)))
    for name in (
        *("mixed.Jpg", "capitals.JPG", "capitals.PNG", "capitals.JPEG", "two.png.jpg", "two.jpg.bak"),
        *("picture.gif", "picture.tif", "picture.tiff", "picture.avif", "picture.jxl", "picture.jfif", "picture.jp2"),
        *("picture.heic", "without-extension", ".hidden.png", "-dash.png", "percent %20 #1.png", "space .png"),
        *("[brackets] {a} (1).png", "star * and ? mark.png", "übung 日本語 😀.png", "dot..png", "line\nbreak.png"),
        *("quote'\".png", f"{'long' * 60}.png"),
    ):
        yield name, small if name.lower().endswith(("jpg", "jpeg")) else plain


def make(folder: Path) -> list[Path]:
    """Write all of them, each of another content, and some that are not files. Gives their paths."""
    files = [*_pngs(), *_jpegs(), *_others(), *_mislabelled(), *_names()]
    for name, data in files:
        (folder / name).write_bytes(data)
    (folder / "a-folder.png").mkdir()
    (folder / "link.png").symlink_to(folder / "png-RGB.png")
    (folder / "dangling.png").symlink_to(folder / "nothing.png")
    return [folder / name for name in [*(name for name, _ in files), "a-folder.png", "link.png", "dangling.png"]]
