"""Whether images are nearer to training than to held-out images, and how likely that is by chance."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest

pytest.importorskip("numpy")
pytest.importorskip("PIL")
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from kohya_ext.core.errors import UsageError
from kohya_ext.evaluation import held_out
from kohya_ext.evaluation.held_out import Colours, Comparison, PromptedImages, compare
from kohya_ext.evaluation.promptfile import Prompt
from kohya_ext.evaluation.prompts import CAPTIONS, HELD_OUT
from tests.evaluation.painter import image

LEVELS = st.integers(0, 3).map(float)  # few, so that there are ties
SIZE = (96, 64)


def by_hand(table: list[list[float]]) -> Comparison:
    images = range(len(table[0]))

    def nearer(half: tuple[int, ...]) -> float:
        count = 0.0
        for row in table:
            here, there = max(row[i] for i in half), max(row[i] for i in images if i not in half)
            count += 1.0 if here > there else 0.5 if here == there else 0.0
        return count

    found = nearer(tuple(images)[: len(images) // 2])
    every = [nearer(half) for half in itertools.combinations(images, len(images) // 2)]
    return Comparison(len(table), found, sum(one >= found for one in every) / len(every))


@given(st.sampled_from([2, 4, 6]).flatmap(lambda n: st.lists(st.lists(LEVELS, min_size=n, max_size=n), min_size=1)))
def test_it_is_what_counting_gives(table: list[list[float]]) -> None:
    assert compare(table) == by_hand(table)


def test_in_parts_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.random.default_rng(1).normal(size=(5, 8)).tolist()
    whole = compare(table)
    monkeypatch.setattr(held_out, "AT_ONCE", 100)
    assert compare(table) == whole


def test_copies_of_every_training_image_are_hardly_chance() -> None:
    found = compare(np.eye(6, 12).tolist())
    assert (found.samples, found.nearer) == (6, 6.0) and found.chance == 1 / math.comb(12, 6)


def test_many_copies_of_one_image_may_well_be_chance() -> None:
    """It could as well have been a held-out image: how often it is drawn says nothing."""
    found = compare([[1.0] + [0.0] * 7] * 50)
    assert found.nearer == 50 and found.chance == 0.5


def test_more_images_than_can_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The random ways give what all ways give, as nearly as so many can."""
    table = np.random.default_rng(3).normal(size=(9, 10))
    table[:, :5] += 0.5
    exact = compare(table.tolist())
    monkeypatch.setattr(held_out, "MOST_WAYS", 200)
    drawn = compare(table.tolist())
    assert drawn.nearer == exact.nearer and abs(drawn.chance - exact.chance) < 5 * math.sqrt(0.25 / 200)
    assert drawn == compare(table.tolist())
    many = compare(np.eye(20, 40).tolist())
    assert many.chance == 1 / held_out.MOST_WAYS


def test_a_model_that_has_seen_none_of_them_is_rarely_called_one_that_memorizes() -> None:
    """Its samples look much alike, as a model's may: a binomial test would call most of these trials memorizing."""
    chance, called = np.random.default_rng(5), 0
    for _ in range(200):
        images = chance.normal(size=(10, 20))
        samples = chance.normal(size=20) + 0.2 * chance.normal(size=(30, 20))
        called += compare((samples @ images.T).tolist()).chance < 0.05
    assert called <= 20  # 10 are expected; 21 or more come once in 1,000 times


class TestColours:
    measure = Colours()

    def likeness(self, one: Image.Image, other: Image.Image) -> float:
        return self.measure.likeness(self.measure.features(one), self.measure.features(other))

    def test_faint_and_blurred_is_the_same(self) -> None:
        one, other = image("a", SIZE), image("b", SIZE)
        faint = one.filter(ImageFilter.GaussianBlur(4)).point(lambda value: 100 + value // 4)
        assert self.likeness(one, one) == pytest.approx(1)
        assert self.likeness(faint, one) > 0.9 > self.likeness(one, other) + 0.3

    def test_a_single_colour_is_like_nothing(self) -> None:
        plain = Image.new("RGB", SIZE, (90, 90, 90))
        assert self.likeness(plain, image("a", SIZE)) == 0 and self.likeness(plain, plain) == 0

    def test_any_size_and_mode(self) -> None:
        one = image("a", SIZE)
        assert self.likeness(one.resize((384, 256)), one) > 0.98
        assert self.likeness(one.convert("L"), one.convert("P")) > 0.3


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for kind in ("train", "held"):
        (tmp_path / kind).mkdir()
        for number in range(5):
            image(f"{kind} {number}", SIZE).save(tmp_path / kind / f"{number}.png")
    return tmp_path / "train", tmp_path / "held"


def prompts(training: int, held: int) -> list[Prompt]:
    one = [Prompt(f"t{number}", section=CAPTIONS, source=f"{number}.png") for number in range(training)]
    return [*one, *(Prompt(f"h{number}", section=HELD_OUT, source=f"{number}.png") for number in range(held))]


def test_as_many_images_of_each_kind(folders: tuple[Path, Path]) -> None:
    all_of_them = [*prompts(5, 4), Prompt("near", section="near the captions"), prompts(1, 0)[0]]
    images = PromptedImages(*folders, all_of_them, Colours())
    drawn = image("held 2", SIZE)
    counted = [images.likenesses(prompt, drawn) for prompt in all_of_them]
    assert [len(one) for one in counted] == [8, 8, 8, 8, 0, 8, 8, 8, 8, 0, 8]
    assert max(range(8), key=lambda place: counted[0][place]) == 4 + 2


def test_too_few_prompts(folders: tuple[Path, Path]) -> None:
    for few in (prompts(5, 3), prompts(3, 5), [Prompt("a")]):
        with pytest.raises(UsageError, match=r"prompts FOLDER --held-out DIR"):
            PromptedImages(*folders, few, Colours())


def test_an_image_that_is_missing(folders: tuple[Path, Path]) -> None:
    (folders[1] / "1.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"held.1\.png"):
        PromptedImages(*folders, prompts(4, 4), Colours())
