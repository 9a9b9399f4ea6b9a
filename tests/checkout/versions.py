"""Other versions of ourselves: what this copy would be if it were an older or a newer one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from kohya_ext.core import about, bundle
from kohya_ext.install import installer, package, patchset
from tests.checkout import pretended


def files_of(version: str) -> dict[str, bytes]:
    """The small package of that version: one file has other text, one is only in it."""
    return {
        **pretended.SMALL,
        "kohya_ext/core/about.py": f'VERSION = "{version}"\n'.encode(),
        "kohya_ext/runtime/wrapping.py": f"# of {version}\n".encode(),
        f"kohya_ext/runtime/only_{version.replace('.', '_')}.py": b"",
    }


@contextmanager
def being(version: str, folder: Path, files: Mapping[str, bytes] | None = None) -> Iterator[None]:
    """While this lasts, this process is that version: its package and the lines that it puts into Kohya's files.

    folder: for its patches; it may be used again.
    """
    patches = folder / f"patches {version}"
    if not patches.is_dir():
        shutil.copytree(bundle.data_dir("patches"), patches)
        block, form = patches / patchset.BLOCK, version.split(".")[1]
        text = block.read_text(encoding="utf-8")
        block.write_text(text.replace("# >>> kohya_ext ", f"# >>> kohya_ext {form}"), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(about, "VERSION", version)
        patch.setattr(bundle, "data_dir", lambda name: patches if name == "patches" else folder)
        for module in (package, installer):
            patch.setattr(module, "package_files", lambda: dict(files or files_of(version)))
        yield
