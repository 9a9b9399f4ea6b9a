"""Words of a command that a missing blank has made one of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kohya_ext.presets.joined_words import apart

KNOWN = ("lowram", "no_half_vae", "min_snr_gamma", "optimizer_type", "training_comment", "vae", "vae_batch_size")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--lowram--no_half_vae", ["--lowram", "--no_half_vae"]),
        ("--lowram,--no_half_vae", ["--lowram", "--no_half_vae"]),
        ("--min_snr_gamma=5--lowram;--no_half_vae", ["--min_snr_gamma=5", "--lowram", "--no_half_vae"]),
        ("--training_comment=mine--lowram", ["--training_comment=mine", "--lowram"]),
        ("5--lowram", ["5", "--lowram"]),
        ("--lowram--vae_batch_size=2", ["--lowram", "--vae_batch_size=2"]),
        ("--lowramno_half_vae", ["--lowram", "--no_half_vae"]),
        ("--min_snr_gamma5", ["--min_snr_gamma", "5"]),
        ("--optimizer_typeAdamW8bit", ["--optimizer_type", "AdamW8bit"]),
        ("--lowram", ["--lowram"]),
        ("--vae_batch_size=2", ["--vae_batch_size=2"]),
        ("--vae_batch", ["--vae_batch"]),  # argparse takes beginnings
        ("--vae_bach_size", ["--vae_bach_size"]),  # misspelt, not joined
        ("--training_comment=a--b", ["--training_comment=a--b"]),
        ("--training_comment=a--lowrams", ["--training_comment=a--lowrams"]),
        ("--no_such_flag", ["--no_such_flag"]),
        ("word", ["word"]),
        ("", [""]),
    ],
)
def test_words_are_taken_apart_where_a_known_flag_begins(word: str, expected: list[str]) -> None:
    assert apart(word, KNOWN) == expected


@given(st.lists(st.sampled_from([f"--{name}" for name in KNOWN] + ["--vae=a.pt", "--vae_batch_size=2"]), min_size=1))
def test_flags_written_without_blanks_come_back(flags: list[str]) -> None:
    assert apart("".join(flags), KNOWN) == flags


@given(st.text())
def test_any_word_can_be_asked_about(word: str) -> None:
    assert apart(word, KNOWN)
