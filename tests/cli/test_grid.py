from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("PIL")
pytest.importorskip("imagehash")
from PIL import Image

from kohya_ext.cli import grid as command
from kohya_ext.core.errors import CONFLICT, DONE, WRONG_USAGE
from kohya_ext.evaluation.promptfile import Prompt
from kohya_ext.spec.judged import FILE, decoded
from tests.cli.conftest import Ran
from tests.evaluation.painter import LORA_KEYS, Painter, image, models, training_set

Run = Callable[..., Ran]
CAPTIONS = ["a b", "c d"]
PROMPTS = "# == captions\na b --w 128 --h 128 --d 1\nc d --w 128 --h 128 --d 1\n# == generic\ne --w 128 --h 128 --d 1\n"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    return tmp_path / "prompts.txt"


@pytest.fixture
def painter(monkeypatch: pytest.MonkeyPatch) -> Painter:
    painter = Painter({"femme": 2}, CAPTIONS)

    def make(*_: Any) -> tuple[Painter, str]:
        return painter, ""

    monkeypatch.setattr(command, "make_renderer", make)
    return painter


def test_a_grid(tmp_path: Path, prompts: Path, painter: Painter, run: Run) -> None:
    models(tmp_path / "models", "femme", "femme-ema")
    images = training_set(tmp_path / "set", CAPTIONS)
    words = ("grid", tmp_path / "models", "--prompts", prompts, "--output", tmp_path / "out", "--images", images)
    done = run(*words)
    assert done.code == DONE and "near copies  2 of 3: femme\n" in done.text and "0 of 3: femme, EMA" in done.text
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"grid.html", "grid.png", "grid.json", "images"}
    document = run(*words, "--json", "--limit", "1").document
    assert [model["near_copies"] for model in document["models"]] == [1, 0] and len(document["prompts"]) == 2
    assert document["models"][0]["images"][0]["nearest"]["path"] == "0.png"
    assert len(painter.drawn) == 6


HELD = [f"held {number}" for number in range(4)]
TRAINED = [f"trained {number}" for number in range(4)]


class Memorizer(Painter):
    """The raw weights draw a training image for any caption, the EMA the caption's own image."""

    def draw(self, prompt: Prompt) -> Image.Image:
        text = TRAINED[HELD.index(prompt.text)] if prompt.text in HELD and self.loaded[-1] == "femme" else prompt.text
        return image(text, (prompt.width, prompt.height))


@pytest.fixture
def judged(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> list[str | Path]:
    """The words that compare a model that has memorized, and its EMA, which has not."""
    painter = Memorizer({}, [])
    monkeypatch.setattr(command, "make_renderer", lambda *_: (painter, ""))
    models(tmp_path / "models", "femme", "femme-ema")
    images, held = training_set(tmp_path / "set", TRAINED), training_set(tmp_path / "held", HELD)
    prompts = tmp_path / "held.txt"
    size = ("--size", "64x64")
    assert run("prompts", images, "--held-out", held, "--output", prompts, *size).code == DONE
    words: list[str | Path] = ["grid", tmp_path / "models", "--prompts", prompts, "--output", tmp_path / "out"]
    return [*words, "--images", images, "--held-out", held]


def test_held_out_images(tmp_path: Path, judged: list[str | Path], run: Run) -> None:
    done = run(*judged, "--json")
    assert done.code == DONE
    assert [model["held_out"] for model in done.document["models"]] == [
        {"samples": 8, "nearer": 8.0, "chance": 1 / 70}, {"samples": 8, "nearer": 4.0, "chance": 1.0},
    ]  # fmt: skip
    text = run(*judged).text
    assert "8 of 8 (by chance 4; p = 0.014): femme\n" in text and "4 of 8 (by chance 4; p = 1): femme, EMA\n" in text
    rows = decoded((tmp_path / "out" / FILE).read_text())
    assert [(row.model, row.samples, row.chance) for row in rows] == [
        ("femme", 8, 1 / 70), ("femme-ema", 8, 1.0),
    ]  # fmt: skip
    page = (tmp_path / "out" / "grid.html").read_text()
    assert "nearer to a training than to a held-out image" in page and rows[0].told() in page


def test_held_out_images_alone(tmp_path: Path, judged: list[str | Path], run: Run) -> None:
    done = run(*(word for word in judged if word not in ("--images", tmp_path / "set")))
    assert done.code == WRONG_USAGE and "--images" in done.errors
    (tmp_path / "held.txt").write_text("a b --d 1\n")
    done = run(*judged)
    assert done.code == WRONG_USAGE and "prompts FOLDER --held-out DIR" in done.errors


def test_dry_run(tmp_path: Path, prompts: Path, run: Run) -> None:
    file = models(tmp_path / "models", "femme")[0]
    done = run("grid", file, "--prompts", prompts, "--output", tmp_path / "out", "--dry-run")
    assert done.code == DONE and "3 prompts by 1 models: 3" in done.text and not (tmp_path / "out").exists()


def test_warnings(tmp_path: Path, prompts: Path, painter: Painter, run: Run) -> None:
    file = models(tmp_path / "models", "femme")[0]
    prompts.write_text("a (red:1.2) fox --w 64 --h 64\na dog --h 64--w 64\n")
    done = run("grid", file, "--prompts", prompts, "--output", tmp_path / "out")
    assert "takes '--w 64' for text" in done.errors
    assert done.code == DONE and "brackets in prompts as weights" in done.errors and "without a seed" in done.errors


def test_a_json_file(tmp_path: Path, painter: Painter, run: Run) -> None:
    file = models(tmp_path / "models", "femme")[0]
    (tmp_path / "p.json").write_text('[{"prompt": "a fox", "width": 64, "height": 64, "seed": 1, "cfg": 5}]')
    done = run("grid", file, "--prompts", tmp_path / "p.json", "--output", tmp_path / "out", "--json")
    assert done.code == DONE and done.document["prompts"][0]["text"] == "a fox"
    assert "no script reads the keys cfg" in done.document["warnings"][0]
    (tmp_path / "p.json").write_text('[{"prompt": "a fox", "width": "64"}]')
    done = run("grid", file, "--prompts", tmp_path / "p.json", "--output", tmp_path / "out")
    assert done.code == WRONG_USAGE and "p.json: prompt 1: width = '64' is not a whole number" in done.errors


def test_wrong_input(tmp_path: Path, prompts: Path, painter: Painter, run: Run) -> None:
    file = models(tmp_path / "models", "femme")[0]
    out = ("--output", tmp_path / "out")
    (tmp_path / "none.txt").write_text("# nothing\n")
    assert run("grid", file, "--prompts", tmp_path / "absent", *out).code == WRONG_USAGE
    assert run("grid", file, "--prompts", tmp_path / "none.txt", *out).code == WRONG_USAGE
    assert run("grid", tmp_path / "absent", "--prompts", prompts, *out).code == WRONG_USAGE
    assert run("grid", file, "--prompts", prompts, *out, "--images", tmp_path / "absent").code == WRONG_USAGE
    assert run("grid", file, "--prompts", prompts, "--output", prompts).code == CONFLICT
    assert not (tmp_path / "out").exists()


def test_a_lora_wants_its_base(tmp_path: Path, prompts: Path, run: Run) -> None:
    lora = models(tmp_path / "models", "lora", keys=LORA_KEYS)[0]
    done = run("grid", lora, "--prompts", prompts, "--output", tmp_path / "out")
    assert done.code == WRONG_USAGE and "--base" in done.errors
