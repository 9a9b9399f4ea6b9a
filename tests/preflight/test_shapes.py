"""The shapes of published checkpoints: their numbers of tensors and of weights are known."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from kohya_ext.preflight.shapes import checkpoint
from kohya_ext.preflight.stand_ins import dtype_of, family_of, part_of, write_images, write_metadata, write_model
from kohya_ext.tensors.header import read_header


def weights(family: str, top: str = "") -> int:
    return sum(math.prod(shape) for name, shape in checkpoint(family).items() if name.startswith(top))


@pytest.mark.parametrize(
    ("family", "top", "count"),
    [
        ("sdxl", "model.diffusion_model.", 2_567_463_684),
        ("sdxl", "conditioner.embedders.0.", 123_060_480),
        ("sdxl", "first_stage_model.", 83_653_863),
        ("sd1", "model.diffusion_model.", 859_520_964),
        ("sd3.5-medium", "model.diffusion_model.", 2_469_663_936),
        ("sd1", "cond_stage_model.", 123_060_480),
        ("sd2", "model.diffusion_model.", 865_910_724),
        ("flux", "", 11_901_408_320),
        ("ae", "", 83_819_683),
        ("clip_l", "", 123_060_480),
        ("t5xxl", "", 4_762_310_656),
    ],
)
def test_weights_of_the_published_models(family: str, top: str, count: int) -> None:
    assert weights(family, top) == count


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("models/sd3.5_medium.safetensors", "sd3.5-medium"),
        ("sd3.5_large.safetensors", "sd3.5-large"),
        ("stable-diffusion-3.5-large.safetensors", "sd3.5-large"),
        ("sd3_medium.safetensors", "sd3-medium"),
        ("SD3_medium_incl_clips.safetensors", None),
        ("sd3.5_medium/my-model.safetensors", None),
        ("mine.safetensors", None),
    ],
)
def test_sd3_has_the_size_that_the_name_of_its_file_says(model: str, family: str | None) -> None:
    assert family_of("sd3_train_network.py", v2=False, model=model) == family


def test_a_model_is_a_header_alone(tmp_path: Path) -> None:
    file = tmp_path / "sdxl.safetensors"
    write_model(file, "sdxl")
    assert read_header(file).entries.keys() == checkpoint("sdxl").keys()
    assert file.stat().st_size > 6_900_000_000
    assert file.stat().st_blocks * 512 < 10_000_000


@pytest.mark.parametrize(
    ("name", "bytes_a_weight"),
    [("models/t5xxl_fp8_e4m3fn.safetensors", 1), ("t5xxl_fp16.safetensors", 2), ("fp8/t5xxl.safetensors", 2)],
)
def test_a_stand_in_has_the_dtype_that_the_name_says(tmp_path: Path, name: str, bytes_a_weight: int) -> None:
    """Scripts load an fp8 file as it is, and put it on the card in that size."""
    file = tmp_path / "t5xxl.safetensors"
    write_model(file, "t5xxl", dtype_of(name))
    size = sum(math.prod(shape) for shape in checkpoint("t5xxl").values()) * bytes_a_weight
    assert sum(entry.end - entry.begin for entry in read_header(file).entries.values()) == size


@pytest.mark.parametrize(
    ("script", "v2", "family"),
    [
        ("sdxl_train_network.py", False, "sdxl"),
        ("train_network.py", False, "sd1"),
        ("/x/fine_tune.py", True, "sd2"),
        ("flux_train.py", False, "flux"),
        ("sd3_train.py", False, None),
        ("lumina_train.py", False, None),
    ],
)
def test_family_of_a_script(script: str, v2: bool, family: str | None) -> None:
    assert family_of(script, v2=v2) == family


def test_parts_with_files_of_their_own() -> None:
    assert part_of("flux_train_network.py", "t5xxl") == "t5xxl"
    assert part_of("sd3_train.py", "clip_g") == "clip_g"
    assert part_of("sd3_train.py", "ae") is part_of("flux_train.py", "gemma2") is None


def test_images(tmp_path: Path) -> None:
    from PIL import Image

    folder = write_images(tmp_path / "x", in_concept=True)
    found = sorted(folder.glob("10_*/*.png"))
    with Image.open(found[1]) as image:
        image.load()
        assert (image.size, image.getpixel((5, 5))) == ((1152, 896), (128, 128, 128))
    write_metadata(tmp_path / "meta.json")
    assert len(found) == 4
