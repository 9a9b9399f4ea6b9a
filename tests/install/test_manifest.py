from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kohya_ext.core.errors import ConflictError
from kohya_ext.install import manifest
from kohya_ext.install.manifest import Exclusion, Manifest, ManifestEntry

WHOLE = Manifest(
    patch_set="hook",
    release="v22.3.1",
    files=(
        ManifestEntry(
            "library/__init__.py", "patched", "a" * 64, "b" * 64, 0o755, ".kohya_ext/backup/library/__init__.py"
        ),
        ManifestEntry("presets/finetune/ünï code.json", "preset", None, "c" * 64, 0o644),
    ),
    skip_worktree={".": ("library/__init__.py",)},
    exclusion=Exclusion(("/.kohya_ext/",), b"\xff not utf-8\r\n", "d" * 64),
    created_dirs=("presets/new",),
    package={"python": "/venv/bin/python"},
)


def write(root: Path, data: bytes) -> None:
    (root / manifest.NAME).parent.mkdir()
    (root / manifest.NAME).write_bytes(data)


def test_comes_back(tmp_path: Path) -> None:
    write(tmp_path, WHOLE.to_json())
    assert manifest.read(tmp_path) == WHOLE
    assert WHOLE.entry("library/__init__.py") == WHOLE.files[0]
    assert WHOLE.entry("other") is None


def test_absent(tmp_path: Path) -> None:
    assert manifest.read(tmp_path) is None


def changed(**changes: Any) -> bytes:
    return json.dumps({**json.loads(WHOLE.to_json()), **changes}).encode()


def entry(**changes: Any) -> bytes:
    return changed(files=[{**json.loads(WHOLE.to_json())["files"][0], **changes}])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[1]",
        b"\xff",
        b"[" * 100_000,
        changed(format=2),
        changed(files=3),
        changed(files=[{}]),
        changed(skip_worktree=[]),
        changed(skip_worktree={"../x": ["a"]}),
        changed(skip_worktree={".": ["/etc/passwd"]}),
        changed(created_dirs=["/tmp"]),
        changed(exclude={"lines": [], "before": "not base64!", "sha256_after": ""}),
        entry(path="../x"),
        entry(path="/etc/passwd"),
        entry(path="a/../../x"),
        entry(path=".git/hooks/post-checkout"),
        entry(path=".kohya_ext/manifest.json"),
        entry(path=None),
        entry(backup="library/__init__.py"),
        entry(backup=".kohya_ext/backup/../../x"),
        entry(kind="other"),
        entry(mode="rw"),
    ],
)
def test_refused(tmp_path: Path, data: bytes) -> None:
    write(tmp_path, data)
    with pytest.raises(ConflictError) as caught:
        manifest.read(tmp_path)
    assert str(tmp_path) in str(caught.value)


@given(data=st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_any_json_is_refused_in_words(data: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("x")
    write(root, json.dumps(data).encode())
    with pytest.raises(ConflictError):
        manifest.read(root)


def test_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "elsewhere/manifest.json").write_bytes(WHOLE.to_json())
    (tmp_path / "root/.kohya_ext").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConflictError, match="link"):
        manifest.read(tmp_path / "root")
