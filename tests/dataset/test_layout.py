from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("PIL")
from PIL import Image

from kohya_ext.dataset import layout
from kohya_ext.dataset.audit import AuditSettings, audit
from kohya_ext.dataset.buckets import Bucketing
from kohya_ext.dataset.images import look_at
from kohya_ext.dataset.tokens import TokenCounter
from tests.dataset.folders import folder_of
from tests.dataset.generated import Builder
from tests.systems import WINDOWS

COUNTER = TokenCounter(lambda text: len(text.split()), estimated=True)
SETTINGS = AuditSettings(Bucketing((128, 128), smallest=64, largest=256))


def found(folder: Path) -> set[tuple[str, str]]:
    return {(one.code, one.path) for one in audit(folder, SETTINGS, COUNTER).findings if one.path}


@pytest.mark.parametrize(
    ("name", "repeats"), [("10_dog", 10), ("1", 1), ("0_dog", 0), ("-2_dog", 0), ("dog", 0), ("dog_10", 0), ("", 0)]
)
def test_repeats(name: str, repeats: int) -> None:
    assert layout.repeats_of(name) == repeats


def test_what_kohya_does_not_read(tmp_path: Path) -> None:
    builder = Builder(tmp_path / "10_x", 128)
    builder.good(1)
    for name in ("a.Jpg", "b.gif", "c.tiff"):
        builder.save(tmp_path / "10_x" / name)
    for name in ("outside.png", "loose/d.png", "10_x/deep/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        builder.save(tmp_path / name)
    (tmp_path / "10_x" / "b.txt").unlink()
    (tmp_path / "10_x" / "c.txt").unlink()
    assert found(tmp_path) == {
        ("not-read", "10_x/a.Jpg"), ("not-read", "10_x/b.gif"), ("not-read", "10_x/c.tiff"),
        ("outside", "outside.png"), ("outside", "loose/d.png"), ("outside", "10_x/deep/e.png"),
    }  # fmt: skip


def test_a_folder_with_repeats_in_its_own_name_is_not_what_a_tab_wants(tmp_path: Path) -> None:
    folder = tmp_path / "118_DPITW"
    Builder(folder, 128).good(1)
    assert ("concept-folder", "118_DPITW") in found(folder)
    assert "concept-folder" not in {code for code, _ in found(tmp_path)}


def test_formats_that_need_a_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [Path("a.avif"), Path("b.jxl"), Path("c.png")]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    tmp_path = tmp_path / "1_x"
    tmp_path.mkdir()
    assert [one.path for one in layout.check(tmp_path, files)] == ["a.avif", "b.jxl"]
    assert layout.repeats_in(tmp_path, files) == {files[0]: 0, files[1]: 0, files[2]: 1}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "jxlpy" else None)
    assert [one.path for one in layout.check(tmp_path, files)] == ["a.avif"]


def test_the_histogram_has_repeats(tmp_path: Path) -> None:
    for name in ("10_x", "3_y", "loose"):
        builder = Builder(tmp_path / name, 128, seed=len(name))
        builder.save(tmp_path / name / f"{name}.png")
    builder.save(tmp_path / "3_y" / "wide.png", builder.image(256, 64))
    result = audit(tmp_path, SETTINGS, COUNTER)
    assert result.buckets == {(128, 128): 2, (256, 64): 1} and result.samples == {(128, 128): 13, (256, 64): 3}
    assert audit(tmp_path / "3_y", SETTINGS, COUNTER).samples == {(128, 128): 3, (256, 64): 3}


@pytest.mark.skipif(WINDOWS, reason="links need a privilege on Windows")
def test_a_concept_folder_that_is_a_link(tmp_path: Path) -> None:
    Builder(tmp_path / "elsewhere", 128).save(tmp_path / "elsewhere" / "a.png", caption=None)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "5_x").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "other").symlink_to(tmp_path / "elsewhere")
    assert found(tmp_path / "set") == {("no-caption", "5_x/a.png")}
    assert audit(tmp_path / "set", SETTINGS, COUNTER).samples == {(128, 128): 5}


def test_masks_against_their_images(tmp_path: Path) -> None:
    folder = tmp_path / "10_x"
    builder = Builder(folder, 128)
    (folder / "masks").mkdir()
    for name in ("good", "missing", "small", "inverted", "green", "broken"):
        builder.save(folder / f"{name}.png")
    whole = Image.new("L", (128, 128), 0)
    whole.paste(255, (32, 32, 96, 96))
    whole.save(folder / "masks" / "good.png")
    whole.resize((64, 64)).save(folder / "masks" / "small.png")
    whole.point(lambda value: 255 - value).save(folder / "masks" / "inverted.png")
    whole.save(folder / "masks" / "extra.png")
    Image.merge("RGB", (Image.new("L", whole.size), whole, whole)).save(folder / "masks" / "green.png")
    (folder / "masks" / "broken.png").write_bytes(b"not an image")
    for root in (folder, tmp_path):
        below = "10_x/" if root == tmp_path else ""
        assert found(root) - {("concept-folder", "10_x")} == {
            ("no-mask", f"{below}missing.png"), ("mask-size", f"{below}masks/small.png"),
            ("mask-inverted", f"{below}masks/inverted.png"), ("mask-without-image", f"{below}masks/extra.png"),
            ("mask-black", f"{below}masks/green.png"), ("unreadable", f"{below}masks/broken.png"),
        }  # fmt: skip


