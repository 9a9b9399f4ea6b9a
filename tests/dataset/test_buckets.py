from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kohya_ext.dataset.buckets import Bucketing, Size

side = st.integers(64, 4096)


@pytest.mark.parametrize(
    ("size", "bucket"),
    [((1024, 1024), (1024, 1024)), ((4000, 3000), (1152, 896)), ((512, 768), (832, 1216)), ((1920, 1080), (1344, 768))],
)
def test_usual_sizes(size: tuple[int, int], bucket: tuple[int, int]) -> None:
    assert Bucketing().place(*size).bucket == bucket


@given(side, side)
def test_a_bucket_is_within_the_area_and_filled(width: int, height: int) -> None:
    placed = Bucketing().place(width, height)
    assert placed.bucket[0] % 64 == placed.bucket[1] % 64 == 0
    assert placed.bucket[0] * placed.bucket[1] <= 1024 * 1024
    assert width * placed.scale >= placed.bucket[0] - 1e-6 and height * placed.scale >= placed.bucket[1] - 1e-6
    assert 0 <= placed.cropped + 1e-9 < 1


@given(side, side)
def test_without_enlarging_nothing_is_enlarged(width: int, height: int) -> None:
    placed = Bucketing(no_upscale=True).place(width, height)
    assert placed.scale <= 1.0 + 1 / width
    assert placed.bucket[0] <= width and placed.bucket[1] <= height
    assert placed.bucket[0] % 64 == placed.bucket[1] % 64 == 0


@pytest.mark.parametrize("resolution", [(64, 64), (1024, 1024), (2048, 64)])
@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000), (100_000_000, 1), (1, 1)])
@pytest.mark.parametrize("no_upscale", [True, False])
def test_images_of_any_shape_have_a_place_or_none(resolution: Size, size: Size, no_upscale: bool) -> None:
    placed = Bucketing(resolution, no_upscale=no_upscale).place(*size)
    assert min(placed.bucket) >= 0 and 0 <= placed.cropped <= 1


def test_a_small_image_keeps_its_size() -> None:
    placed = Bucketing(no_upscale=True).place(700, 500)
    assert placed.bucket == (640, 448) and placed.scale == 1.0


@given(side, side)
def test_turning_an_image_turns_its_bucket(width: int, height: int) -> None:
    one, other = Bucketing(no_upscale=True).place(width, height), Bucketing(no_upscale=True).place(height, width)
    assert abs(one.cropped - other.cropped) < 0.2


def test_buckets_below_the_smallest_side_as_older_releases_have_them() -> None:
    old, new = (Bucketing((512, 768), 320, 1536, 32, below_smallest=below) for below in (True, False))
    assert old.place(1536, 256).bucket == (1536, 256)
    assert min(new.place(1536, 256).bucket) == 320
    assert old.place(800, 700) == new.place(800, 700)
