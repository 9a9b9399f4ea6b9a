"""Captions from file names, file names from captions, and the edits that go through all captions of a folder."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from kohya_ext.core.errors import ConflictError, UsageError
from kohya_ext.dataset import caches, texts
from kohya_ext.dataset.history import EditPlan
from kohya_ext.dataset.layout import (
    CAPTION_SUFFIX,
    CAPTION_SUFFIXES,
    IMAGE_SUFFIXES,
    MASK_FOLDERS,
    files_in,
    images_in,
    is_mask,
    require_extension,
)
from kohya_ext.dataset.names import caption_of, is_camera_name, name_of, series_of
from kohya_ext.dataset.substitute import LARGEST, SECONDS, BadExpressionError, TooSlowError, substituted

ROOM_FOR_NUMBER = len(" (9999)")
# What lies next to an image under its name and has to keep it: captions of both kinds, cached latents.
COMPANIONS = (*CAPTION_SUFFIXES, caches.SUFFIX)  # and the caches with more in their names
BLANK = "the first line is empty, and Kohya reads no other"
SAYS_NOTHING = (
    "the name of its image comes from a camera or a program: name the image after what it shows, "
    "or write this caption by hand"
)


def from_names(
    folder: Path, *, recursive: bool = False, overwrite: bool = False, keep_suffix: bool = False, suffix: str = ""
) -> EditPlan:
    """A caption next to each image, saying what its name says. Captions that exist stay unless `overwrite`.

    Names that cameras and programs gave are kept out of captions, and reported.

    suffix: of caption files, `.txt` when empty. Raises UsageError without any image.
    """
    plan = EditPlan("captions")
    groups = _captions_of(folder, recursive, suffix or CAPTION_SUFFIX)
    series = series_by_folder(groups)
    for path, images in groups.items():
        text = caption_of(images[0].stem, keep_suffix=keep_suffix, series=series[path.parent])
        if not _is_text(text):
            plan.keep(path, "the name of its image is not UTF-8: rename it")
            continue
        if (folder / path).is_symlink():
            plan.keep(path, "is a link")
            continue
        if not overwrite and (folder / path).exists():
            plan.keep(path, "exists")
            continue
        if is_camera_name(images[0].stem):
            plan.keep(path, SAYS_NOTHING)
            continue
        before = texts.read(folder, path)
        if before is not None and before.text == text:
            plan.unchanged += 1
            continue
        after = texts.fresh(folder, path, text, before)
        plan.write(path, before.state if before else None, after, (before.text if before else None, text))
    return plan


def prefixed(folder: Path, text: str, *, recursive: bool = False, suffix: str = "", remove: bool = False) -> EditPlan:
    """`text` in front of each caption that does not begin with it yet; with `remove`, taken away from those that do."""
    if not text:
        raise UsageError("the prefix is empty: give the text to prepend")
    _require_text(text)

    def edit(found: dict[Path, str]) -> list[str]:
        if remove:
            return [old.removeprefix(text) for old in found.values()]
        return [old if old.startswith(text) else text + old for old in found.values()]

    return _edited(folder, "captions prefix", edit, recursive, suffix, skip_blank=True)


def replaced(
    folder: Path,
    old: str,
    new: str,
    *,
    recursive: bool = False,
    suffix: str = "",
    regex: bool = False,
    ignore_case: bool = False,
    words: bool = False,
) -> EditPlan:
    r"""Every `old` in the captions becomes `new`.

    regex: `old` is a regular expression, `new` may name its groups (\1). words: only where `old` stands as whole
    words. Raises UsageError for an expression that is none.
    """
    if not old:
        raise UsageError("the text to replace is empty")
    _require_text(new)
    pattern = old if regex else re.escape(old)
    if words:
        pattern = rf"(?<!\w)(?:{pattern})(?!\w)"

    def edit(found: dict[Path, str]) -> list[str]:
        if regex:
            return _by_expression(old, pattern, new, found, ignore_case)
        literal = re.compile(pattern, re.IGNORECASE if ignore_case else 0)
        return [_by_text(literal, new, path, text) for path, text in found.items()]

    return _edited(folder, "captions replace", edit, recursive, suffix)


def _by_expression(old: str, pattern: str, new: str, found: dict[Path, str], ignore_case: bool) -> list[str]:
    try:
        return substituted(pattern, new, list(found.values()), ignore_case=ignore_case)
    except BadExpressionError as error:
        raise UsageError(f"{old!r} -> {new!r} is not a regular expression: {error}; nothing was changed") from error
    except TooSlowError as error:
        path = [*found, "the captions"][error.reached]
        raise UsageError(
            f"the regular expression {old!r} was still running on {path} after {SECONDS:.0f} s; nothing was changed. "
            "Nested repetitions such as (a+)+ can take forever: write a single one"
        ) from error
    except OSError as error:
        raise ConflictError(
            f"cannot start a process for the regular expression: {error}; nothing was changed"
        ) from error


def _by_text(literal: re.Pattern[str], new: str, path: Path, text: str) -> str:
    if len(text) + len(new) * sum(1 for _ in literal.finditer(text)) > LARGEST:
        raise UsageError(f"{path} would have more than {LARGEST} characters; nothing was changed")
    return literal.sub(lambda _: new, text)


def to_names(folder: Path, *, recursive: bool = False, suffix: str = "") -> EditPlan:
    """Each image gets its caption as its name, and what lies next to it under the same name goes with it.

    Names that are taken get " (2)" and so on, which `from_names` removes again.
    """
    plan = EditPlan("captions to-names")
    moves: list[tuple[Path, Path]] = []
    taken: dict[Path, set[str]] = defaultdict(set)
    outside = _masks_outside(folder)
    groups = _captions_of(folder, recursive, suffix or CAPTION_SUFFIX)
    series = series_by_folder(groups)
    attached = _attached(folder, {path.with_suffix("") for path in groups})
    members = {
        path: [*_members(folder, path, images, suffix), *attached[path.with_suffix("")]]
        for path, images in groups.items()
    }
    ours = {member for group in members.values() for member in group}
    for file in files_in(folder, recursive=recursive):
        if file not in ours:
            taken[file.parent].add(file.stem.casefold())
    wanted: list[tuple[Path, str]] = []
    for path in groups:
        extension = max(len(_rest(member, path).encode()) for member in members[path])
        name = _name_for(plan, folder, path, extension, series[path.parent])
        if name is None or name == path.stem:
            plan.unchanged += name is not None
            taken[path.parent].add(path.stem.casefold())
        else:
            wanted.append((path, name))
    for path, name in wanted:
        free = next(stem for stem in _numbered(name) if stem.casefold() not in taken[path.parent])
        taken[path.parent].add(free.casefold())
        if free == path.stem:
            plan.unchanged += 1
            continue
        moves += [(member, member.with_name(free + _rest(member, path))) for member in members[path]]
        for mask in outside.get(path.stem, ()):
            plan.note(
                path, f"its mask {mask.as_posix()} is outside of the folder and keeps its name: rename it to {free}"
            )
    _order(plan, moves)
    return plan


def series_by_folder(paths: Iterable[Path]) -> dict[Path, frozenset[str]]:
    """What `series_of` finds in each folder of `paths`."""
    stems: dict[Path, list[str]] = defaultdict(list)
    for path in paths:
        stems[path.parent].append(path.stem)
    return {parent: series_of(names) for parent, names in stems.items()}


def _captions_of(folder: Path, recursive: bool, suffix: str) -> dict[Path, list[Path]]:
    """Each caption file there should be, with the images (`a.jpg` and `a.png`) that share it."""
    require_extension(suffix)
    groups: dict[Path, list[Path]] = defaultdict(list)
    for image in images_in(folder, recursive=recursive):
        if is_mask(image):  # Kohya reads no captions for these
            continue
        groups[image.with_suffix(suffix)].append(image)
    if not groups:
        deeper = "" if recursive else "; --recursive looks into its folders too"
        raise UsageError(f"{folder} contains no image that Kohya reads (png, jpg, jpeg, webp, bmp, avif, jxl){deeper}")
    return dict(groups)


def _is_text(text: str) -> bool:
    """False when half a surrogate pair is in it, as for a byte of a name that is not UTF-8."""
    return not re.search("[\ud800-\udfff]", text)


def _require_text(text: str) -> None:
    if not _is_text(text):
        raise UsageError(f"{text!r} is not UTF-8 text, as captions are; nothing was changed")


def _edited(
    folder: Path,
    verb: str,
    edit: Callable[[dict[Path, str]], list[str]],
    recursive: bool,
    suffix: str,
    *,
    skip_blank: bool = False,
) -> EditPlan:
    """edit: gives the new text of each caption, in the order of the old ones.

    skip_blank: leave captions alone whose text only begins after a blank line, for the first line alone is trained.
    """
    plan = EditPlan(verb)
    captions: dict[Path, texts.Caption] = {}
    for path in _captions_of(folder, recursive, suffix or CAPTION_SUFFIX):
        if (folder / path).is_symlink():
            plan.keep(path, "is a link")
            continue
        caption = texts.read(folder, path)
        if caption is None:
            plan.keep(path, "there is no caption")
            continue
        if skip_blank and caption.text.strip() and not caption.first_line:
            plan.keep(path, BLANK)
            continue
        captions[path] = caption
    edited = edit({path: caption.text for path, caption in captions.items()})
    for (path, caption), text in zip(captions.items(), edited, strict=True):
        if text == caption.text:
            plan.unchanged += 1
        else:
            plan.write(path, caption.state, caption.as_state(text), (caption.text, text))
    return plan


def _attached(folder: Path, stems: set[Path]) -> dict[Path, list[Path]]:
    """What belongs to an image (by its path without extension) and says more in its name, or lies among the masks."""
    found: dict[Path, list[Path]] = defaultdict(list)
    for file in sorted(files_in(folder, recursive=True)):
        if file.suffix == caches.SUFFIX and file.with_suffix("") not in stems:
            found[caches.owner(file)].append(file)
        elif is_mask(file) and file.suffix.lower() in IMAGE_SUFFIXES:
            base = Path(*(part for part in file.parent.parts if part.lower() not in MASK_FOLDERS))
            found[_masked(base, file.stem, stems)].append(file)
    return found


def _masked(base: Path, stem: str, stems: set[Path]) -> Path:
    """The image of a mask: in the folder that its path names, or the only one of that name below it."""
    below = [path for path in stems if path.name == stem and base in path.parents]
    return below[0] if base / stem not in stems and len(below) == 1 else base / stem


def _masks_outside(folder: Path) -> dict[str, list[Path]]:
    """Masks in a folder next to `folder`, by the name of their image: no plan reaches these."""
    found: dict[str, list[Path]] = defaultdict(list)
    try:
        places = sorted(folder.parent.iterdir())
    except OSError:
        return found
    for place in places:
        if place != folder and MASK_FOLDERS & set(re.split(r"[\W_]+", place.name.lower())) and place.is_dir():
            for file in images_in(place, recursive=True):
                found[file.stem].append(Path("..", place.name, file))
    return found


def _rest(member: Path, caption: Path) -> str:
    """What follows in the name of a companion after the name of its image."""
    return member.name[len(caption.stem) :]


def _members(folder: Path, caption: Path, images: list[Path], suffix: str) -> list[Path]:
    companions = {caption.with_suffix(ending) for ending in (*COMPANIONS, suffix or CAPTION_SUFFIX)}
    return [*images, *sorted(path for path in companions if (folder / path).exists())]


def _name_for(plan: EditPlan, folder: Path, path: Path, extension: int, series: frozenset[str]) -> str | None:
    caption = texts.read(folder, path)
    if caption is None:
        plan.keep(path, "there is no caption to name its image after")
        return None
    first = caption.first_line
    name = name_of(first, room=ROOM_FOR_NUMBER + extension)
    if not name:
        plan.keep(path, BLANK if caption.text.strip() and not first else "the caption is empty")
        return None
    if caption_of(path.stem, series=series) == name:  # "a dog (2)" says "a dog" already
        return path.stem
    if len(name) < len(first):
        plan.note(path, f"a file name takes only {len(name)} of its {len(first)} characters")
    return name


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name} ({number})"
        number += 1


def _order(plan: EditPlan, moves: list[tuple[Path, Path]]) -> None:
    """Renames that never meet a name that is still taken: those that would step aside first."""
    sources = {old for old, _ in moves}
    aside = []
    for number, (old, new) in enumerate(moves):
        if new in sources:
            waiting = old.with_name(f".kohya_ext-{number}{old.suffix}")
            plan.rename(old, waiting)
            aside.append((waiting, new))
        plan.renamed.append((old.as_posix(), new.as_posix()))
    for old, new in moves:
        if new not in sources:
            plan.rename(old, new)
    for waiting, new in aside:
        plan.rename(waiting, new)