def test_a_colour_profile(tmp_path: Path) -> None:
    from PIL import ImageCms

    builder = Builder(tmp_path, 128)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    builder.save(tmp_path / "a.png", icc_profile=srgb)
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    builder.save(tmp_path / "b.jpg", icc_profile=lab)
    builder.save(tmp_path / "c.jpg", icc_profile=b"\xff" * 200)
    assert found(tmp_path) == {("colour-profile", "b.jpg"), ("colour-profile", "c.jpg")}


def test_a_data_set_as_users_have_it(tmp_path: Path) -> None:
    """A caption whose first line is blank, an extension in mixed case, and a cache of an earlier image."""
    numpy = pytest.importorskip("numpy")
    folder = tmp_path / "10_x"
    builder = Builder(folder, 128)
    builder.save(folder / "blank.jpg", caption=b"\n\na photo of ewpp\nmore\n")
    builder.save(folder / "mixed.Jpg")
    builder.save(folder / "stale.jpg")
    numpy.savez(folder / "stale.npz", latents=numpy.zeros((4, 8, 8)), original_size=numpy.array([64, 64]))
    assert found(tmp_path) == {
        ("blank-first-line", "10_x/blank.txt"), ("not-read", "10_x/mixed.Jpg"), ("stale-cache", "10_x/stale.npz"),
    }  # fmt: skip
    assert audit(tmp_path, SETTINGS, COUNTER).samples == {(128, 128): 20}


def test_a_mask_that_is_not_looked_for(tmp_path: Path) -> None:
    Builder(tmp_path / "10_x", 128).save(tmp_path / "10_x" / "a.png")
    (tmp_path / "10_x" / "masks").mkdir()
    Image.new("L", (128, 128), 255).save(tmp_path / "10_x" / "masks" / "a.Png", format="PNG")
    assert found(tmp_path) == {("not-read", "10_x/masks/a.Png"), ("no-mask", "10_x/a.png")}


@pytest.mark.parametrize("masks", ["masks", "masks/10_x", "10_x/mask"])
def test_masks_next_to_concept_folders(tmp_path: Path, masks: str) -> None:
    builder = Builder(tmp_path / "10_x", 128)
    (tmp_path / masks).mkdir(parents=True)
    for name in ("a", "b"):
        builder.save(tmp_path / "10_x" / f"{name}.png")
    Image.new("L", (64, 64), 255).save(tmp_path / masks / "a.png")
    assert found(tmp_path) == {("no-mask", "10_x/b.png"), ("mask-size", f"{masks}/a.png")}


def test_a_folder_that_the_lora_tab_finds_nothing_in(tmp_path: Path) -> None:
    Builder(tmp_path / "cats", 128).good(1)
    Builder(tmp_path / "all" / "10_cats", 128).good(1)

    def codes(folder: Path) -> set[str]:
        return {one.code for one in audit(folder, SETTINGS, COUNTER).findings}

    assert "no-repeats" in codes(tmp_path / "cats")
    assert "no-repeats" not in codes(tmp_path / "all") | codes(tmp_path / "all" / "10_cats")


def test_images_that_are_transparent(tmp_path: Path) -> None:
    folder = tmp_path / "10_x"
    builder = Builder(folder, 128)
    for name, value in (("some.png", None), ("all.png", 0)):
        image = builder.image().convert("RGBA")
        image.putalpha(Image.linear_gradient("L").resize((128, 128)) if value is None else value)
        builder.save(folder / name, image)
    said = {one.path: one.text for one in audit(folder, SETTINGS, COUNTER).findings if one.code == "transparent"}
    assert "only what is opaque" in said["some.png"]
    assert "nothing of it" in said["all.png"]


@pytest.mark.parametrize("inside", ["10_x", ""])
def test_a_folder_called_like_an_image(tmp_path: Path, inside: str) -> None:
    Builder(tmp_path / inside, 128).good(1)
    for name in ("b.png", "b.gif", ".hidden.png", "images"):
        (tmp_path / inside / name).mkdir()
    assert [one for one in found(tmp_path) if one[0] == "not-a-file"] == [
        ("not-a-file", (Path(inside) / "b.png").as_posix())
    ]


def test_the_folder_to_train_is_named(tmp_path: Path) -> None:
    for name in ("img/20_ohwx man", "reg/1_man", "log"):
        (tmp_path / "lora" / name).mkdir(parents=True)
    told = {one.code: one.text for one in layout.check(tmp_path / "lora", [])}
    assert "choose img or reg" in told["no-repeats"]


@pytest.mark.parametrize(("orientation", "turned"), [(1, False), (2, True), (8, True), (0, False), (9, False)])
def test_only_orientations_that_exist_turn_an_image(tmp_path: Path, orientation: int, turned: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (64, 48), (9, 99, 199)).save(tmp_path / "a.jpg", exif=exif)
    codes_of = {one.code for one in look_at(tmp_path, Path("a.jpg")).findings}
    assert ("rotated" in codes_of) == turned


def test_hidden_images(tmp_path: Path) -> None:
    """The loaders' patterns skip them; what prepares a fine-tune lists them with pathlib, which does not."""
    folder_of(tmp_path, {"10_dog/a.png": None, "10_dog/.b.png": None, "10_dog/._a.png": b"x", ".git/c.png": None})
    found = {finding.path: finding.text for finding in layout.check(tmp_path, layout.training_files(tmp_path))}
    assert set(found) == {"10_dog/.b.png", "10_dog/._a.png"} and "macOS" in found["10_dog/._a.png"]
