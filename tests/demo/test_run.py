"""The demo from end to end, short; its plan, its data set, and what it refuses."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kohya_ext.checkout.checkout import describe
from kohya_ext.cli import demo as command
from kohya_ext.core.bundle import PACKAGE_DIR
from kohya_ext.core.errors import UsageError
from kohya_ext.demo import run as demonstration
from kohya_ext.demo.run import COLOURS, SHAPES, SIDE, captions, write_images
from kohya_ext.install import apply


def call(*words: str) -> subprocess.CompletedProcess[str]:
    """`kohya-ext demo WORDS` in a process of its own."""
    program = (
        "import sys, argparse; from kohya_ext.cli import demo, main; parser = argparse.ArgumentParser();"
        "demo.register(parser.add_subparsers()); main.build_parser = lambda: parser; sys.exit(main.main())"
    )
    environ = {**os.environ, "PYTHONPATH": str(PACKAGE_DIR.parent)}
    return subprocess.run(
        [sys.executable, "-c", program, "demo", *words], capture_output=True, text=True, env=environ, timeout=300
    )


def test_it_trains_a_patched_miniature_and_leaves_files_and_an_image(tmp_path: Path) -> None:
    for package in ("torch", "accelerate", "PIL"):
        pytest.importorskip(package)
    folder = tmp_path / "a demo"
    done = call("--out", str(folder), "--steps", "8", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    names = {Path(path).name for path in document["models"]}
    assert {"toy.safetensors", "toy-ema.safetensors", "toy-step00000008.safetensors"} <= names
    assert [point["step"] for point in document["save_points"]] == [2, 4, 6, 8]
    assert document["save_points"][0]["raw_loss"] != document["save_points"][0]["ema_loss"]
    assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG")
    log = (folder / "train.log").read_text(encoding="utf-8")
    assert "kohya_ext.optim" in log and "EMA is on" in log
    checkout = describe(folder / "kohya_ss")
    assert apply.status(checkout).installed
    apply.uninstall(checkout)
    status = subprocess.run(["git", "status", "--porcelain"], cwd=checkout.root, capture_output=True, text=True)
    assert status.stdout == ""


def test_the_run_is_the_main_jobs_command() -> None:
    words = demonstration.Demo(Path("x"), steps=300).command()
    assert words[words.index("--optimizer_type") + 1] == "AdaCoor"
    assert words[words.index("--optimizer_args") + 1] == "eps=1e-8"
    assert "--enable_ema" in words and "--ema_decay=0.95" in words
    assert words[words.index("--save_every_n_steps") + 1] == "75"


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        demonstration.choose_folder(str(tmp_path))


def test_a_second_demo_gets_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = demonstration.choose_folder(None)
    first.mkdir()
    assert (first.name, demonstration.choose_folder(None).name) == ("kohya-ext-demo", "kohya-ext-demo-2")


def test_too_few_steps_are_refused_in_words(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    done = call("--out", str(tmp_path / "x"), "--steps", "0")
    assert done.returncode == 2
    assert "at least" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()


def test_missing_packages_are_named_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"torch.*install\.sh --demo"):
        command.run(argparse.Namespace(out=None, steps=None, json=False))


def test_a_failed_run_shows_the_end_of_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo = demonstration.Demo(tmp_path, steps=8)
    demo.checkout.mkdir()
    monkeypatch.setattr(
        demonstration.Demo, "command", lambda self: [sys.executable, "-c", "raise SystemExit('no such image')"]
    )
    with pytest.raises(Exception, match="no such image"):
        demonstration.train(demo, lambda step, loss: None)


def test_half_written_lines_of_the_log_are_waited_for(tmp_path: Path) -> None:
    logs = tmp_path / "logs" / "20260101"
    logs.mkdir(parents=True)
    (logs / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo', encoding="utf-8")
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert [row["step"] for row in demonstration._follow(tmp_path / "logs", process)] == [1]


def test_every_image_has_a_caption_and_the_size(tmp_path: Path) -> None:
    Image = pytest.importorskip("PIL.Image")  # noqa: N806
    assert write_images(tmp_path, per_caption=2) == 2 * len(COLOURS) * len(SHAPES)
    images = sorted(tmp_path.glob("*.png"))
    assert len(images) == 24
    for path in images:
        with Image.open(path) as image:
            assert image.size == (SIDE, SIDE)
        assert path.with_suffix(".txt").read_text(encoding="utf-8").strip() in captions()


def test_the_caption_names_the_colour_in_the_middle(tmp_path: Path) -> None:
    Image = pytest.importorskip("PIL.Image")  # noqa: N806
    write_images(tmp_path, per_caption=1)
    for path in tmp_path.glob("*.png"):
        pixel = Image.open(path).getpixel((SIDE // 2, SIDE // 2))
        nearest = min(
            COLOURS,
            key=lambda name: sum((a - b) ** 2 for a, b in zip(COLOURS[name], pixel, strict=True)),
        )
        assert nearest == path.stem.split("_")[0]


def test_a_seed_gives_the_same_images_and_another_gives_others(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_images(tmp_path / name, per_caption=1, seed=seed)
    read = {name: (tmp_path / name / "red_circle_00.png").read_bytes() for name in "abc"}
    assert read["a"] == read["b"] != read["c"]
