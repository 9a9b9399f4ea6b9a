"""What the installed GUI does to a preset before it fills the form, read from its `update_my_data` as text.

Each release converts some keys; up to v23.1.3 it also sets some to 0 when they are absent. Which keys, is defined in
loops over lists of names; how, in the two or three lines inside each loop.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kohya_ext.presets.keys import OPTIMIZER_WHEN_ABSENT
from kohya_ext.pysource.arguments import function_in, literal
from kohya_ext.pysource.machine import FOLDERS
from kohya_ext.pysource.sources import Sources

FILE = "common_gui.py"
FUNCTION = "update_my_data"
LOCON = ("LoCon", "LyCORIS/LoCon")  # what it was called in 2023, and since


class LoadError(Exception):
    """Loading the preset would end with an exception; nothing would be applied."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(reason)
        self.key = key


@dataclass(frozen=True)
class Migration:
    """whole, real: key -> what a text becomes that is not one. digits: keys whose text of digits is converted.

    zeroed: keys that become 0 when absent. switches_xformers: a true/false there becomes the name of a method.
    takes_wandb: `use_wandb` becomes `log_with`. takes_lora_weights: `lora_network_weights` is renamed. takes_locon: the
    LoRA type LoCon gets its name since 2023.
    """

    whole: Mapping[str, Any] = field(default_factory=dict)
    real: Mapping[str, Any] = field(default_factory=dict)
    digits: frozenset[str] = frozenset()
    zeroed: frozenset[str] = frozenset()
    switches_xformers: bool = False
    takes_wandb: bool = False
    takes_lora_weights: bool = False
    takes_locon: bool = False

    def apply(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The settings as the form gets them. Raises LoadError where the GUI would fail."""
        result = dict(values)
        result.setdefault("optimizer", "AdamW8bit" if values.get("use_8bit_adam") else OPTIMIZER_WHEN_ABSENT)
        for fallbacks, convert in ((self.whole, int), (self.real, float)):
            for key, fallback in fallbacks.items():
                if result.get(key) is not None:
                    result[key] = _converted(key, result[key], convert, fallback)
        for key in self.digits:
            value = result.get(key)
            if isinstance(value, str) and value.strip().isdigit():
                try:
                    result[key] = int(value)
                except ValueError as error:  # a superscript, or thousands of digits
                    raise LoadError(key, "the GUI converts it with int(), which fails") from error
        for key in self.zeroed:
            if not result.get(key):
                result[key] = 0
        if self.switches_xformers and isinstance(result.get("xformers"), bool):
            result["xformers"] = "xformers" if result["xformers"] else "none"
        if self.takes_wandb and "use_wandb" in result:
            if result["use_wandb"] == "True":
                result["log_with"] = "wandb"
            del result["use_wandb"]
        if self.takes_lora_weights and result.get("lora_network_weights") is not None:
            result["network_weights"] = result.pop("lora_network_weights")
        if self.takes_locon and result.get("LoRA_type") == LOCON[0]:
            result["LoRA_type"] = LOCON[1]
        return result


def _converted(key: str, value: Any, convert: type[int] | type[float], fallback: Any) -> Any:
    try:
        return convert(value)
    except ValueError:
        return fallback
    except (TypeError, OverflowError) as error:
        raise LoadError(key, f"the GUI converts it with {convert.__name__}(), which fails") from error


def read_migration(sources: Sources) -> Migration:
    """The migration of a checkout's GUI; one that changes nothing where it cannot be read."""
    for folder in FOLDERS:
        text = sources.read(folder + FILE)
        function = function_in(text, FUNCTION) if text is not None else None
        if function is not None:
            try:
                return _migration(function)
            except RecursionError:  # nested as no release's is
                return Migration()
    return Migration()


def _migration(function: ast.FunctionDef) -> Migration:
    whole: dict[str, Any] = {}
    real: dict[str, Any] = {}
    digits: set[str] = set()
    zeroed: set[str] = set()
    for loop in (node for node in ast.walk(function) if isinstance(node, ast.For)):
        keys = literal(loop.iter)
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            continue
        source = ast.unparse(loop)
        if "isdigit" in source:
            digits.update(keys)
            zeroed.update(keys)
        elif "int(value)" in source:
            whole.update(dict.fromkeys(keys, _fallback(loop, "int")))
        elif "float(value)" in source:
            real.update(dict.fromkeys(keys, _fallback(loop, "float")))
    body = ast.unparse(function)
    return Migration(
        whole,
        real,
        frozenset(digits),
        frozenset(zeroed),
        switches_xformers="xformers_value" in body,
        takes_wandb="use_wandb" in body,
        takes_lora_weights="lora_network_weights" in body,
        takes_locon=all(f"'{name}'" in body for name in LOCON),
    )


def _fallback(loop: ast.For, convert: str) -> Any:
    """What the handler of a bad text assigns."""
    for handler in (node for node in ast.walk(loop) if isinstance(node, ast.ExceptHandler)):
        for call in ast.walk(handler):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == convert:
                return literal(call.args[0]) if call.args else 0
    return 0
