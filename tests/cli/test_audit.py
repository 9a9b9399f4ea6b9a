from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_ext.core.errors import DONE, FOUND_PROBLEMS, WRONG_USAGE
from tests.cli.conftest import Ran
from tests.systems import WINDOWS

pytest.importorskip("PIL")
from tests.dataset.generated import Builder

Run = Callable[..., Ran]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Builder(tmp_path / "set", 128).good(3)
    return tmp_path / "set"


def test_a_good_one(folder: Path, run: Run) -> None:
    done = run("audit", folder, "--resolution", "128,128", "--token", "ewpp")
    assert done.code == DONE and "0 problems, 2 pieces of advice" in done.text and "128x128: 3" in done.text


def test_a_bad_one(folder: Path, run: Run) -> None:
    done = run("audit", folder)
    assert done.code == FOUND_PROBLEMS and "upscale it 8.00 times" in done.text


def test_json(folder: Path, run: Run) -> None:
    document = run("audit", folder, "--json").document
    assert document["exit_code"] == FOUND_PROBLEMS and len(document["images"]) == 3
    assert {finding["code"] for finding in document["findings"]} == {"too-small", "few-images", "no-repeats"}


def test_the_page(folder: Path, run: Run, tmp_path: Path) -> None:
    name = "b&" if WINDOWS else "<b>&"  # no file on Windows has such brackets in its name
    (folder / "good 0000.txt").rename(folder / f"{name}.txt")
    (folder / "good 0000.png").rename(folder / f"{name}.png")
    run("audit", folder, "--html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert f"{html.escape(name)}.png" in page and f"{name}.png" not in page and page.count("data:image/jpeg") == 3
    assert "http" not in page


@pytest.mark.parametrize("words", [("--resolution", "big"), ("--resolution", "0,0"), ("--tokenizer", "nowhere")])
def test_errors(folder: Path, run: Run, words: tuple[str, str]) -> None:
    assert run("audit", folder, *words).code == WRONG_USAGE
    assert run("audit", folder / "absent").code == WRONG_USAGE


def test_a_page_that_cannot_be_written(folder: Path, run: Run, tmp_path: Path) -> None:
    for page in (tmp_path / "absent" / "page.html", tmp_path):
        done = run("audit", folder, "--html", page)
        assert done.code == WRONG_USAGE and not done.text, "before any image is looked at"


@pytest.mark.parametrize(("count", "said"), [(19, "fewer"), (20, "enough"), (60, "enough"), (61, "more than the 60"),
                                             (150, "more than the 60"), (151, "more than the 150")])  # fmt: skip
def test_how_many(count: int, said: str) -> None:
    from kohya_ext.dataset.balance import how_many

    assert said in how_many(count)


def test_bucket_settings(folder: Path, run: Run) -> None:
    words = ("--resolution", "128,128", "--token", "ewpp")
    done = run("audit", folder, *words, "--bucket-step", "32", "--min-bucket", "64", "--max-bucket", "130")
    assert done.code == DONE and "128x128: 3" in done.text
    for wrong in (("--bucket-step", "7"), ("--min-bucket", "512"), ("--max-bucket", "64"), ("--max-bucket", "0")):
        assert run("audit", folder, *words, *wrong).code == WRONG_USAGE, wrong


def test_repeats_are_said(folder: Path, run: Run) -> None:
    folder = folder.rename(folder.with_name("10_x"))
    done = run("audit", folder, "--resolution", "128,128")
    assert "128x128: 3 (30 with repeats)" in done.text
    assert run("audit", folder, "--resolution", "128,128", "--json").document["buckets"] == [
        {"width": 128, "height": 128, "images": 3, "with_repeats": 30}
    ]


def test_a_card_has_image_caption_and_findings_and_copies_side_by_side(folder: Path, run: Run, tmp_path: Path) -> None:
    (folder / "good 0000.txt").write_text("1girl, <b>ewpp</b>, solo, smile, red dress")
    (folder / "twin.png").write_bytes((folder / "good 0000.png").read_bytes())
    (folder / "orphan.txt").write_text("of no image")
    run("audit", folder, "--html", tmp_path / "page.html", "--resolution", "128,128")
    cards = (tmp_path / "page.html").read_text().split("<div class=card>")[1:]
    (first,) = (card for card in cards if ">good 0000.png<" in card and ">twin.png<" not in card)
    assert "1girl, &lt;b&gt;ewpp&lt;/b&gt;, solo" in first and "<b>" not in first
    assert "good 0000.txt reads like a list of tags" in first and first.count("data:image/jpeg") == 1
    (twin,) = (card for card in cards if ">twin.png<" in card)
    assert twin.count("data:image/jpeg") == 2 and "<figcaption>good 0000.png" in twin
    assert "no twin.txt" in twin and "is the same file as good 0000.png" in twin
    (orphan,) = (card for card in cards if "orphan.txt" in card)
    assert "data:image" not in orphan and "of no image" not in orphan


def test_a_pair_has_its_other_in_json(folder: Path, run: Run) -> None:
    (folder / "twin.png").write_bytes((folder / "good 0000.png").read_bytes())
    (pair,) = (one for one in run("audit", folder, "--json").document["findings"] if one["code"] == "duplicate")
    assert (pair["path"], pair["other"]) == ("twin.png", "good 0000.png")
