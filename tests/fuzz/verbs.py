"""Every verb of the command line, as the parser has them, and arguments for each: sensible, odd and hostile ones."""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass

from kohya_ext.cli.main import build_parser

# What kind of thing an argument is, by the name the parser stores it under. A verb with a new argument is not fuzzed
# before its kind stands here; a test says so.
KINDS = {
    "allow": "text",
    "alpha": "number",
    "all": "switch",
    "author": "text",
    "base": "model",
    "bucket_step": "number",
    "card": "text",
    "cfg": "number",
    "changelog": "text file",
    "checkout": "checkout",
    "checkpoint": "model",
    "clamp_quantile": "number",
    "clip": "text",
    "config": "folder",
    "conv_rank": "number",
    "count": "number",
    "data": "folder",
    "decay": "number",
    "deny": "text",
    "description": "text",
    "device": "device",
    "dtype": "choice",
    "dynamic": "choice",
    "energy": "number",
    "eps": "number",
    "extension": "extension",
    "fields": "setting",
    "files": "preset",
    "first": "preset",
    "folder": "folder",
    "gradio": "number",
    "held_out": "folder",
    "html": "new",
    "in_json": "text",
    "images": "folder",
    "input": "model",
    "licence": "text",
    "license": "text",
    "like": "choice",
    "limit": "number",
    "logs": "folder",
    "max_bucket": "number",
    "method": "choice",
    "min_bucket": "number",
    "min_diff": "number",
    "model": "model",
    "price": "number",
    "models": "model",
    "name": "preset",
    "names": "preset",
    "negative": "text",
    "new": "text",
    "notes": "text",
    "old": "pattern",
    "out": "new",
    "output": "new",
    "output_name": "text",
    "param": "number",
    "patch_set": "choice",
    "preset": "preset",
    "prompts": "text file",
    "python": "python",
    "rank": "number",
    "reference": "text",
    "resolution": "size",
    "sampler": "text",
    "second": "preset",
    "script": "text",
    "seed": "number",
    "sigma_rel": "number",
    "site": "choice",
    "size": "size",
    "step": "number",
    "steps": "number",
    "tab": "choice",
    "text": "text",
    "text_encoders": "choice",
    "title": "text",
    "token": "text",
    "tokenizer": "folder",
    "trigger": "text",
    "tuned": "model",
    "vae": "model",
    "weight": "number",
}
# These start what was found or asked for: a training, the toy model's; a fuzzer must not.
NEVER = {"run_it": "runs the checkout's own scripts"}
SLOW: dict[tuple[str, ...], float] = {("demo",): 0.02, ("preflight",): 0.02}  # share of the usual number of inputs

TEXTS = (
    "",
    " ",
    "a",
    "ewpp woman",
    "-",
    "--",
    "-x",
    "é飛",
    "\x1b[2J\x07",
    "\u202egnp.exe",
    "\udcff\udc80",
    "a\nb\r\nc",
    "\t",
    "%s%n%d",
    "{0}{x}",
    "\\",
    "\\1",
    "\\g<1>",
    "\\g<0",
    "$(touch x)",
    "`id`",
    "'\"",
    "a" * 5000,
    "None",
    "true",
    "[]",
    "# heading",
    "```",
    "---",
    "<script>alert(1)</script>",
    "| a | b |",
    "[x](javascript:alert(1))",
    "../../x",
    "/dev/null",
)
PATTERNS = (
    "a",
    "(a+)+$",
    "(.*)*x",
    "(a|a)*b",
    "((a*)*)*$",
    "[",
    "(",
    "a{1,99999}",
    "(?P<x>a)",
    "(?#",
    r"\1",
    "(?i)A",
    ".",
    "",
    "^",
    "a{9999}{9999}",
    "(?<=a+)b",
    "\\",
    r"(\w+\s?)*$",
    "x*" * 50,
    "(" * 200 + "a" + ")" * 200,
    r"\udcff",
)
NUMBERS = (
    "0",
    "1",
    "2",
    "4",
    "8",
    "16",
    "128",
    "-1",
    "-0",
    "0.5",
    "1e-9",
    "1e999",
    "-1e999",
    "nan",
    "inf",
    "99999999999999999999",
    "9" * 5000,
    "1_0",
    " 1 ",
    "١",
    "²",
    "0x10",
    "",
    "a",
    "1,2",
    "1e3",
    "0.0",
    "1000000",
    "2147483648",
)
SIZES = (
    "1024,1024",
    "1024x1024",
    "512",
    "64,64",
    "1,1",
    "0",
    "-1,-1",
    "99999999999,1",
    "1024,1024,1024",
    ",",
    "x",
    "nan,1",
    "2MB",
    "100kB",
    "9e99GB",
    "0B",
    "",
    "1024X768",
    "²,²",
)
EXTENSIONS = (".txt", ".caption", "txt", ".", "", "..", "./x", ".t/xt", ".é", "." + "a" * 300, ".png", "\udcff", ".TXT")
SETTINGS = (
    "epoch=2",
    "epoch",
    "=",
    "epoch=" + "9" * 5000,
    "a=b=c",
    "learning_rate=nan",
    "optimizer=AdamW",
    "x=\x1b[2J",
)
DEVICES = ("cpu", "cuda", "cuda:99", "", "xpu", "meta", "cpu:0", "\x1b", "mps")
SENSIBLE = {
    "text": ("a photo", "ewpp woman", "dog"),
    "pattern": ("a", "photo", "d.g", "(w)oman"),
    "number": ("1", "2", "4", "8", "0.5"),
    "size": ("1024,1024", "512x512", "64,64"),
    "extension": (".txt", ".caption"),
    "setting": ("epoch=2", "optimizer=AdamW"),
    "device": ("cpu",),
}
PRESET_NAMES = ("sdxl-24gb", "nothing", "", "../../etc/passwd", "*", "\x1b[2J", "a" * 5000)


