from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from kohya_ext.dataset import caches
from kohya_ext.dataset.buckets import Bucketing

numpy = pytest.importorskip("numpy")

SIZES = {Path("a"): (1024, 1024)}


def codes(folder: Path, name: str, **settings: int) -> list[str]:
    return [one.code for one in caches.check(folder, [Path(name), Path("a.png")], SIZES, Bucketing(**settings))]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "latents", "original", "expected"),
    [
        ("a.npz", (4, 128, 128), (1024, 1024), []),
        ("a.npz", (4, 32, 32), (512, 512), ["stale-cache"]),
        ("a.npz", (4, 32, 32), (1024, 1024), ["stale-cache"]),
        ("a_1024x1024_sdxl.npz", (4, 128, 128), (1024, 1024), []),
        ("a_1024x1024_sdxl.npz", (4, 64, 64), (1024, 1024), ["stale-cache"]),
        ("a_0512x0512_sdxl.npz", (4, 128, 128), (1024, 1024), ["stale-cache"]),
        ("a_1024x1024_flux.npz", (16, 64, 64), (1024, 1024), []),  # keeps several sizes
        ("a_te_outputs.npz", (4, 1, 1), (1, 1), []),
        ("gone.npz", (4, 1, 1), (1, 1), []),
    ],
)
def test_a_cache_against_its_image(
    tmp_path: Path, name: str, latents: tuple[int, ...], original: tuple[int, int], expected: list[str]
) -> None:
    numpy.savez(
        tmp_path / name, latents=numpy.zeros(latents), original_size=numpy.array(original), crop_ltrb=numpy.zeros(4)
    )
    assert codes(tmp_path, name) == expected


@pytest.mark.parametrize("data", [b"", b"not a zip", b"PK\x03\x04" + b"\0" * 50])
def test_a_damaged_cache(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(data)
    assert codes(tmp_path, "a.npz") == ["damaged-cache"]


def test_no_more_than_headers_are_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("latents.npy", b"\0" * (64 << 20))  # not an array, whatever it unfolds to
    assert codes(tmp_path, "a.npz") == ["damaged-cache"]
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for number in range(caches.MOST_ARRAYS + 1):
            archive.writestr(f"{number}.npy", b"")
    assert codes(tmp_path, "a.npz") == ["damaged-cache"]


@pytest.mark.parametrize("cache", ["a_te_outputs.npz", "a_flux_te.npz", "a_anima_te.npz"])
@pytest.mark.parametrize("age", [-100, 100])
def test_text_caches_that_are_older_than_their_captions(tmp_path: Path, cache: str, age: int) -> None:
    for name in ("a.txt", cache):
        (tmp_path / name).write_text("a dog")
    os.utime(tmp_path / cache, (1_700_000_000, 1_700_000_000))
    os.utime(tmp_path / "a.txt", (1_700_000_000 + age, 1_700_000_000 + age))
    found = [one.path for one in caches.check_texts(tmp_path, [Path("a.txt"), Path(cache)], ".txt")]
    assert found == ([cache] if age > 0 else [])
