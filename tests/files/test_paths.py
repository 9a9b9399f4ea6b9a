from pathlib import Path

import pytest

from kohya_ext.core.errors import ConflictError
from kohya_ext.files.paths import checked, inside


@pytest.mark.parametrize("path", ["a", "a/b.py", "a b/ü.json", ".kohya_ext/x", "..a/b", "a/..."])
def test_plain_paths_pass(path: str) -> None:
    assert checked(path) == path


@pytest.mark.parametrize(
    "path",
    [
        *("", "/a", "../a", "a/../../b", "a/..", "C:/x", "C:x", "\\\\host\\x", "a\\..\\b"),
        *("x\0y", ".git/hooks/x", "a/.git/x", None, 3, []),
    ],
)
def test_others_are_refused(path: object) -> None:
    with pytest.raises(ConflictError, match="the manifest"):
        checked(path, "the manifest")


def test_links_may_not_lead_out(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "real").mkdir(parents=True)
    (root / "within").symlink_to("real")
    (root / "out").symlink_to(tmp_path)
    assert inside(root, "within/x") == root / "within/x"
    assert inside(root, "new/folder/x") == root / "new/folder/x"
    with pytest.raises(ConflictError, match="outside of the checkout"):
        inside(root, "out/x")
