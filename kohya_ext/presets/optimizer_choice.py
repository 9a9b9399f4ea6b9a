"""The optimizer and the scheduler that a training names: is there such a one, and does it take its arguments?"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches

from kohya_ext.presets.convert import FALSE_WORDS
from kohya_ext.presets.findings import Level
from kohya_ext.pysource.sources import Sources
from kohya_ext.spec.kohyas_optimizers import (
    ARGUMENTS,
    GIVEN,
    OF_TORCH,
    READS_TEXTS,
    SCHEDULERS_ARGUMENTS,
    SWITCHES,
    UNTOLD,
)
from kohya_ext.spec.optimizers import ours

FILES = ("library/optimizer.py", "library/train_util.py")  # where releases keep `get_optimizer`, newest first
MOST = 1 << 15  # characters of that function
_COMPARED = re.compile(r'optimizer_type\s*==\s*"(\w+)"')


@dataclass(frozen=True)
class WordFault:
    """What is wrong with one argument of an optimizer or a scheduler. stops: it does not train with another value."""

    level: Level
    effect: str
    fix: str
    stops: bool = True


def names_of(training: Sources | None) -> frozenset[str]:
    """The optimizers that a release knows by name, in its spelling; empty where its text does not tell."""
    for path in FILES:
        text = (training and training.read(path)) or ""
        _, found, body = text.partition("\ndef get_optimizer(")
        if found:
            return frozenset(_COMPARED.findall(body.partition("\ndef ")[0][:MOST]))
    return frozenset()


def unknown_optimizer(name: str, training: Sources | None) -> str | None:
    """The nearest name where no optimizer is called so, "" where none is near; None where there may be one."""
    known = names_of(training)
    if not name or "." in name or not known or ours(name) is not None or name in OF_TORCH:
        return None
    lower = {one.casefold(): one for one in known}
    if name.casefold() in lower:
        return None
    near = get_close_matches(name.casefold(), lower, n=1)
    return lower[near[0]] if near else ""


def word_faults(optimizer: str, names: Iterable[str]) -> Iterator[WordFault]:
    """What is wrong with arguments, by their names, for an optimizer of Kohya's; nothing for any other."""
    key = (optimizer or "AdamW").casefold()
    taken = ARGUMENTS.get(key)
    if taken is None:
        return
    shown = optimizer or "AdamW"
    for name in names:
        if name in GIVEN[key]:
            yield WordFault("error", f"{shown} gets {name} twice: the script gives it", "remove it")
        elif name not in taken:
            near = get_close_matches(name, taken, n=1, cutoff=0.75)
            of_another = any(name in others for others in ARGUMENTS.values())
            fix = f"write {near[0]}, or remove it" if near else "remove it, or choose the optimizer that it belongs to"
            level: Level = "error" if near or of_another else "warning"
            yield WordFault(level, f"{shown} has no argument {name}", fix)


def text_faults(optimizer: str, words: Iterable[str]) -> Iterator[WordFault]:
    """Numbers and switches in quotes, which are texts to an optimizer of Kohya's: `betas='0.9,0.99'`.

    words: `name=value`, as sd-scripts reads it.
    """
    key = (optimizer or "AdamW").casefold()
    for word in words:
        name, _, text = word.partition("=")
        value = ast.literal_eval(text)
        if not isinstance(value, str) or name not in ARGUMENTS.get(key, ()) or name in UNTOLD:
            continue
        bare = f"write {name}={value.strip()}, without quotes"
        if name not in SWITCHES and name not in READS_TEXTS.get(key, ()):
            effect = f"{name}={text} is text in quotes, and {optimizer or 'AdamW'} expects numbers"
            yield WordFault("error", effect, bare)
        elif name in SWITCHES and value.strip().casefold() in FALSE_WORDS and value:
            yield WordFault("error", f"{name}={text} is text in quotes, which counts as on", bare, stops=False)


def scheduler_faults(scheduler: str, optimizer: str, names: Iterable[str]) -> Iterator[WordFault]:
    """The same for a scheduler; nothing where the optimizer brings its own."""
    taken = SCHEDULERS_ARGUMENTS.get(scheduler)
    if taken is None or optimizer.casefold().endswith(("adafactor", "schedulefree")):
        return
    for name in names:
        if name not in taken:
            fix = "remove it, or give the class of the scheduler that it belongs to as lr_scheduler_type"
            yield WordFault("error", f"the scheduler {scheduler} has no argument {name}, or the script gives it", fix)


def malformed(word: str) -> str:
    """Why a word is not `name=value` as sd-scripts reads it, "" where it is."""
    key, equals, value = word.partition("=")
    if not equals or "=" in value:
        return "is not one key=value pair"
    if not key.isidentifier():
        return "does not begin with the name of an argument"
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return "has a value that is neither a number, True or False nor a text in quotes"
    return ""
