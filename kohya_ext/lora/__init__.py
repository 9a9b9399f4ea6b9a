"""LoRA files: what a fine-tune changed, as low-rank factors (`extract`), and fewer of them (`resize`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def output_files(path: Path, ranks: Sequence[int]) -> list[Path]:
    """The files that an extraction writes: `path` itself, or with several ranks NAME-rank128.safetensors and so on."""
    if len(ranks) == 1:
        return [path]
    return [path.with_name(f"{path.stem}-rank{rank}{path.suffix}") for rank in ranks]
