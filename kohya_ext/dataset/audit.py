"""Everything the guide advises about a data set, and everything that breaks a run, looked up in one pass."""

from __future__ import annotations

import contextlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from kohya_ext.core.errors import KohyaExtError, UsageError
from kohya_ext.dataset import balance, caches, caption_check, layout, masks, texts
from kohya_ext.dataset.buckets import Bucketing, Size
from kohya_ext.dataset.findings import ADVICE, PROBLEM, AuditFinding
from kohya_ext.dataset.images import ImageFile, can_fingerprint, duplicates, look_at
from kohya_ext.dataset.layout import CAPTION_SUFFIX, IMAGE_SUFFIXES, require_extension
from kohya_ext.dataset.tokens import LIMITS, TokenCounter, limit_for

CROPPED = 0.2  # share of an image that the bucket cuts off, from which it is worth a word


@dataclass(frozen=True)
class AuditSettings:
    """What the images are going to be trained with. token: the rare word of the concept, "" when there is none.

    in_json: the metadata of a fine-tune, whose captions are trained in the place of caption files.
    """

    bucketing: Bucketing = field(default_factory=Bucketing)
    token: str = ""
    suffix: str = CAPTION_SUFFIX
    in_json: Path | None = None
    workers: int = os.cpu_count() or 1


@dataclass(frozen=True)
class Audit:
    """What was found. buckets: images in each size. samples: those times their repeats, as Kohya counts.

    tokens: captions under each of Kohya's limits; None beyond them. captions: the line that Kohya reads, by its file.
    """

    folder: Path
    images: tuple[ImageFile, ...]
    findings: tuple[AuditFinding, ...]
    buckets: dict[Size, int]
    samples: dict[Size, int]
    tokens: dict[int | None, int]
    tokens_estimated: bool
    styles: dict[str, int]
    views: dict[str, int]
    near_duplicates_checked: bool
    captions: dict[Path, str]

    @property
    def problems(self) -> int:
        """How many findings break a run."""
        return sum(finding.level == PROBLEM for finding in self.findings)


def audit(
    folder: Path, settings: AuditSettings, tokens: TokenCounter, progress: Callable[[int, int], None] = lambda *_: None
) -> Audit:
    """Look at every image and caption below `folder`. progress: is told (done, all) after each image.

    At most `settings.workers` images are in memory at a time. Raises UsageError when there is none.
    """
    require_extension(settings.suffix)
    files = layout.training_files(folder)
    paths = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES and not layout.is_mask(path)]
    if not paths:
        raise UsageError(f"{folder} contains no image that Kohya reads (png, jpg, jpeg, webp, bmp, avif, jxl)")
    images = tuple(_images(folder, paths, settings.workers, progress))
    listed, in_metadata = caption_check.listed_in(folder, files, settings.in_json)
    alone = settings.in_json is not None
    captions = {} if alone else _captions(folder, paths, settings.suffix)
    if listed:
        of_images = {path: texts.first_line(text) for path, text in listed.captions.items()}
        captions = {path.with_suffix(settings.suffix): line for path, line in of_images.items() if line} | captions
    counts = {path: tokens.count(text) for path, text in captions.items()}
    styles, views = balance.kinds(captions.values(), balance.STYLES), balance.kinds(captions.values(), balance.VIEWS)
    findings = [finding for image in images for finding in image.findings]
    findings += duplicates(images)
    findings += _sizes(images, settings.bucketing)
    findings += in_metadata
    findings += caption_check.check_files(
        folder, files, suffix=settings.suffix, token=settings.token, listed=listed, alone=alone
    )
    sizes = {Path(one.path): (one.width, one.height) for one in images if one.readable}
    findings += layout.check(folder, files)
    findings += caches.check(
        folder, files, {path.with_suffix(""): size for path, size in sizes.items()}, settings.bucketing
    )
    findings += caches.check_texts(folder, files, settings.suffix)
    findings += masks.check(folder, files, sizes)
    findings += _lengths(counts, tokens.estimated)
    findings += balance.advice(sum(image.readable for image in images), styles, views)
    buckets: Counter[Size] = Counter()
    samples: Counter[Size] = Counter()
    for path, times in layout.repeats_in(folder, list(sizes)).items():
        if times:
            bucket = settings.bucketing.place(*sizes[path]).bucket
            buckets[bucket] += 1
            samples[bucket] += times
    return Audit(
        folder,
        images,
        tuple(sorted(findings, key=lambda finding: (finding.level != PROBLEM, finding.path, finding.code))),
        dict(sorted(buckets.items())),
        dict(sorted(samples.items())),
        {limit: count for limit in (*LIMITS, None) if (count := sum(limit_for(n) == limit for n in counts.values()))},
        tokens.estimated,
        styles,
        views,
        can_fingerprint(),
        captions,
    )


def _images(folder: Path, paths: list[Path], workers: int, progress: Callable[[int, int], None]) -> Iterator[ImageFile]:
    """In the order of `paths`. Pillow decodes without holding Python's lock, so threads do."""
    with ThreadPoolExecutor(workers) as pool:
        for done, image in enumerate(pool.map(lambda path: look_at(folder, path), paths), 1):
            progress(done, len(paths))
            yield image


def _captions(folder: Path, paths: list[Path], suffix: str) -> dict[Path, str]:
    """What the captions say, as far as they can be read: the others are findings already."""
    found = {}
    for path in {path.with_suffix(suffix) for path in paths}:
        with contextlib.suppress(KohyaExtError):
            caption = texts.read(folder, path)
            if caption is not None and caption.first_line:
                found[path] = caption.first_line
    return found


def _sizes(images: tuple[ImageFile, ...], bucketing: Bucketing) -> Iterator[AuditFinding]:
    wanted = bucketing.area
    for image in images:
        if not image.readable:
            continue
        size = f"{image.width}x{image.height}"
        area = image.width * image.height
        place = bucketing.place(image.width, image.height)
        if area < wanted:
            target = f"{bucketing.resolution[0]}x{bucketing.resolution[1]}"
            text = f"is {size}, smaller than {target} in area"
            if place.scale > 1 or bucketing.no_upscale:
                factor = math.sqrt(wanted / area)
                yield AuditFinding("too-small", image.path, f"{text}: upscale it {factor:.2f} times yourself")
            else:
                share = f"{1 - area / wanted:.1%}"
                text = f"{text} by {share}, but fills its bucket {place.bucket[0]}x{place.bucket[1]} as it is"
                yield AuditFinding("too-small", image.path, text, ADVICE)
        if 0 in place.bucket:
            yield AuditFinding("no-bucket", image.path, f"is {size}: too narrow for any bucket, Kohya stops at it")
        elif place.cropped > CROPPED:
            text = f"is {size}: {place.cropped:.0%} is cut off for the bucket {place.bucket[0]}x{place.bucket[1]}"
            yield AuditFinding("cropped", image.path, text, ADVICE)


def _lengths(counts: dict[Path, int], estimated: bool) -> Iterator[AuditFinding]:
    for path, count in sorted(counts.items()):
        limit = limit_for(count)
        about = "about " if estimated else ""
        if limit is None:
            yield AuditFinding(
                "too-long", path.as_posix(), f"has {about}{count} tokens: Kohya reads {LIMITS[-1]} at most"
            )
        elif limit != LIMITS[0]:
            text = f"has {about}{count} tokens: set --max_token_length {limit}, or only the first {LIMITS[0]} count"
            yield AuditFinding("long", path.as_posix(), text, ADVICE)
