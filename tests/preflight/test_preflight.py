"""Little scripts, run by a preflight in a process of their own as the real ones are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kohya_ext.cli.main import main
from tests.conftest import HAS_TORCH
from tests.preflight.little_tree import little_tree

pytestmark = pytest.mark.skipif(not HAS_TORCH, reason="the scripts need torch")

MODEL = ("--pretrained_model_name_or_path=x",)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return little_tree(tmp_path_factory.mktemp("little") / "sd-scripts")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    from PIL import Image

    folder = tmp_path / "images" / "3_cat"
    folder.mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (64, 64)).save(folder / f"{number}.png")
    (folder / "0.txt").write_text("a cat\n")
    (folder / "0.npz").write_bytes(b"an old cache")
    return folder.parent


def asked(
    tree: Path, capsys: pytest.CaptureFixture[str], *words: str, only: str = "start"
) -> tuple[int, dict[str, Any]]:
    options = ["--only", only] if only else []
    code = main(["preflight", str(tree), "--python", sys.executable, "--json", *options, "--", *words])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("only", ["", "start", "memory"])
def test_with_deepspeed_it_ends_at_the_engine_and_estimates_nothing(
    tree: Path, images: Path, capsys: pytest.CaptureFixture[str], only: str
) -> None:
    """Each process has a part of the weights, gradients and states; one process by itself would be counted whole."""
    words = ("sdxl_train.py", f"--train_data_dir={images}", *MODEL, "--deepspeed", "--output_dir=x")
    code, answer = asked(tree, capsys, *words, only=only)
    assert code == 0, answer
    assert (answer["start"]["ok"], answer["start"]["reached"]) == (True, "scheduler")
    assert "DeepSpeed" in answer["start"]["reason"]
    if only != "start":
        assert answer["memory"]["verdict"] is None and "DeepSpeed divides" in answer["memory"]["reason"]


def test_what_would_be_trained(tree: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(images.rglob("*"))
    code, answer = asked(
        tree, capsys, "sdxl_train.py", f"--train_data_dir={images}", "--max_train_epochs=4",
        "--train_batch_size=2", "--pretrained_model_name_or_path=gone.safetensors", "--output_dir=/nowhere/at/all",
        "--gradient_accumulation_steps=2", only="",
    )  # fmt: skip
    assert code == 0
    assert answer["start"] == {"ok": True, "error": None, "script": "sdxl_train.py", "reached": "steps", "reason": ""}
    data = answer["data"]
    assert (data["images"], data["with_repeats"], data["batches_per_epoch"]) == (2, 6, 3)
    assert (data["steps_per_epoch"], data["epochs"], data["total_steps"]) == (2, 4, 8)
    assert data["captions"] == {"empty": 1, "distinct": 2, "longest": 5}
    assert data["datasets"][0]["buckets"] == [{"resolution": [64, 64], "images": 6, "batches": 3}]
    subset = {"folder": str(images / "3_cat"), "images": 2, "repeats": 3}
    captions = {"extension": ".txt", "without_caption": 1, "with_txt": 0, "named": "cat"}
    assert data["datasets"][0]["subsets"] == [{**subset, **captions}]
    assert data["trained"] == [{"part": "U-Net", "weights": 72, "learning_rate": 1e-4}]
    assert any("gone.safetensors" in note for note in answer["notes"])
    assert sorted(images.rglob("*")) == before


def test_stand_ins_for_all_that_is_not_given(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, answer = asked(
        tree, capsys, "sdxl_train.py", "--train_data_dir=/gone", "--pretrained_model_name_or_path=x",
        "--output_dir=o", only="data",
    )  # fmt: skip
    assert (code, answer["start"]["reached"]) == (0, "scheduler")
    assert (answer["data"]["stand_in"], answer["data"]["images"]) == (True, 4)


@pytest.mark.parametrize(
    ("words", "field", "message"),
    [
        (["--cache_text_encoder_outputs", "--shuffle_caption"], "shuffle_caption", "captions are cached, they cannot"),
        (["--optimizer_type=AdamX"], "optimizer_type", "has no attribute 'AdamX'"),
        (["--train_batch_size=two"], "train_batch_size", "invalid int value: 'two'"),
        (["--full_bf16"], "full_bf16", "unrecognized arguments: --full_bf16"),
        (["--resolution=64x64"], "resolution", "invalid literal for int()"),
    ],
)
def test_what_upstream_refuses(
    words: list[str], field: str, message: str, tree: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, answer = asked(
        tree, capsys, "sdxl_train.py", f"--train_data_dir={images}", "--pretrained_model_name_or_path=x",
        "--output_dir=o", *words,
    )  # fmt: skip
    error = answer["start"]["error"]
    assert (code, answer["start"]["ok"]) == (1, False)
    assert message in error["message"]
    assert (error["field"], bool(error["fix"])) == (field, True)
    assert not any("\u3040" <= letter <= "\u30ff" for letter in error["message"])


@pytest.mark.parametrize(
    ("words", "problem"), [(["--max_train_epochs=0"], "0 steps"), (["--learning_rate=0"], "nothing is trained")]
)
def test_runs_that_do_nothing(
    words: list[str], problem: str, tree: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, answer = asked(
        tree, capsys, "sdxl_train.py", f"--train_data_dir={images}", "--pretrained_model_name_or_path=x",
        "--output_dir=o", *words, only="data",
    )  # fmt: skip
    assert code == 1
    assert any(one.startswith(problem) for one in answer["data"]["problems"])


def test_memory(tree: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sdxl_train.py", f"--train_data_dir={images}", "--pretrained_model_name_or_path=x", "--output_dir=o"]
    words += ["--train_batch_size=3"]
    card = ["--card", "0.2GB", "--json", "--only", "memory"]
    assert main(["preflight", str(tree), "--python", sys.executable, *card, "--", *words]) == 1
    memory = json.loads(capsys.readouterr().out)["memory"]
    weights = 512 + 512  # of 8 x 8 and of 8 numbers, each rounded up
    assert (memory["parts"]["weights"], memory["parts"]["optimizer"] >= 2 * weights) == (weights, True)
    assert [one["name"] for one in memory["phases"]][-3:] == ["forward", "backward", "optimizer"]
    assert memory["low_bytes"] < memory["peak_bytes"] < memory["high_bytes"]
    assert memory["verdict"] == "does not fit"
    # Cached text takes nothing off here. AdamW8bit and AdaCoor are tried as well, and refused by this script.
    assert [one["change"] for one in memory["cheapest"]] == ["batch size 1"]
    assert memory["cheapest"][0]["peak_bytes"] < memory["peak_bytes"]


def test_a_check_of_upstreams_in_the_first_step(tree: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, answer = asked(
        tree, capsys, "sdxl_train.py", f"--train_data_dir={images}", "--pretrained_model_name_or_path=x",
        "--output_dir=o", "--resolution=32,32", only="memory",
    )  # fmt: skip
    error = answer["start"]["error"]
    assert (code, error["field"], error["message"]) == (1, "resolution", "the image is too large for resolution")


def test_nothing_is_written_elsewhere(tree: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = images / "written"
    code, answer = asked(
        tree, capsys, "sdxl_train.py", f"--train_data_dir={images}", "--output_dir=o",
        "--pretrained_model_name_or_path=x", f"--write={target}",
    )  # fmt: skip
    assert (code, answer["start"]["error"]["type"], target.exists()) == (1, "ConfinedError", False)


def test_a_family_whose_shapes_nobody_knows(tree: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / "sd3_train.py").write_text((tree / "sdxl_train.py").read_text())
    code, answer = asked(
        tree, capsys, "sd3_train.py", f"--train_data_dir={images}", "--output_dir=o",
        "--pretrained_model_name_or_path=x",
    )  # fmt: skip
    assert (code, answer["start"]["reached"]) == (0, "models")
    assert "shapes are not known" in answer["start"]["reason"]


def test_a_file_of_settings(tree: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('pretrained_model_name_or_path = "sdxl.safetensors"\nmax_train_epochs = 2\n')
    words = [str(file), str(tree), "--script", "sdxl_train", "--data", str(images), "--python", sys.executable]
    code = main(["preflight", *words, "--json", "--set", "max_train_epochs=3"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["start"]["error"] is None
    assert main(["preflight", *words, "--set", "max_train_epoch=3"]) == 2
    assert "did you mean max_train_epochs?" in capsys.readouterr().err
    assert (code, answer["data"]["images"], answer["data"]["total_steps"]) == (0, 2, 18)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name what is to be trained"),
        (["/gone/kohya_ss", "--", "sdxl_train.py"], "/gone/kohya_ss: there is no such folder or file"),
        (["A100-80GB-EMA", "AdaCoor-48GB"], "name one preset or file"),
        (["--card", "24000", "--", "sdxl_train.py"], "give its memory in GB"),
        (["--", "train_nothing.py"], "has no script train_nothing.py"),
        (["--", "sdxl"], "name a training script after --"),
        (["--model", "gone.safetensors", "--", "sdxl_train.py"], "there is no such file"),
        (["--set", "x", "--", "sdxl_train.py"], "write KEY=VALUE"),
    ],
)
def test_wrong_usage(words: list[str], message: str, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preflight", str(tree), "--python", sys.executable, *words]) == 2
    assert message in capsys.readouterr().err


def test_what_is_asked_for_in_vain(tree: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--", "sdxl_train.py", f"--train_data_dir={images}", *MODEL, "--output_dir=o"]
    options = ["--only", "data", "--card", "24GB", "--price", "0.4"]
    assert main(["preflight", str(tree), "--python", sys.executable, *options, *words]) == 0
    said = capsys.readouterr().err
    assert "nobody knows how long one takes" in said and "--only data does not ask" in said


def test_a_run_without_an_output_folder(tree: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, answer = asked(tree, capsys, "sdxl_train.py", f"--train_data_dir={images}", *MODEL, only="")
    assert (code, answer["start"]["ok"]) == (1, True)
    assert answer["data"]["problems"] == ["--output_dir is not given: the run stops where it first saves"]


def test_captions_that_upstream_does_not_find(tree: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for extension, notes in ((".txt", 1), (".caption", 1)):
        words = [f"--train_data_dir={images}", *MODEL, "--output_dir=o", f"--caption_extension={extension}"]
        _, answer = asked(tree, capsys, "sdxl_train.py", *words, only="data")
        assert [one for one in answer["notes"] if f"have no {extension} file" in one][notes:] == []
    folder = images / "3_cat"
    assert answer["notes"][-1] == (
        f"2 of 2 images in {folder} have no .caption file: 'cat' is their caption; 1 of them have a .txt file, which "
        "--caption_extension=.txt takes"
    )


def test_an_image_without_a_size_is_named(tree: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = images / "3_cat" / "2.png"
    broken.write_bytes(b"")
    code, answer = asked(
        tree, capsys, "sdxl_train.py", f"--train_data_dir={images}", *MODEL, "--output_dir=o", only="data"
    )
    error = answer["start"]["error"]
    assert (code, error["message"]) == (1, f"division by zero ({broken})")
    assert "audit" in error["fix"]


def test_a_package_that_is_missing(tree: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"--train_data_dir={images}", *MODEL, "--output_dir=o", "--network_module=lycoris.kohya"]
    _, answer = asked(tree, capsys, "sdxl_train.py", *words)
    error = answer["start"]["error"]
    assert error["where"].startswith("sdxl_train.py:")
    assert error["fix"] == (
        "Kohya's environment lacks the package lycoris-lora: finish Kohya's own setup, or install it there, or change "
        "network_module"
    )


def test_a_misspelled_argument(tree: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"--train_data_dir={images}", *MODEL, "--output_dir=o", "--learnig_rate=1"]
    _, answer = asked(tree, capsys, "sdxl_train.py", *words)
    assert answer["start"]["error"]["fix"] == "correct learnig_rate; did you mean learning_rate?"


def test_a_signal_leaves_nothing_behind(tree: Path, images: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    (tree / "train_db.py").write_text("import time\ntime.sleep(300)\n")
    words = [str(tree), "--python", sys.executable, "--", "train_db.py", "--output_dir=o"]
    process = subprocess.Popen(
        [sys.executable, "-m", "kohya_ext", "preflight", *words], cwd=Path(__file__).parents[2],
        env={**os.environ, "TMPDIR": str(temporary)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until = time.monotonic() + 60
    while not list(temporary.glob("*/request.json")) and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert list(temporary.iterdir()) == []


def test_lines_for_people(tree: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sdxl_train.py", f"--train_data_dir={images}", "--pretrained_model_name_or_path=x", "--output_dir=o"]
    assert main(["preflight", str(tree), "--python", sys.executable, "--", *words]) == 0
    said = capsys.readouterr().out
    assert "start        yes: sdxl_train.py runs two steps on tensors without contents" in said
    assert f"2 x 3 in {images / '3_cat'}" in said
    assert "trained      U-Net: 72 weights at 0.0001, by AdamW" in said
    assert main(["preflight", str(tree), "--python", sys.executable, "--", *words, "--optimizer_type=X"]) == 1
    assert "setting      optimizer_type = X" in capsys.readouterr().out


def test_what_only_tensors_without_contents_cannot(
    tree: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The script reads a shape from values: it would run, but that cannot be shown, and nothing is blamed for it."""
    script = (
        (tree / "sdxl_train.py")
        .read_text()
        .replace(
            "    optimizer = train_util",
            "    torch.nonzero(torch.zeros(4, device='cpu:0'))\n    optimizer = train_util",
        )
    )
    (tree / "train_db.py").write_text(script)
    code, answer = asked(
        tree, capsys, "train_db.py", f"--train_data_dir={images}", "--output_dir=o",
        "--pretrained_model_name_or_path=x", only="",
    )  # fmt: skip
    assert (code, answer["start"]["error"], answer["start"]["reached"]) == (0, None, None)
    assert answer["start"]["reason"].startswith("at train_db.py:")
    assert answer["memory"]["reason"].startswith("it cannot be traced: DynamicOutputShapeException")
