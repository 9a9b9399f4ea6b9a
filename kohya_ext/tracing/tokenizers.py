"""Tokenizers: the real ones where they are available, else stand-ins that give as many tokens as a text has characters.

What is trained has the same shape with either: prompts are padded to the tokenizer's length.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kohya_ext.tracing.milestones import MODELS, Reached

CLIP_START, CLIP_END, CLIP_LENGTH = 49406, 49407, 77


def replace_loader(folder: Path, notes: list[str]) -> None:
    """Let `from_pretrained` of all tokenizers fall back on a stand-in.

    Args:
        folder: where a stand-in's files are written.
        notes: gets a line for each stand-in used.
    """
    try:
        from transformers import PreTrainedTokenizerBase
    except ImportError:
        return

    original = PreTrainedTokenizerBase.from_pretrained.__func__

    def from_pretrained(cls: Any, name: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(cls, name, *args, **kwargs)
        except Exception as error:
            return _stand_in(cls, str(name), folder, notes, error)

    PreTrainedTokenizerBase.from_pretrained = classmethod(from_pretrained)
    _replace_auto(folder, notes)


def _replace_auto(folder: Path, notes: list[str]) -> None:
    from transformers import AutoTokenizer

    original = AutoTokenizer.from_pretrained

    def from_pretrained(name: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(name, *args, **kwargs)
        except Exception as error:
            raise Reached(MODELS, f"the tokenizer {name} is not available ({type(error).__name__})") from None

    AutoTokenizer.from_pretrained = from_pretrained


def _stand_in(cls: Any, name: str, folder: Path, notes: list[str], error: Exception) -> Any:
    make: Callable[[Any, Path], Any] | None = next(
        (make for prefix, make in (("CLIP", _clip), ("T5", _t5)) if cls.__name__.startswith(prefix)), None
    )
    if make is None:
        raise Reached(MODELS, f"the tokenizer {name} is not available ({type(error).__name__})") from None
    notes.append(f"the tokenizer {name} is not available: a stand-in counts characters as tokens")
    return make(cls, folder)


def _clip(cls: Any, folder: Path) -> Any:
    from transformers.models.clip.tokenization_clip import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    words = {letter: number for number, letter in enumerate([*letters, *(f"{letter}</w>" for letter in letters)])}
    words |= {"<|startoftext|>": CLIP_START, "<|endoftext|>": CLIP_END}
    (folder / "vocab.json").write_text(json.dumps(words), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return cls(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=CLIP_LENGTH)


def _t5(_: Any, folder: Path) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = {"<pad>": 0, "</s>": 1, "<unk>": 2, **{chr(code): code - 29 for code in range(32, 127)}}
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="<unk>"))  # noqa: S106 - not a password
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    named = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **named)
