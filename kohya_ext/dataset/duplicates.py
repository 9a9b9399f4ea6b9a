"""Images that are the same, and images that look it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from kohya_ext.dataset.findings import ADVICE, AuditFinding
from kohya_ext.dataset.picture import Picture

BITS = 64
NEAR = 6  # bits of 64 in which fingerprints of images that look alike differ at most: resized, recompressed, brighter


def duplicates(pictures: Sequence[Picture]) -> Iterator[AuditFinding]:
    """Every later copy of a file, and every later image that looks like an earlier one."""
    copies: dict[str, Picture] = {}
    distinct = []
    for picture in pictures:
        first = copies.setdefault(picture.digest, picture) if picture.digest else picture
        if first is picture:
            distinct.append(picture)
        else:
            yield AuditFinding("duplicate", picture.path, f"is the same file as {first.path}", other=first.path)
    for first, other, bits in _near(distinct):
        yield AuditFinding(
            "near-duplicate", other.path, f"looks like {first.path} ({bits} of {BITS} bits differ)", ADVICE, first.path
        )


def _near(pictures: Iterable[Picture]) -> Iterator[tuple[Picture, Picture, int]]:
    """Pairs that differ in at most NEAR bits. Two such agree in at least one of NEAR + 1 bands, so few are compared."""
    bands = [(BITS * band // (NEAR + 1), BITS * (band + 1) // (NEAR + 1)) for band in range(NEAR + 1)]
    seen: list[dict[int, list[Picture]]] = [defaultdict(list) for _ in bands]
    for picture in pictures:
        fingerprint = picture.fingerprint
        if fingerprint is None:
            continue
        keys = [(fingerprint >> low) & ((1 << (high - low)) - 1) for low, high in bands]
        candidates = {id(one): one for table, key in zip(seen, keys, strict=True) for one in table[key]}
        best = min(
            (
                (bin(fingerprint ^ (one.fingerprint or 0)).count("1"), place)
                for place, one in enumerate(candidates.values())
            ),
            default=(BITS, 0),
        )
        if best[0] <= NEAR:
            yield list(candidates.values())[best[1]], picture, best[0]
        for table, key in zip(seen, keys, strict=True):
            table[key].append(picture)
