from __future__ import annotations

from pathlib import Path

import pytest

from kohya_ext.core.errors import UsageError
from kohya_ext.dataset import tokens


def test_an_estimate_is_called_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_tokenizer", lambda _: None)
    counter = tokens.counter()
    assert counter.estimated
    assert counter.count("") == 0 and counter.count("a dog, sitting") == 6 and counter.count("2023") == 4


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tokenizer"):
        tokens.counter(tmp_path)


def test_a_real_tokenizer(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "merges.txt").write_text("#version: 0.2\nd o\ndo g</w>\n")
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *"abdgo", *(f"{c}</w>" for c in "abdgo"), "do", "dog</w>"]
    (tmp_path / "vocab.json").write_text(str({word: n for n, word in enumerate(vocabulary)}).replace("'", '"'))
    counter = tokens.counter(tmp_path)
    assert not counter.estimated and counter.count("dog dog bad") == 5


@pytest.mark.parametrize(("count", "limit"), [(0, 75), (75, 75), (76, 150), (225, 225), (226, None)])
def test_the_limit_that_holds_so_many(count: int, limit: int | None) -> None:
    assert tokens.limit_for(count) == limit
