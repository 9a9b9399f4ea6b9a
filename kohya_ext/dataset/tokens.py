"""How many tokens a caption has, for CLIP's limit of 75, or 150 and 225 where Kohya is told so."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kohya_ext.core.errors import UsageError

LIMITS = (75, 150, 225)  # Kohya's --max_token_length
CLIP = "openai/clip-vit-large-patch14"
FILES = ("vocab.json", "tokenizer.json")
WORDS_OF_CLIP = 49408
TOKENS_A_WORD = 1.35  # of English captions with some rare words in them
_PIECES = re.compile(r"[^\W\d_]+|\d|[^\w\s]")


@dataclass(frozen=True)
class TokenCounter:
    """count: text -> tokens, without those for start and end. estimated: there was no tokenizer to ask."""

    count: Callable[[str], int]
    estimated: bool


def counter(folder: Path | None = None) -> TokenCounter:
    """A counter with CLIP's tokenizer from `folder` or from the local cache; without one it estimates.

    Nothing is downloaded. Raises UsageError when `folder` holds no tokenizer.
    """
    tokenizer = _tokenizer(folder)
    if tokenizer is None:
        if folder is not None:
            raise UsageError(
                f"{folder} contains no CLIP tokenizer (vocab.json, merges.txt), or transformers is missing"
            )
        return TokenCounter(_estimate, estimated=True)

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return TokenCounter(count, estimated=False)


def limit_for(count: int) -> int | None:
    """The smallest of Kohya's limits that holds so many tokens; None when none does."""
    return next((limit for limit in LIMITS if count <= limit), None)


def _estimate(text: str) -> int:
    pieces: list[str] = _PIECES.findall(text)
    words = sum(piece[0].isalpha() for piece in pieces)
    return math.ceil(words * TOKENS_A_WORD) + len(pieces) - words


def _tokenizer(folder: Path | None) -> Any:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        from transformers import CLIPTokenizer
    except ImportError:
        return None
    if folder is not None and not any((folder / name).is_file() for name in FILES):
        return None
    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(folder or CLIP), local_files_only=True)
    except (OSError, ValueError, TypeError):
        return None
    # some releases of transformers make an empty tokenizer where they find no files
    return tokenizer if folder is not None or tokenizer.vocab_size >= WORDS_OF_CLIP else None
