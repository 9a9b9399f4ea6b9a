from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_ext.core.errors import CONFLICT, DONE, WRONG_USAGE
from kohya_ext.evaluation.promptfile import parse
from tests.cli.conftest import Ran
from tests.dataset.folders import folder_of

Run = Callable[..., Ran]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return folder_of(
        tmp_path / "set",
        {
            "a dog (1).png": None,
            "b.jpg": None,
            "b.txt": "a cat\nsecond line",
            "5_x/c.webp": None,
            "5_x/c.txt": "--n #1",
        },
    )


def test_printed(folder: Path, run: Run) -> None:
    done = run("prompts", folder)
    found = parse(done.text)
    assert done.code == DONE
    assert {one.text: one.source for one in found if one.source} == {
        "a dog": "a dog (1).png", "a cat": "b.jpg", "--n #1": "5_x/c.webp",
    }  # fmt: skip


def test_written(folder: Path, run: Run, tmp_path: Path) -> None:
    target = tmp_path / "prompts.txt"
    options = ("--size", "832x1216", "--steps", "20", "--cfg", "5.5", "--count", "1", "--negative", "blurry")
    done = run("prompts", folder, "--output", target, *options)
    assert done.code == DONE and "14 prompts from 3 captions" in done.text and "4 generic: people" in done.text
    assert all(
        line.endswith("--n blurry") for line in target.read_text().splitlines() if "--w 832 --h 1216 --s 20" in line
    )
    before = target.read_bytes()
    assert run("prompts", folder, "--output", target).code == CONFLICT and target.read_bytes() == before
    assert run("prompts", folder, "--output", target, "--overwrite").code == DONE and target.read_bytes() != before


def test_with_held_out_images(folder: Path, run: Run, tmp_path: Path) -> None:
    held = folder_of(tmp_path / "held", {"a fox.png": None, "d.png": None, "d.txt": "a hen"})
    done = run("prompts", folder, "--held-out", held, "--output", tmp_path / "prompts.txt")
    assert done.code == DONE and "2 captions, word for word" in done.text
    assert "2 captions of held-out images" in done.text and "16 generic: people" in done.text
    assert "# image: d.png\na hen --w" in (tmp_path / "prompts.txt").read_text()
    assert run("prompts", folder, "--held-out", tmp_path / "absent").code == WRONG_USAGE


def test_json(folder: Path, run: Run) -> None:
    document = run("prompts", folder, "--json", "--count", "2").document
    assert document["captions"] == 3 and len(document["prompts"]) == 2 + 2 + 24
    assert document["prompts"][0]["line"].endswith("--d 1")


def test_captions_that_cannot_be_read(folder: Path, run: Run) -> None:
    (folder / "b.txt").write_bytes(b"\xff\xfe")
    done = run("prompts", folder)
    assert done.code == DONE and "b.txt is not UTF-8" in done.errors


@pytest.mark.parametrize(
    "words",
    [
        ("--size", "big"),
        ("--size", "1000x1001"),
        ("--count", "0"),
        ("--steps", "0"),
        ("--seed", "-1"),
        ("--output", "x.md"),
    ],
)
def test_wrong_options(folder: Path, run: Run, words: tuple[str, str]) -> None:
    assert run("prompts", folder, *words).code == WRONG_USAGE
    assert run("prompts", folder / "absent").code == WRONG_USAGE
