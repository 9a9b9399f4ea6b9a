"""Images that are not what they look like: large ones, animations without end, formats that start programs."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import pytest

pytest.importorskip("PIL")

from PIL import Image

from kohya_ext.dataset.images import look_at
from kohya_ext.files import image as images
from kohya_ext.files.image import TooManyPixelsError, decoding, opened
from tests.bounds import MEGABYTES, needs_fork, within


def png(width: int, height: int, text: bytes = b"") -> bytes:
    """A PNG that says it is this large and holds one row; with a compressed comment."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    comment = chunk(b"zTXt", b"a\0\0" + zlib.compress(text)) if text else b""
    rows = zlib.compress(bytes(1 + 3 * width))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + comment + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def codes(folder: Path, name: str) -> set[str]:
    return {finding.code for finding in look_at(folder, Path(name)).findings}


def test_what_would_fill_the_memory_is_not_decoded(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(png(10_000, 10_000))
    (tmp_path / "bomb.png").write_bytes(png(60_000, 60_000))
    found = look_at(tmp_path, Path("large.png"))
    assert (found.width, found.height) == (10_000, 10_000)
    assert [finding.code for finding in found.findings] == ["not-decoded"]
    assert codes(tmp_path, "bomb.png") == {"too-large"}
    with (
        opened(tmp_path / "large.png") as image,
        pytest.raises(TooManyPixelsError, match="100 megapixels"),
        decoding(image),
    ):
        pass


def test_a_webp_says_its_size_before_it_is_opened(tmp_path: Path) -> None:
    size = (16_382).to_bytes(3, "little")
    head = b"RIFF" + (100).to_bytes(4, "little") + b"WEBPVP8X" + (10).to_bytes(4, "little") + bytes(4) + size + size
    (tmp_path / "a.webp").write_bytes(head + bytes(80))
    with pytest.raises(TooManyPixelsError), opened(tmp_path / "a.webp"):
        pass
    assert codes(tmp_path, "a.webp") == {"too-large"}


def test_formats_that_start_programs_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    assert codes(tmp_path, "a.png") == {"unreadable"}


def test_a_comment_that_unfolds_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(8, 1, bytes(200 << 20)))
    assert codes(tmp_path, "a.png") == {"unreadable"}


def test_the_frames_of_an_animation_are_not_gone_through(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "green", "blue", "white")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "a.gif").rename(tmp_path / "a.png")
    seen = look_at(tmp_path, Path("a.png"))
    assert "animated" in {finding.code for finding in seen.findings}
    assert any("several frames" in finding.text for finding in seen.findings)


@needs_fork
def test_many_large_images_at_once_share_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import ThreadPoolExecutor

    made = io.BytesIO()
    Image.new("RGB", (4000, 4000), "red").save(made, "PNG")
    for number in range(12):
        (tmp_path / f"{number}.png").write_bytes(made.getvalue())
    monkeypatch.setattr(images, "_account", images._Account(160 << 20))

    def action() -> int:
        with ThreadPoolExecutor(12) as pool:
            found = list(pool.map(lambda number: look_at(tmp_path, Path(f"{number}.png")), range(12)))
        return sum(one.readable and not one.findings for one in found)

    assert MEGABYTES and within(action) == 12
