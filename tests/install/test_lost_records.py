"""A tree without its `.kohya_ext/`, copied or moved: what is ours is known again, and goes without a trace."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_ext.checkout.checkout import Checkout, describe
from kohya_ext.core.errors import ConflictError
from kohya_ext.install import apply, patchset
from kohya_ext.install.plan import patch_set_there
from tests.checkout import trees
from tests.checkout.versions import being

Make = Callable[..., Checkout]
SETS = ("hook", "inline")
PRESETS = {"presets/finetune/user_presets/ours.json": b'{"optimizer": "AdaCoor"}\n'}

OTHER_BLOCKS = {
    "the first": (
        b"# >>> kohya_ext 1 >>> put here by the kohya-ext installer, taken back by `kohya-ext uninstall`\n"
        b"try:\n    import kohya_ext.runtime\nexcept ModuleNotFoundError as kohya_ext_missing:\n"
        b'    if (kohya_ext_missing.name or "").split(".")[0] != "kohya_ext":\n        raise\n'
        b'    print("no AdaCoor, no EMA")\nelse:\n    kohya_ext.runtime.activate(__name__)\n    del kohya_ext\n'
        b"# <<< kohya_ext <<<\n"
    ),
    "the second": (
        b"# >>> kohya_ext 2 >>> added by the kohya-ext installer; `kohya-ext uninstall` removes it\n"
        b"def _kohya_ext():\n    try:\n        import kohya_ext.runtime\n\n"
        b"        return kohya_ext.runtime.activate(__name__, guarded=True)\n"
        b"    except (Exception, SystemExit) as error:\n        problem = str(error)\n    print(problem)\n\n\n"
        b"_kohya_ext()\ndel _kohya_ext\n# <<< kohya_ext <<<\n"
    ),
    "a later one": (
        b"# >>> kohya_ext 27 >>> other words\nfrom kohya_ext import guard\nguard.go(__name__)\ndel guard\n"
        b"# <<< kohya_ext <<<\n"
    ),
    "by name": (
        b'# >>> kohya_ext 3 >>>\n__import__("kohya_ext.runtime").runtime.activate(__name__)\n# <<< kohya_ext <<<\n'
    ),
}
NOT_OURS = {
    "no import": b"# >>> kohya_ext 1 >>>\nx = 1\n# <<< kohya_ext <<<\n",
    "no Python": b"# >>> kohya_ext 1 >>>\nimport kohya_ext (\n# <<< kohya_ext <<<\n",
    "no number": b"# >>> kohya_ext one >>>\nimport kohya_ext\n# <<< kohya_ext <<<\n",
    "no end": b"# >>> kohya_ext 1 >>>\nimport kohya_ext\n",
    "something after it": b"# >>> kohya_ext 1 >>>\nimport kohya_ext\n# <<< kohya_ext <<<\nx = 1\n",
}


@pytest.mark.parametrize("patch_set", SETS)
def test_uninstall_needs_no_records(checkout: Checkout, patch_set: str) -> None:
    presets = PRESETS if checkout.presets_dir else {}
    before = trees.whole(checkout.root)
    apply.install(checkout, patch_set=patch_set, presets=presets)
    shutil.rmtree(checkout.root / ".kohya_ext")
    assert not apply.status(checkout).clean
    assert patch_set_there(checkout) == patch_set
    assert apply.uninstall(checkout, presets=presets).changed
    assert trees.whole(checkout.root) == before
    assert not apply.uninstall(checkout, presets=presets).changed


@pytest.mark.parametrize("patch_set", SETS)
def test_install_takes_up_what_is_there(checkout: Checkout, patch_set: str) -> None:
    presets = PRESETS if checkout.presets_dir else {}
    before = trees.whole(checkout.root)
    apply.install(checkout, patch_set=patch_set, presets=presets)
    whole = trees.whole(checkout.root)
    shutil.rmtree(checkout.root / ".kohya_ext")
    assert apply.install(checkout, patch_set=patch_set, presets=presets).plan.kept == ()
    assert trees.whole(checkout.root) == whole
    assert apply.status(checkout).clean
    apply.uninstall(checkout)
    assert trees.whole(checkout.root) == before


def test_the_lines_of_the_other_patch_set_go(make: Make) -> None:
    checkout = make("submodule")
    before = trees.whole(checkout.root)
    apply.install(checkout, patch_set="inline")
    shutil.rmtree(checkout.root / ".kohya_ext")
    apply.install(checkout, patch_set="hook")
    assert apply.status(checkout).clean
    apply.uninstall(checkout)
    assert trees.whole(checkout.root) == before


@pytest.mark.parametrize("only", ["manifest.json", "backup"])
def test_half_of_the_records(make: Make, only: str) -> None:
    checkout = make("embedded")
    before = trees.whole(checkout.root)
    apply.install(checkout, presets=PRESETS)
    lost = checkout.root / ".kohya_ext" / only
    lost.unlink() if lost.is_file() else shutil.rmtree(lost)
    assert not apply.status(checkout).clean
    if only == "backup":
        with pytest.raises(ConflictError, match="backup"):
            apply.uninstall(checkout)
        shutil.rmtree(checkout.root / ".kohya_ext")
    apply.uninstall(checkout, presets=PRESETS)
    assert trees.whole(checkout.root) == before


@pytest.mark.parametrize("ends", [b"\n", b"\r\n"])
@pytest.mark.parametrize("block", list(OTHER_BLOCKS))
def test_blocks_of_other_versions_are_known(make: Make, block: str, ends: bytes) -> None:
    checkout = make("embedded")
    before = trees.whole(checkout.root)
    path = checkout.library / "__init__.py"
    path.write_bytes(OTHER_BLOCKS[block].replace(b"\n", ends))
    assert "no record" in "".join(apply.status(checkout).problems)
    apply.install(checkout)
    assert path.read_bytes() == patchset.load("hook").patched(b"")
    assert apply.status(checkout).clean
    apply.uninstall(checkout)
    assert trees.whole(checkout.root) == before
    path.write_bytes(OTHER_BLOCKS[block].replace(b"\n", ends))
    apply.uninstall(checkout)
    assert trees.whole(checkout.root) == before


@pytest.mark.parametrize("block", list(NOT_OURS))
def test_what_only_looks_like_ours_is_not_touched(make: Make, block: str) -> None:
    checkout = make("embedded")
    path = checkout.library / "__init__.py"
    path.write_bytes(NOT_OURS[block])
    before = trees.whole(checkout.root)
    for act in (apply.install, apply.uninstall):
        with pytest.raises(ConflictError, match="library/__init__"):
            act(checkout)
        assert trees.whole(checkout.root) == before


def test_the_block_of_an_older_version_is_brought_up_to_date(make: Make, tmp_path: Path) -> None:
    """With records, and without."""
    checkout = make("submodule")
    before = trees.whole(checkout.root)
    with being("0.3.0", tmp_path):
        apply.install(checkout)
        assert re.match(rb"\n?# >>> kohya_ext 3\d+ >>>", (checkout.library / "__init__.py").read_bytes())
    apply.install(checkout)
    assert (checkout.library / "__init__.py").read_bytes() == patchset.load("hook").patched(b"")
    assert apply.status(checkout).clean
    apply.uninstall(checkout)
    assert trees.whole(checkout.root) == before


def test_a_copied_tree_is_a_tree_of_its_own(make: Make, tmp_path: Path) -> None:
    checkout = make("submodule")
    before = trees.whole(checkout.root)
    apply.install(checkout, presets=PRESETS)
    copy = describe(trees.copy(checkout.root, tmp_path / "copy"))
    apply.uninstall(copy)
    assert trees.snapshot(copy.root) == before[0]
    assert apply.status(checkout).clean


def test_a_users_own_preset_with_our_bytes_stays_where_we_never_were(make: Make) -> None:
    checkout = make("embedded")
    path = checkout.root / next(iter(PRESETS))
    path.parent.mkdir(parents=True)
    path.write_bytes(next(iter(PRESETS.values())))
    assert not apply.uninstall(checkout, presets=PRESETS).changed
    assert path.is_file()
