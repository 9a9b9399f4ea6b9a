"""What is written is what Kohya reads. Its rules are written out here once more, from its behaviour."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kohya_ext.core.errors import UsageError
from kohya_ext.evaluation.promptfile import (
    HEIGHT,
    SECTION,
    Prompt,
    document,
    has_weights,
    joined_flag,
    line,
    parse,
    parse_line,
)

WORDS = st.lists(
    st.sampled_from(
        [
            "n",
            "w",
            "s",
            "5",
            "30",
            "--",
            "--n",
            "--w",
            "#",
            "\\",
            "\\\\",
            "(a",
            "b:1.2)",
            "[c]",
            "cat",
            "ü",
            "N",
            "L",
            "2.5",
        ]
    ),
    min_size=1,
    max_size=7,
)
TEXTS = st.builds(" ".join, WORDS) | st.text("nwhdslg 12.-#\\()[]:a", min_size=1, max_size=20).filter(str.strip)


FLAGS = [(name, rf"{name} (\d+)") for name in "whds"] + [(name, rf"{name} ([\d\.]+)") for name in "lg"]
FLAGS += [(name, rf"{name} (.+)") for name in ("n", "ss", "cn", "ctr", "fs")]


def kohya(text: str) -> dict[str, Any] | None:
    """How sd-scripts takes a line: None for a comment, else its flags and the words with their weights."""
    text = text.strip()
    if not text or text[0] == "#":
        return None
    pieces = text.split(" --")
    found: dict[str, Any] = {"words": weighed(pieces[0])}
    for piece in pieces:
        for name, pattern in FLAGS:
            if match := re.match(pattern, piece, re.IGNORECASE):
                found[name] = match[1]
                break
    return found


def weighed(text: str) -> tuple[str, bool]:
    """The words that reach the encoder, and whether any bracket became a weight."""
    out, brackets = "", False
    for match in re.finditer(r"\\[()\[\]\\]|\\|[()\[\]]|[^\\()\[\]]+", text):
        token = match[0]
        brackets |= token in ("(", "[")
        out += token[1:] if token.startswith("\\") else token
    return out, brackets


@given(text=TEXTS, negative=TEXTS | st.just(""))
def test_kohya_reads_every_text_literally(text: str, negative: str) -> None:
    prompt = Prompt(text, 1024, 768, 30, 7.5, 42, negative)
    read = kohya(line(prompt))
    assert read is not None
    assert read["words"] == (" ".join(text.split()), False)
    assert {key: read.get(key) for key in "whdsl"} == {"w": "1024", "h": "768", "d": "42", "s": "30", "l": "7.5"}
    assert set(read) <= {"words", *"whdsln"}
    if negative.strip():
        assert weighed(read["n"]) == (" ".join(negative.split()), False)


@given(text=TEXTS, negative=TEXTS | st.just(""), seed=st.none() | st.integers(0, 2**32))
def test_we_read_it_back(text: str, negative: str, seed: int | None) -> None:
    text, negative = " ".join(text.split()), " ".join(negative.split())
    prompt = Prompt(text, 1024, 768, 30, 7.5, seed, negative)
    assert parse_line(line(prompt)) == prompt


def test_a_document() -> None:
    prompts = [
        Prompt("a", section="captions", source="x/1.png"), Prompt("b", section="captions", source="x/2.png"),
        Prompt("#c", section="generic", seed=1), Prompt("#c", section="generic", seed=2),
    ]  # fmt: skip
    text = document(prompts)
    assert parse(text) == prompts and text.startswith(SECTION)
    read = [kohya(one) for one in text.splitlines()]
    assert [one["words"][0] for one in read if one] == ["a", "b", "#c", "#c"]


def test_kohyas_defaults_and_limits() -> None:
    assert parse_line("a cat") == Prompt("a cat", 512, 512, 30, 7.5, None, "")
    assert parse_line("a cat --W 1030 --h 10 --s 5000 --N bad, ugly --l 2.5.1") == replace(
        Prompt("a cat"), width=1024, height=64, steps=1000, negative="bad, ugly"
    )


def test_a_number_of_thousands_of_digits_is_ignored() -> None:
    assert parse_line(f"a cat --w {'9' * 5000} --d {'9' * 5000} --h 64") == Prompt("a cat", 512, 64)


def test_weights_are_noticed() -> None:
    assert has_weights("a (red:1.2) apple") and not has_weights(r"a \(red\) apple --n (bad)")


@pytest.mark.parametrize(
    ("text", "flag"),
    [
        ("a cat--w 512", "--w 512"), ("a cat --w 512--h 768 --d 1", "--h 768"),
        ("a cat --d 1--n bad, worse", "--n bad,"),
        ("a cat --w 512 --h 768", ""), ("a cat -- done", ""), ("half--done", ""), ("a cat \\--w 5", ""),
        ("a well--n known", "--n known"),
    ],
)  # fmt: skip
def test_flags_without_a_blank_before_them(text: str, flag: str) -> None:
    assert joined_flag(text) == flag
    if flag:  # and it is text indeed
        made = parse_line(text)
        assert flag in f"{made.text} {made.negative}" or made.height == HEIGHT


def test_a_file_without_prompts() -> None:
    with pytest.raises(UsageError, match="no prompt"):
        parse("# only\n\n  # comments\n")
