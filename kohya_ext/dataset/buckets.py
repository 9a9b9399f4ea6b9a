"""The sizes that Kohya would resize and crop images to: its bucketing, in numbers."""

from __future__ import annotations

import bisect
import functools
import math
from dataclasses import dataclass

Size = tuple[int, int]  # width, height in pixels


@dataclass(frozen=True)
class BucketPlacement:
    """Where an image goes. bucket: size it is trained in. scale: factor it is resized by. cropped: share cut off."""

    bucket: Size
    scale: float
    cropped: float


@dataclass(frozen=True)
class Bucketing:
    """Kohya's settings: resolution, smallest and largest side, and the step of sides, all in pixels.

    no_upscale: small images keep their size instead of being enlarged. below_smallest: as up to sd-scripts 0.7.0, where
    the longer side may leave less than `smallest` for the other.
    """

    resolution: Size = (1024, 1024)
    smallest: int = 256
    largest: int = 2048
    step: int = 64
    no_upscale: bool = False
    below_smallest: bool = False

    @property
    def area(self) -> int:
        """Pixels of the resolution, which no bucket exceeds."""
        return self.resolution[0] * self.resolution[1]

    def place(self, width: int, height: int) -> BucketPlacement:
        """The bucket of an image of this size."""
        if self.no_upscale:
            resized = self._reduced(width, height)
            bucket = (resized[0] - resized[0] % self.step, resized[1] - resized[1] % self.step)
            if 0 in resized:  # so narrow that no pixel of its width would be left
                return BucketPlacement(bucket, max(resized[0] / width, resized[1] / height), 1.0)
            kept = (bucket[0] * bucket[1]) / (resized[0] * resized[1])
            return BucketPlacement(bucket, resized[0] / width, 1 - kept)
        bucket = (width, height) if (width, height) in self._sizes else self._nearest(width / height)
        scale = max(bucket[0] / width, bucket[1] / height)  # to fill it, the rest is cut off
        return BucketPlacement(bucket, scale, 1 - (bucket[0] * bucket[1]) / (width * scale * height * scale))

    @functools.cached_property
    def _sizes(self) -> frozenset[Size]:
        """All buckets: for each side that is a multiple of the step, the longest other one within the area."""
        square = int(math.sqrt(self.area)) // self.step * self.step
        found = {(square, square)}
        for side in range(self.smallest, self.largest + 1, self.step):
            other = min(self.largest, self.area // side // self.step * self.step)
            if other >= self.smallest or (self.below_smallest and other):
                found |= {(side, other), (other, side)}
        return frozenset(found)

    @functools.cached_property
    def _by_ratio(self) -> list[tuple[float, Size]]:
        """Of several buckets of one ratio, the smallest first."""
        first: dict[float, Size] = {}
        for size in sorted(self._sizes):
            first.setdefault(size[0] / size[1], size)
        return sorted(first.items())

    def _nearest(self, ratio: float) -> Size:
        place = bisect.bisect(self._by_ratio, ratio, key=lambda entry: entry[0])
        around = self._by_ratio[max(0, place - 1) : place + 1]
        # of two equally near, the one that comes first by its width
        return min((abs(candidate - ratio), size) for candidate, size in around)[1]

    def _reduced(self, width: int, height: int) -> Size:
        """The size within the area, one side a multiple of the step: the one that changes the ratio least."""
        if width * height <= self.area:
            return width, height
        ratio = width / height
        wide = math.sqrt(self.area * ratio)
        by_width = self._stepped(wide)
        by_height = self._stepped(self.area / wide)
        error_by_width = abs(_ratio(by_width, self._stepped(by_width / ratio)) - ratio)
        error_by_height = abs(_ratio(self._stepped(by_height * ratio), by_height) - ratio)
        if error_by_width < error_by_height:
            return by_width, round_half_up(by_width / ratio)
        return round_half_up(by_height * ratio), by_height

    def _stepped(self, length: float) -> int:
        whole = round_half_up(length)
        return whole - whole % self.step


def round_half_up(number: float) -> int:
    """Kohya rounds .5 up, Python's `round` to the even number."""
    return int(number + 0.5)


def _ratio(width: int, height: int) -> float:
    """Kohya divides by zero for images that are 30 times as wide as high; they fit no bucket."""
    return width / height if height else math.inf
