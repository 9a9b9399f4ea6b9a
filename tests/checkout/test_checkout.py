from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_ext.checkout.checkout import Checkout, HalfCheckoutError, describe
from kohya_ext.core.errors import UNSUPPORTED, UnsupportedError
from tests.checkout import trees
from tests.presets import second_guis
from tests.systems import HAS_GIT, IS_ROOT

Make = Callable[..., Checkout]


@pytest.mark.parametrize(
    ("era", "kind", "release", "layout", "package"),
    [
        ("embedded", "kohya_ss", "v22.3.1", "embedded", "library"),
        ("submodule", "kohya_ss", "v25.2.1", "submodule", "kohya_gui"),
        ("split", "kohya_ss", "v26.0.0", "submodule", "kohya_gui"),
        ("bare", "sd-scripts", "v0.6.6" if HAS_GIT else "v0.6.x (by its files)", "bare", None),
    ],
)
def test_describes_every_era(make: Make, era: str, kind: str, release: str, layout: str, package: str | None) -> None:
    checkout = make(era)
    assert (checkout.kind, checkout.release, checkout.layout, checkout.gui_package) == (kind, release, layout, package)
    assert checkout.training_root == (checkout.root / "sd-scripts" if layout == "submodule" else checkout.root)
    assert (checkout.library / "__init__.py").is_file()
    assert checkout.presets_dir == (None if layout == "bare" else checkout.root / "presets")
    if checkout.gui_root:
        assert list(checkout.gui_root.glob("finetune_gui.py"))


def test_a_second_gui_is_seen_beside_the_first_and_alone(tmp_path: Path) -> None:
    first, second, training = second_guis.FIRST, second_guis.SECOND, second_guis.TRAINING
    second_guis.write(tmp_path / "one", first, training)
    assert not describe(tmp_path / "one").second_gui
    second_guis.write(tmp_path / "both", first, second, training)
    both = describe(tmp_path / "both")
    assert both.second_gui
    assert both.gui_root == tmp_path / "both" / "kohya_gui"
    second_guis.write(tmp_path / "alone", {"kohya_gui/__init__.py": ""}, second, training)
    alone = describe(tmp_path / "alone" / "sd-scripts")
    assert (alone.root, alone.second_gui, alone.gui_root) == (tmp_path / "alone", True, None)
    assert alone.gui_package == "kohya_gui"


def test_the_submodule_leads_to_its_kohya_ss(make: Make) -> None:
    checkout = make("submodule")
    assert describe(checkout.root / "sd-scripts") == checkout


def test_a_link_to_a_checkout_is_resolved(make: Make, tmp_path: Path) -> None:
    checkout = make("embedded")
    (tmp_path / "link").symlink_to(checkout.root)
    assert describe(tmp_path / "link").root == checkout.root


def test_an_empty_submodule_is_half_a_checkout_and_says_the_cure(make: Make) -> None:
    root = make("submodule").root
    shutil.rmtree(root / "sd-scripts")
    (root / "sd-scripts").mkdir()
    with pytest.raises(HalfCheckoutError, match="submodule update --init") as error:
        describe(root)
    assert error.value.exit_code == UNSUPPORTED


@pytest.mark.parametrize("gone", ["train_network.py", "fine_tune.py", "networks", "library/__init__.py", "presets"])
def test_missing_parts_are_named(make: Make, gone: str) -> None:
    root = make("embedded").root
    if (root / gone).is_dir():
        shutil.rmtree(root / gone)
    else:
        (root / gone).unlink()
    with pytest.raises(HalfCheckoutError, match=gone):
        describe(root)


def test_other_folders_are_no_checkouts(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="not a Kohya checkout"):
        describe(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UnsupportedError, match="is a file, a folder is needed"):
        describe(tmp_path / "file")
    with pytest.raises(UnsupportedError, match="is a device, a folder is needed"):
        describe(Path(os.devnull))
    with pytest.raises(UnsupportedError, match="no such folder"):
        describe(tmp_path / "nothing")
    (tmp_path / "kohya_gui.py").write_text("")
    with pytest.raises(UnsupportedError, match="open_configuration"):
        describe(tmp_path)


def test_release_without_its_file_is_what_git_says(make: Make) -> None:
    root = make("submodule").root
    (root / ".release").unlink()
    trees.git(root, "commit", "-q", "--allow-empty", "-m", "later")
    assert describe(root).release.startswith("v25.2.1-1-g")
    shutil.rmtree(root / ".git")
    assert describe(root).release == "unknown"


def test_bare_sd_scripts_without_tags_is_known_by_its_files(make: Make, tmp_path: Path) -> None:
    root = make("bare").root
    trees.git(root, "tag", "-d", "v0.6.6")
    assert describe(root).release == "v0.6.x (by its files)"
    split = tmp_path / "split"
    trees.write(split, trees.training_files("split"))
    assert describe(split).release == "v0.11.x (by its files)"


@pytest.mark.skipif(IS_ROOT, reason="root may look everywhere")
def test_a_folder_that_may_not_be_read(make: Make) -> None:
    root = make("embedded").root
    root.chmod(0)
    try:
        with pytest.raises(UnsupportedError, match="no permission to read"):
            describe(root)
    finally:
        root.chmod(0o755)
