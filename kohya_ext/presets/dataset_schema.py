"""What a release's data set configuration may hold, read from the tables of its `ConfigSanitizer` as text."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kohya_ext.pysource.arguments import block, literal
from kohya_ext.pysource.sources import Sources, parse

FILE = "library/config_util.py"
CLASS = "ConfigSanitizer"
MAX_SOURCE = 1 << 17  # characters of the class; the longest has 12,000

_NAMES = {
    "bool": "true or false",
    "int": "whole numbers",
    "float": "fractions like 1.0",
    "str": "texts",
    "dict": "a table",
}
_KINDS: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (float,),
    "str": (str,),
    "dict": (dict,),
}


@dataclass(frozen=True)
class Tables:
    """Setting -> what it takes, for each level and style of a data set configuration.

    A type is the Python type's name, several with `|` between them; `pair:` is two of them, `size:` one or two.
    renamed: name of an argument of the scripts -> of the configuration. nullable: arguments that come converted.
    """

    dataset: Mapping[str, str] = field(default_factory=dict)
    subset: Mapping[str, str] = field(default_factory=dict)
    dropout: Mapping[str, str] = field(default_factory=dict)
    dreambooth: Mapping[str, str] = field(default_factory=dict)
    dreambooth_only: Mapping[str, str] = field(default_factory=dict)
    finetuning_only: Mapping[str, str] = field(default_factory=dict)
    controlnet: Mapping[str, str] = field(default_factory=dict)
    controlnet_only: Mapping[str, str] = field(default_factory=dict)
    arguments: Mapping[str, str] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    nullable: tuple[str, ...] = ()

    @property
    def general(self) -> dict[str, str]:
        """What [general] may hold."""
        return {**self.dataset, **self.subset, **self.dreambooth, **self.dropout}

    def of_dataset(self, style: str) -> dict[str, str]:
        """What a data set of a style may hold itself."""
        own = {"dreambooth": self.dreambooth, "controlnet": self.controlnet}.get(style, {})
        return {**self.dataset, **self.subset, **own, **self.dropout}

    def of_subset(self, style: str) -> dict[str, str]:
        """What a subset of a style may hold."""
        own: Mapping[str, str] = {**self.dreambooth, **self.dreambooth_only}
        if style == "finetuning":
            own = self.finetuning_only
        elif style == "controlnet":
            own = {**self.controlnet, **self.controlnet_only}
        return {**self.subset, **own, **self.dropout}


_FIELDS = {
    "DATASET_ASCENDABLE_SCHEMA": "dataset",
    "SUBSET_ASCENDABLE_SCHEMA": "subset",
    "DO_SUBSET_ASCENDABLE_SCHEMA": "dropout",
    "DB_SUBSET_ASCENDABLE_SCHEMA": "dreambooth",
    "DB_SUBSET_DISTINCT_SCHEMA": "dreambooth_only",
    "FT_SUBSET_DISTINCT_SCHEMA": "finetuning_only",
    "CN_SUBSET_ASCENDABLE_SCHEMA": "controlnet",
    "CN_SUBSET_DISTINCT_SCHEMA": "controlnet_only",
    "ARGPARSE_SPECIFIC_SCHEMA": "arguments",
}


def read_tables(training: Sources | None) -> Tables | None:
    """The tables of a release; None where they cannot be read."""
    text = (training.read(FILE) if training is not None else None) or ""
    lines = block(text, CLASS, "class")
    if not lines or len(lines) > MAX_SOURCE:
        return None
    try:
        node = parse(lines).body[0]
    except (SyntaxError, IndexError, RecursionError):
        return None
    found: dict[str, Any] = {}
    for statement in node.body if isinstance(node, ast.ClassDef) else ():
        if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
            continue
        name = statement.targets[0].id
        if name in _FIELDS and isinstance(statement.value, ast.Dict):
            found[_FIELDS[name]] = _table(statement.value)
        elif name == "ARGPARSE_OPTNAME_TO_CONFIG_OPTNAME":
            found["renamed"] = literal(statement.value) or {}
        elif name == "ARGPARSE_NULLABLE_OPTNAMES":
            found["nullable"] = tuple(literal(statement.value) or ())
    return Tables(**found) if "dataset" in found and "subset" in found else None


def _table(node: ast.Dict) -> dict[str, str]:
    table = {}
    for key, value in zip(node.keys, node.values, strict=True):
        inner = key.args[0] if isinstance(key, ast.Call) and key.args else key
        name = literal(inner)
        if isinstance(name, str):
            table[name] = _type(ast.unparse(value))
    return table


def _type(source: str) -> str:
    """`bool`, `Any(float, int)`, or a partial of a validator of pairs with a type at its end."""
    names = re.findall(r"\b(bool|int|float|str|dict)\b", source)
    form = "size:" if "scalar_or_twodim" in source else "pair:" if "twodim" in source else ""
    return form + "|".join(dict.fromkeys(names)) if names else ""


def matches(value: Any, types: str) -> bool:
    """Whether the release takes a value; types of a kind that is not known take any."""
    form, _, names = types.rpartition(":")
    kinds = tuple(kind for name in names.split("|") if name for kind in _KINDS[name])
    if not kinds:
        return True
    pair = isinstance(value, list) and len(value) == 2 and all(isinstance(item, kinds) for item in value)
    return pair if form == "pair" else pair or isinstance(value, kinds) if form == "size" else isinstance(value, kinds)


def spoken(types: str) -> str:
    """A type in words."""
    form, _, names = types.rpartition(":")
    words = " or ".join(_NAMES[name] for name in names.split("|") if name)
    return f"two {words}" if form == "pair" else f"{words}, one or two" if form == "size" else words


def argument_types(training: Sources | None) -> dict[str, str]:
    """What the data set classes want of the script's own arguments; empty where that cannot be read."""
    tables = read_tables(training)
    if tables is None:
        return {}
    types = {**tables.general, **tables.arguments}
    types.update({name: types[key] for name, key in tables.renamed.items() if key in types})
    return {name: kind for name, kind in types.items() if name not in tables.nullable}
