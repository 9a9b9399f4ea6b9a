"""Which files of a folder Kohya takes as training images, how often, and why it does not read the others."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path

from kohya_ext.core.errors import UsageError
from kohya_ext.core.shell import pip_install
from kohya_ext.dataset.findings import ADVICE, PROBLEM, AuditFinding
from kohya_ext.files.image_suffixes import SUFFIXES
from kohya_ext.files.regular import folder_fault

IMAGE_SUFFIXES = frozenset(SUFFIXES)
CAPTION_SUFFIX = ".txt"
CAPTION_SUFFIXES = (CAPTION_SUFFIX, ".caption")  # the GUI's default, and that of sd-scripts
WINDOWS = os.name == "nt"
MASK_FOLDERS = frozenset({"mask", "masks", "masked", "conditioning", "conditioning_images", "cond"})
# Images that Kohya looks for in no release.
FOREIGN = frozenset({
    ".gif", ".tif", ".tiff", ".heic", ".heif", ".jfif", ".jpe", ".jp2", ".svg", ".psd", ".ico", ".tga", ".dds", ".ppm",
    ".pgm", ".exr", ".dng", ".cr2", ".nef", ".arw",
})  # fmt: skip
# Extension -> modules of which Kohya needs one before it looks for it, and how to get it.
PLUGINS = {
    ".avif": (("pillow_avif",), "pillow-avif-plugin"),
    ".jxl": (("pillow_jxl", "jxlpy"), "pillow-jxl-plugin"),
}


def require_folder(folder: Path) -> Path:
    """The real path of `folder`. Raises UsageError when it is none or cannot be read."""
    fault = folder_fault(folder)
    if fault is not None:
        raise UsageError(f"{folder}: {fault}; give the folder that holds the training images")
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise UsageError(f"{folder} cannot be read: {error.strerror}") from error
    return folder.resolve()


def require_extension(suffix: str) -> None:
    """Raises UsageError when `suffix` is not an extension that caption files can have."""
    if not re.fullmatch(r"\.\w{1,32}", suffix) or re.search("[\ud800-\udfff]", suffix):
        raise UsageError(f"{suffix!r} is not an extension of caption files: give .txt or .caption")
    if suffix.lower() in IMAGE_SUFFIXES:
        raise UsageError(f"{suffix} is an extension of images, not of captions: give .txt or .caption")


def images_in(folder: Path, *, recursive: bool) -> list[Path]:
    """The images below `folder`, relative to it, sorted. Hidden folders and files are skipped."""
    return sorted(path for path in files_in(folder, recursive=recursive) if path.suffix.lower() in IMAGE_SUFFIXES)


def files_in(folder: Path, *, recursive: bool) -> Iterator[Path]:
    """All visible files below `folder`, relative to it. Folders that are links are not entered."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if recursive else []
        below = Path(root).relative_to(folder)
        yield from (below / name for name in names if not name.startswith("."))


def repeats_of(name: str) -> int:
    """The repeats that a folder's name asks for: 10 for `10_dog`. 0 where Kohya skips the folder."""
    try:
        return max(0, int(name.partition("_")[0]))
    except ValueError:
        return 0


def class_of(folder: Path, image: Path) -> str:
    """What Kohya trains an image without a caption file as: `dog` in `10_dog`; "" where the folder says nothing."""
    name = image.parent.name or folder.name
    return name.partition("_")[2] if repeats_of(name) else ""


