"""Folders of images for tests of captions: names matter here, images do not."""

from __future__ import annotations

from pathlib import Path

from kohya_ext.files.transaction import STATE_FOLDER


def folder_of(root: Path, files: dict[str, str | bytes | None]) -> Path:
    """Files below `root`: text, bytes, or None for an image nobody opens."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = f"image {name}" if content is None else content
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return root


def everything(root: Path) -> dict[str, tuple[bytes, int]]:
    """Content and mode of every file, our own records aside."""
    return {
        path.relative_to(root).as_posix(): (path.read_bytes(), path.stat().st_mode & 0o7777)
        for path in sorted(root.rglob("*"))
        if path.is_file() and STATE_FOLDER not in path.parts
    }


def text_of(root: Path) -> dict[str, str]:
    """What the captions say."""
    return {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in sorted(root.rglob("*.txt"))}