@dataclass(frozen=True)
class Places:
    """Names of things in the world, by kind, relative to the current folder."""

    kinds: dict[str, tuple[str, ...]]


def leaves(
    parser: argparse.ArgumentParser, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Every command without commands of its own."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not inner:
        yield words, parser
    for action in inner:
        for name, child in action.choices.items():
            yield from leaves(child, (*words, name))


def verbs() -> dict[tuple[str, ...], argparse.ArgumentParser]:
    """The words of each command -> its parser."""
    return dict(leaves(build_parser()))


def kind_of(action: argparse.Action) -> str | None:
    """What `action` takes: "switch", "choice", one of KINDS' values; None where nobody has said."""
    if action.nargs == 0:
        return "switch"
    return "choice" if action.choices else KINDS.get(action.dest)


def arguments(
    words: tuple[str, ...], parser: argparse.ArgumentParser, chance: random.Random, places: Places
) -> list[str]:
    """One command line."""
    line, plain = list(words), chance.random() < 0.15
    for action in parser._actions:
        if action.dest == "help" or action.dest in NEVER:
            continue
        needed = action.required or not action.option_strings
        if chance.random() > (0.97 if needed else 0.2):
            continue
        values = [value(action, chance, places) for _ in range(_count(action, chance))]
        if kind_of(action) != "switch" and action.option_strings and chance.random() < 0.3 and len(values) == 1:
            line.append(f"{action.option_strings[-1]}={values[0]}")
        else:
            line += [*action.option_strings[-1:], *([] if kind_of(action) == "switch" else values)]
    if not plain and chance.random() < 0.05:
        line.insert(chance.randrange(len(line) + 1), chance.choice(TEXTS))
    if chance.random() < 0.03 and len(line) > 1:
        del line[chance.randrange(len(line))]
    return [word.replace("\0", "") for word in line]


def _count(action: argparse.Action, chance: random.Random) -> int:
    if action.nargs in ("*", "+"):
        return chance.choice((0, 1, 1, 1, 2, 3))
    return action.nargs if isinstance(action.nargs, int) and chance.random() < 0.95 else 1


def value(action: argparse.Action, chance: random.Random, places: Places) -> str:
    """A value for one argument."""
    kind = kind_of(action) or "text"
    if chance.random() < 0.04 and kind not in ("new", "switch"):  # something quite else, though nothing outside
        return chance.choice((*TEXTS, *NUMBERS, *(name for names in places.kinds.values() for name in names)))
    if kind == "choice" and action.choices:
        return str(chance.choice((*map(str, action.choices), "nothing")))
    given = {
        "text": TEXTS,
        "pattern": PATTERNS,
        "number": NUMBERS,
        "size": SIZES,
        "extension": EXTENSIONS,
        "setting": SETTINGS,
        "device": DEVICES,
    }.get(kind)
    if given is not None and chance.random() < 0.6:
        return chance.choice(SENSIBLE[kind])
    if given is not None:
        return chance.choice(given)
    if kind == "preset" and chance.random() < 0.2:
        return chance.choice(PRESET_NAMES)
    return chance.choice(places.kinds.get(kind, ("nothing",)))
