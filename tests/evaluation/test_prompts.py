from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kohya_ext.core.errors import UsageError
from kohya_ext.evaluation.prompts import CAPTIONS, GENERIC, HELD_OUT, NEAR, CaptionedImage, PromptSettings, make

TEXTS = [
    "femme ewpp in a long green dress standing on a bridge",
    "femme ewpp, short hair, laughing",
    "femme ewpp riding a horse through shallow water",
    "close view of femme ewpp with a book",
    "femme ewpp sitting at a table with two cups of tea",
    "femme ewpp in armor",
]
SET = [CaptionedImage(text, f"{number}.png") for number, text in enumerate(TEXTS)]


def test_the_kinds() -> None:
    made = make(SET, PromptSettings(count=3, seed=7, trigger="ewpp"))
    assert Counter(prompt.section for prompt in made) == {
        CAPTIONS: 3, NEAR: 3, f"{GENERIC}: people": 12, f"{GENERIC}: objects": 12, f"{GENERIC}: landscapes": 12,
    }  # fmt: skip
    for prompt in made:
        if prompt.section == CAPTIONS:
            assert CaptionedImage(prompt.text, prompt.source) in SET
        elif prompt.section == NEAR:
            assert prompt.text not in TEXTS and "ewpp" in prompt.text
        else:
            assert "ewpp" not in prompt.text
    people = [prompt for prompt in made if prompt.section == f"{GENERIC}: people"]
    assert [prompt.seed for prompt in people] == [7, 8, 9, 10] * 3
    assert len({prompt.text for prompt in people}) == 3


def test_the_same_every_time_and_in_any_order() -> None:
    settings = PromptSettings(count=3, seed=7)
    assert make(SET, settings) == make(SET[::-1], settings)
    assert make(SET, settings) != make(SET, PromptSettings(count=3, seed=8))


def test_copies_of_a_caption_count_once() -> None:
    made = make(
        [CaptionedImage("a cat", "b.png"), CaptionedImage("a  cat", "a.png"), CaptionedImage(" ", "c.png")],
        PromptSettings(),
    )
    captions = [(prompt.text, prompt.source) for prompt in made if prompt.section == CAPTIONS]
    assert captions == [("a cat", "a.png")]


def test_nothing_to_prompt_with() -> None:
    with pytest.raises(UsageError, match="no caption"):
        make([CaptionedImage("", "a.png")], PromptSettings())
    with pytest.raises(UsageError, match="no caption"):
        make(SET, PromptSettings(), [])


@pytest.mark.parametrize(("training", "held", "count"), [(6, 4, 4), (3, 6, 3), (6, 6, 5)])
def test_as_many_captions_of_held_out_images(training: int, held: int, count: int) -> None:
    """And each with noise of its own."""
    other = [CaptionedImage(f"a held-out caption {number}", f"h{number}.png") for number in range(held)]
    made = make(SET[:training], PromptSettings(count=5, seed=7), other)
    ours, theirs = ([one for one in made if one.section == kind] for kind in (CAPTIONS, HELD_OUT))
    assert [one.seed for one in (*ours, *theirs)] == [7 + number for number in range(2 * count)]
    assert {CaptionedImage(one.text, one.source) for one in theirs} <= set(other)
    assert len({one.source for one in theirs}) == len({one.source for one in ours}) == count
    assert make(SET[:training], PromptSettings(count=5, seed=7), other[::-1]) == made


@given(
    texts=st.lists(st.text("ab, .(\n", max_size=12), max_size=4),
    count=st.integers(1, 5),
    trigger=st.sampled_from(["", "a"]),
)
def test_any_captions(texts: list[str], count: int, trigger: str) -> None:
    captions = [CaptionedImage(text, f"{number}.png") for number, text in enumerate(texts)]
    if not any(text.strip() for text in texts):
        return
    made = make(captions, PromptSettings(count=count, trigger=trigger))
    near = [prompt.text for prompt in made if prompt.section == NEAR]
    assert len(near) == len(set(near)) <= count and all(prompt.text.strip() for prompt in made)
    assert not set(near) & {" ".join(text.split()) for text in texts}
