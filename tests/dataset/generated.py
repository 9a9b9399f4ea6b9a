"""A data set made for tests: good images and captions, and one of every fault, each under a name that says it."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path

from PIL import Image

GOOD_CAPTION = "a woman ewpp number {number} wearing a red dress with the letters {letters} on it"
LONG_CAPTION = "a woman ewpp " + " ".join(["walking along the river"] * 30)  # beyond 75 tokens, within 225
Make = Callable[["Builder", Path], None]


class Builder:
    """Makes images of `side` pixels that all look different."""

    def __init__(self, folder: Path, side: int, seed: int = 0) -> None:
        self.folder, self.side = folder, side
        self.random = random.Random(seed)
        folder.mkdir(parents=True, exist_ok=True)

    def image(self, width: int = 0, height: int = 0) -> Image.Image:
        """Soft coloured patches: no two have fingerprints that are near."""
        patches = Image.frombytes("RGB", (12, 12), self.random.randbytes(12 * 12 * 3))
        return patches.resize((width or self.side, height or self.side), Image.Resampling.BICUBIC)

    def save(
        self, path: Path, image: Image.Image | None = None, caption: str | bytes | None = "", **how: object
    ) -> None:
        """An image and its caption; None for no caption, "" for a good one."""
        (image or self.image()).save(path, **how)
        if caption is None:
            return
        letters = "".join(self.random.choices("abcdefgh", k=6))
        text = caption or GOOD_CAPTION.format(number=self.random.randrange(1000), letters=letters)
        path.with_suffix(".txt").write_bytes(text if isinstance(text, bytes) else text.encode())

    def good(self, count: int) -> None:
        """Images and captions with nothing wrong, in every format."""
        for number in range(count):
            suffix = (".png", ".jpg", ".webp", ".bmp", ".jpeg")[number % 5]
            self.save(self.folder / f"good {number:04}{suffix}")


def _cut(builder: Builder, path: Path) -> None:
    builder.save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def _empty(builder: Builder, path: Path) -> None:
    builder.save(path)
    path.write_bytes(b"")


def _no_image(builder: Builder, path: Path) -> None:
    builder.save(path)
    path.write_bytes(b"this is not an image at all" + builder.random.randbytes(1000))


def _caption(text: str | bytes | None) -> Make:
    return lambda builder, path: builder.save(path, caption=text)


def _transparent(builder: Builder, path: Path) -> None:
    image = builder.image().convert("RGBA")
    image.putpixel((3, 3), (0, 0, 0, 0))
    builder.save(path, image)


def _animated(builder: Builder, path: Path) -> None:
    builder.save(path, builder.image(), save_all=True, append_images=[builder.image()])


def _rotated(builder: Builder, path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    builder.save(path, exif=exif)


def _sixteen_bits(builder: Builder, path: Path) -> None:
    builder.save(path, builder.image().convert("L").convert("I").point(lambda value: value * 256).convert("I;16"))


def _misnamed(builder: Builder, path: Path) -> None:
    written = io.BytesIO()
    builder.image().save(written, "JPEG")
    builder.save(path)
    path.write_bytes(written.getvalue())


def _duplicate(builder: Builder, path: Path) -> None:
    first = path.with_name(f"a good twin of {path.name}")
    builder.save(first)
    builder.save(path)
    path.write_bytes(first.read_bytes())


def _near(builder: Builder, path: Path) -> None:
    image = builder.image()
    builder.save(path.with_name(f"good near {path.name}"), image)
    smaller = image.resize((image.width + 32, image.height + 32))
    builder.save(path, smaller, quality=60)


def _orphan(builder: Builder, path: Path) -> None:
    path.with_suffix(".txt").write_text("a caption that lost its image")


# code of the finding -> how to make a file that has it, and the extensions to make it with
FAULTS: dict[str, tuple[Make, tuple[str, ...]]] = {
    "truncated": (_cut, (".jpg", ".png")),
    "unreadable": (_no_image, (".jpg", ".webp")),
    "empty-file": (_empty, (".png",)),
    "animated": (_animated, (".webp", ".png")),
    "cmyk": (lambda builder, path: builder.save(path, builder.image().convert("CMYK")), (".jpg",)),
    "16-bit": (_sixteen_bits, (".png",)),
    "rotated": (_rotated, (".jpg",)),
    "transparent": (_transparent, (".png", ".webp")),
    "wrong-extension": (_misnamed, (".png",)),
    "too-small": (lambda b, path: b.save(path, b.image(b.side // 2, b.side // 2)), (".png", ".jpg")),
    "cropped": (lambda b, path: b.save(path, b.image(b.side * 12, b.side)), (".jpg",)),
    "duplicate": (_duplicate, (".png", ".jpg")),
    "near-duplicate": (_near, (".jpg",)),
    "no-caption": (_caption(None), (".png", ".jpg")),
    "empty-caption": (_caption(b" \n"), (".png",)),
    "unreadable-caption": (_caption(b"caf\xe9 ewpp"), (".png",)),
    "byte-order-mark": (_caption(b"\xef\xbb\xbfa woman ewpp in a dress"), (".png",)),
    "slip": (_caption("a woman ewpp  in a dress"), (".png",)),
    "tag-list": (_caption("1girl, ewpp, solo, long hair, smile, red dress"), (".png",)),
    "view": (_caption("a close-up of a woman ewpp"), (".png",)),
    "background": (_caption("a woman ewpp, blurred background"), (".png",)),
    "no-token": (_caption("a woman in a dress"), (".png",)),
    "token-first": (_caption("ewpp woman in a dress"), (".png",)),
    "long": (_caption(LONG_CAPTION), (".png",)),
    "too-long": (_caption(f"{LONG_CAPTION} {LONG_CAPTION} {LONG_CAPTION}"), (".png",)),
    "no-image": (_orphan, (".png",)),
}


OF_CAPTIONS = {
    "empty-caption", "unreadable-caption", "byte-order-mark", "slip", "tag-list", "view", "background", "no-token",
    "token-first", "long", "too-long", "no-image",
}  # fmt: skip


def planted(builder: Builder, rounds: int) -> set[tuple[str, str]]:
    """`rounds` of every fault in every extension; (code, path) of each."""
    expected = set()
    for code, (make, suffixes) in FAULTS.items():
        for number in range(rounds):
            for suffix in suffixes:
                path = builder.folder / f"{code} {number} {suffix[1:]}{suffix}"
                make(builder, path)
                expected.add((code, path.with_suffix(".txt").name if code in OF_CAPTIONS else path.name))
    return expected