def concepts(folder: Path) -> list[str]:
    """The folders in `folder` that Kohya would train as `N_name`, links to folders among them."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if repeats_of(entry.name) and entry.is_dir())


def training_files(folder: Path) -> list[Path]:
    """All visible files below `folder`, relative to it, with those directly in concept folders that are links."""
    found = set(files_in(folder, recursive=True))
    for name in concepts(folder):
        if (folder / name).is_symlink():
            found.update(Path(name) / below for below in files_in(folder / name, recursive=False))
    return sorted(found)


def is_mask(path: Path) -> bool:
    """True for a file in a folder that is called like one of masks."""
    return any(part.lower() in MASK_FOLDERS for part in path.parent.parts)


def repeats_in(folder: Path, paths: list[Path]) -> dict[Path, int]:
    """How often each image is trained in an epoch: 0 where its place or its extension keeps Kohya from it.

    Where no folder has a number, as for the fine-tuning tab and dataset configs, each counts once.
    """
    numbered = concepts(folder)
    own = repeats_of(folder.name) or 1
    times = {}
    for path in paths:
        often = own
        if numbered:
            often = repeats_of(path.parts[0]) if len(path.parts) == 2 else 0
        times[path] = 0 if unread(path) and not (WINDOWS and _is_mixed(path)) else often
    return times


def check(folder: Path, files: list[Path]) -> Iterator[AuditFinding]:
    """What lies among the images and is not read."""
    numbered = concepts(folder)
    if not numbered and repeats_of(folder.name) and images_in(folder, recursive=False):
        text = "has repeats in its name: in the LoRA and Dreambooth tabs choose the folder above it, not this one"
        yield AuditFinding("concept-folder", folder.name, text, ADVICE)
    if numbered or repeats_of(folder.name):
        inner = []
    else:
        inner = [name for name in _folders(folder) if _has_concepts(folder / name)]
    if inner:
        text = f"is not the folder to train; choose {' or '.join(inner)}, which has folders called REPEATS_NAME"
        yield AuditFinding("no-repeats", "", f"{folder.name} {text}", ADVICE)
    elif not numbered and not repeats_of(folder.name):
        text = (
            "has no folder with repeats in its name, such as 10_name: the LoRA and Dreambooth tabs find no image here; "
            "the Finetuning tab and data set configurations take it as it is"
        )
        yield AuditFinding("no-repeats", "", f"{folder.name} {text}", ADVICE)
    yield from _folders_called_like_images(folder, numbered)
    yield from _hidden(folder)
    for path in files:
        if is_mask(path):
            continue
        name, suffix = path.as_posix(), path.suffix.lower()
        if suffix in FOREIGN:
            what = suffix[1:].upper()
            yield AuditFinding("not-read", name, f"is not read: Kohya takes no {what} images; save it as PNG")
        elif suffix in IMAGE_SUFFIXES:
            if why := unread(path):
                level = ADVICE if WINDOWS and _is_mixed(path) else PROBLEM
                yield AuditFinding("not-read", name, why, level)
            if numbered:
                yield from _misplaced(path)


def _hidden(folder: Path) -> Iterator[AuditFinding]:
    """Images whose names begin with a dot: the loaders' patterns do not fit them, those of the preparation do."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") or Path(name).suffix.lower() not in IMAGE_SUFFIXES:
                continue
            what = "is what macOS keeps of a file, not an image" if name.startswith("._") else "is hidden by its dot"
            text = (
                f"{what}: the LoRA and Dreambooth tabs skip it, but the preparation of the Finetuning tab takes it "
                "for an image; rename or delete it"
            )
            yield AuditFinding("hidden-file", (Path(root) / name).relative_to(folder).as_posix(), text, ADVICE)


def _folders_called_like_images(folder: Path, numbered: list[str]) -> Iterator[AuditFinding]:
    """Kohya looks for names, and takes a folder for an image."""
    for parent in [Path(name) for name in numbered] or [Path()]:
        for path in (parent / name for name in _folders(folder / parent)):
            if path.suffix.lower() in IMAGE_SUFFIXES and not unread(path):
                text = "is a folder that is called like an image: Kohya stops at it; rename it"
                yield AuditFinding("not-a-file", path.as_posix(), text)


def _has_concepts(folder: Path) -> bool:
    try:
        return bool(concepts(folder))
    except OSError:  # what cannot be listed cannot be trained
        return False


def _folders(folder: Path) -> list[str]:
    """The visible folders in `folder`."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _misplaced(path: Path) -> Iterator[AuditFinding]:
    if len(path.parts) == 1:
        text = "is not read: it lies outside the folders that have repeats in their name, such as 10_name"
        yield AuditFinding("outside", path.as_posix(), text)
    elif not repeats_of(path.parts[0]):
        text = f"is not read: the folder {path.parts[0]} has no repeats in its name, as 10_{path.parts[0]} would"
        yield AuditFinding("outside", path.as_posix(), text)
    elif len(path.parts) > 2:
        text = f"is not read: Kohya does not look into folders below {path.parts[0]}"
        yield AuditFinding("outside", path.as_posix(), text)


def _is_mixed(path: Path) -> bool:
    return path.suffix not in (path.suffix.lower(), path.suffix.upper())


def unread(path: Path) -> str:
    """Why Kohya does not look for files with this extension, "" when it does."""
    suffix = path.suffix.lower()
    if _is_mixed(path):
        return f"is not read: Kohya looks for {suffix} and {suffix.upper()} only, except on Windows; rename it"
    modules, package = PLUGINS.get(suffix, ((), ""))
    if modules and not any(importlib.util.find_spec(module) for module in modules):
        return f"is not read without {package}, which this Python lacks: {pip_install(package)}, or save it as PNG"
    return ""
