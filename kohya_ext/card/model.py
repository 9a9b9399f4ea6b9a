"""What a model file is, judged by its header alone: nothing of its weights is read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kohya_ext.card import family as families
from kohya_ext.card.family import Family
from kohya_ext.core.errors import UsageError
from kohya_ext.tensors import adapters
from kohya_ext.tensors import families as tensors
from kohya_ext.tensors.header import BITS, Header, is_pickle, read_header

MODELSPEC = "modelspec."
DTYPE_NAMES = {
    "F64": "fp64",
    "F32": "fp32",
    "F16": "fp16",
    "BF16": "bf16",
    "F8_E4M3": "fp8",
    "F8_E5M2": "fp8",
    "F4": "fp4",
}
CHECKPOINT, LORA, EMBEDDING = "checkpoint", "LoRA", "embedding"


_FEW = 3  # tensors of an embedding at most; no model has so few


@dataclass(frozen=True)
class Model:
    """A model file. weights: how many numbers it holds; size: of the file in bytes; sha256: "" where not asked for.

    family: what it is for, base: what it was made from, both as it states, and `families.UNKNOWN` where its tensors
    contradict that. contradiction: the sentence that says so, "" without one. task: what it makes, as Hugging Face has
    it; "" where that is not known. adapter: which kind of one, "" for others.
    """

    path: Path
    kind: str
    family: Family
    base: Family
    adapter: str
    metadata: Mapping[str, str]
    weights: int
    dtype: str
    size: int
    sha256: str = ""
    contradiction: str = ""
    task: str = families.IMAGES

    def spec(self, name: str) -> str:
        """A field of the modelspec, "" where there is none."""
        return self.metadata.get(MODELSPEC + name, "").strip()


def read(path: Path) -> Model:
    """The model at `path`. Raises UsageError for everything but a whole safetensors file."""
    if not path.exists():
        raise UsageError(f"{path} does not exist")
    if path.is_dir():
        raise UsageError(f"{path} is a folder; a card is made from one .safetensors file")
    if is_pickle(path):
        raise UsageError(
            f"{path} is a pickle (.ckpt), which can run code and is not opened; convert it to .safetensors"
        )
    header = read_header(path)
    dtypes: Counter[str] = Counter()
    for entry in header.entries.values():
        dtypes[entry.dtype] += math.prod(entry.shape)
    floats = {name: count for name, count in dtypes.items() if name in DTYPE_NAMES} or dict(dtypes)
    main = max(floats, key=lambda name: floats[name] * BITS[name])
    kind, found = _kind(header), header.metadata
    possible = tensors.possible({key: entry.shape for key, entry in header.entries.items()})
    stated, base = families.family(found), families.base(found)
    false = [one.name for one in dict.fromkeys((stated, base)) if not one.may_be(possible)]
    stated, base = (one if one.may_be(possible) else families.UNKNOWN for one in (stated, base))
    return Model(
        path, kind, stated, base, next(iter(adapters.kinds(header.entries)), ""), found, dtypes.total(),
        DTYPE_NAMES.get(main, main.lower()), header.size, contradiction=_contradiction(false, possible),
        task=families.task(stated, possible),
    )  # fmt: skip


def _contradiction(stated: Sequence[str], possible: frozenset[str]) -> str:
    if not stated:
        return ""
    return f"metadata states {' and '.join(stated)}, but the tensors are those of {' or '.join(sorted(possible))}"


def _kind(header: Header) -> str:
    if header.metadata.get(families.ARCHITECTURE, "").endswith("/textual-inversion"):
        return EMBEDDING
    if adapters.is_adapter(header.entries, header.metadata):
        return LORA
    return EMBEDDING if _is_embedding(header) else CHECKPOINT


def _is_embedding(header: Header) -> bool:
    """sd-scripts' names, or diffusers' one: the word itself, with a vector or a few."""
    if set(header.entries) <= {"emb_params", "clip_l", "clip_g"}:
        return True
    flat = all(len(entry.shape) <= 2 and "." not in key for key, entry in header.entries.items())
    return flat and len(header.entries) <= _FEW
