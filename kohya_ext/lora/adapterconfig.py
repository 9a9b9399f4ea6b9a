"""PEFT's configuration of an adapter: the scale of each module, which the tensors do not tell.

diffusers keeps it in the file's metadata, for each network under its name (`unet.lora_alpha`); PEFT itself in
`adapter_config.json` next to the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kohya_ext.core.errors import UnsupportedError, UsageError
from kohya_ext.files.regular import read_text
from kohya_ext.tensors.adapters import component
from kohya_ext.tensors.tensorfile import TensorSource

METADATA = "lora_adapter_metadata"
FILE = "adapter_config.json"
_WRAPPER = "base_model.model."
_REGEX = frozenset("^$*+?[](){}|\\")  # PEFT takes patterns for regular expressions; those of diffusers are names
_ANCHOR = "^"  # before a name: the whole path, and not its end; diffusers writes it before all names


@dataclass(frozen=True)
class Adapter:
    """What the configuration says. where: for messages. parts: by network, "" for the only one of PEFT's own files."""

    where: str
    parts: Mapping[str, Mapping[str, Any]]
    file: Path | None = None

    def scale(self, module: str, rank: int) -> float:
        """What the product of `module`, whose factors have `rank`, is multiplied with. Raises UsageError."""
        name = component(module)
        alone = "" in self.parts or (not name and len(self.parts) == 1)  # then keys without a network's name mean it
        part = self.parts.get("", next(iter(self.parts.values()))) if alone else self.parts.get(name)
        if part is None or ("r" not in part and "lora_alpha" not in part):
            return 1.0  # loaders take alpha = rank where nothing is said
        path = module.removeprefix(f"{name}.").removeprefix(_WRAPPER)
        stated = self._number(_matching(part.get("rank_pattern"), path, part.get("r")), "r", module)
        alpha = self._number(_matching(part.get("alpha_pattern"), path, part.get("lora_alpha")), "lora_alpha", module)
        if stated != rank:
            raise UsageError(f"{self.where} gives {module} the rank {stated:g}, its factors have {rank}")
        return alpha / math.sqrt(rank) if part.get("use_rslora") else alpha / rank

    def _number(self, value: object, name: str, module: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UsageError(f"{self.where}: {name} of {module} is {value!r}, which is not a number")
        return float(value)


def read(source: TensorSource) -> Adapter | None:
    """The configuration of `source`; None where there is none. Raises UsageError and UnsupportedError."""
    if METADATA in source.metadata:
        where = f"{source.path}: its metadata {METADATA}"
        flat = _json(source.metadata[METADATA], where)
        parts: dict[str, dict[str, Any]] = {}
        for key, value in flat.items():
            head, _, rest = key.partition(".")
            parts.setdefault(head if rest else "", {})[rest or head] = value
        if "" in parts and not {"r", "lora_alpha"} & parts[""].keys():
            del parts[""]  # loose notes such as the format
        return _checked(Adapter(where, parts))
    beside = source.path.parent / FILE
    if source.path.name.startswith("adapter_model") and beside.is_file():
        return _checked(Adapter(str(beside), {"": _json(read_text(beside), str(beside))}, beside))
    return None


def resized(adapter: Adapter, ranks: Mapping[str, int]) -> str:
    """The text of an `adapter_config.json` for factors of these ranks that hold their scale themselves.

    PEFT takes a name for that of every module whose path ends with it, so one that ends another's gets the anchor; no
    other does, as older versions know no anchor, and find those by the whole name.
    """
    usual = max(ranks.values())
    paths = {name.removeprefix(_WRAPPER): rank for name, rank in ranks.items()}
    ends = {path[dot + 1 :] for path in paths for dot, letter in enumerate(path) if letter == "."}
    pattern = {f"{_ANCHOR}{path}" if path in ends else path: rank for path, rank in paths.items() if rank != usual}
    config = {
        **adapter.parts[""], "r": usual, "lora_alpha": usual, "rank_pattern": pattern, "alpha_pattern": pattern,
        "use_rslora": False,
    }  # fmt: skip
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def _checked(adapter: Adapter) -> Adapter:
    for part in adapter.parts.values():
        if part.get("use_dora"):
            raise UnsupportedError(f"{adapter.where} says use_dora: only plain LoRA can be resized")
        for pattern in (*_table(part.get("rank_pattern")), *_table(part.get("alpha_pattern"))):
            if set(pattern.removeprefix(_ANCHOR)) & _REGEX:
                raise UnsupportedError(
                    f"{adapter.where} has the pattern {pattern!r}, a regular expression, which is not read: "
                    "write an entry with the name of each module instead"
                )
        kind = part.get("peft_type", "LORA")
        if kind != "LORA":
            raise UnsupportedError(f"{adapter.where} says peft_type {kind}: only plain LoRA can be resized")
    return adapter


def _table(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _matching(patterns: object, path: str, usual: object) -> object:
    """The value of the first pattern that `path` ends with, as PEFT matches them."""
    if not isinstance(patterns, Mapping):
        return usual
    for pattern, value in patterns.items():
        name = pattern.removeprefix(_ANCHOR)
        if path == name or (name == pattern and path.endswith(f".{name}")):
            return value
    return usual


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is damaged: it is not JSON") from error
    if not isinstance(found, dict):
        raise UsageError(f"{where} is damaged: it is not a table")
    return found
