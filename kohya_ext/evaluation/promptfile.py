"""Kohya's sample-prompt files: one prompt a line, its flags behind it, comments after `#`.

Kohya splits a line at every ` --`, takes each piece (the prompt itself too) that begins like a flag for one, and reads
brackets in the prompt as weights. It drops a backslash before any other character, so one backslash protects them all.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kohya_ext.core.errors import UsageError

FLAGS = "w|h|d|s|l|g|n|ss|cn|ctr|rcfg|fs|am|of"  # of every release; the prompt must not begin with one and a space
WIDTH, HEIGHT, STEPS, CFG = 512, 512, 30, 7.5  # Kohya's, where a line does not say
SECTION, SOURCE = "# == ", "# image: "
_JOINED = re.compile(rf"[^\s\\-](--(?:{FLAGS}) \S+)")
_LIKE_A_FLAG = re.compile(rf"({FLAGS}) ", re.IGNORECASE)


@dataclass(frozen=True)
class Prompt:
    """One image to make. width, height: pixels. section: what the prompt is there for. source: a training image."""

    text: str
    width: int = WIDTH
    height: int = HEIGHT
    steps: int = STEPS
    cfg: float = CFG
    seed: int | None = None
    negative: str = ""
    section: str = ""
    source: str = ""


def line(prompt: Prompt) -> str:
    """The prompt for Kohya. Its text is taken literally: nothing in it becomes a flag, a comment or a weight."""
    flags = f" --w {prompt.width} --h {prompt.height} --s {prompt.steps} --l {prompt.cfg:g}"
    seed = "" if prompt.seed is None else f" --d {prompt.seed}"
    negative = f" --n {_escaped(prompt.negative)}" if prompt.negative.strip() else ""
    return _escaped(prompt.text) + flags + seed + negative


def document(prompts: Sequence[Prompt]) -> str:
    """The file, with comments that name sections and training images."""
    lines: list[str] = []
    section = source = ""
    for prompt in prompts:
        if prompt.section != section:
            section, source = prompt.section, ""
            lines += ["", SECTION + _one_line(section)]
        if prompt.source != source:
            source = prompt.source
            lines.append(SOURCE + _one_line(source))
        lines.append(line(prompt))
    return "\n".join(lines).lstrip("\n") + "\n"


def parse(text: str) -> list[Prompt]:
    """The prompts in a file, Kohya's own or ours. Raises UsageError when there is none."""
    found: list[Prompt] = []
    section = source = ""
    for raw in text.lstrip("\ufeff").splitlines():
        stripped = raw.strip()
        if stripped.startswith("#"):
            if raw.startswith(SECTION):
                section, source = raw.removeprefix(SECTION).strip(), ""
            elif raw.startswith(SOURCE):
                source = raw.removeprefix(SOURCE).strip()
        elif stripped:
            found.append(replace(parse_line(stripped), section=section, source=source))
    if not found:
        raise UsageError(
            "it contains no prompt: Kohya expects one per line, as in `a red apple --w 1024 --h 1024 --d 1`"
        )
    return found


def parse_line(text: str) -> Prompt:
    """One line, with Kohya's rules and defaults. The text comes back literally, without the protecting backslashes."""
    pieces = text.split(" --")
    prompt, numbers = Prompt(_literal(pieces[0])), {"w": WIDTH, "h": HEIGHT, "s": STEPS}
    for piece in pieces:
        if match := re.match(r"([whds]) (\d+)", piece, re.IGNORECASE):
            with contextlib.suppress(ValueError):  # thousands of digits; Kohya keeps its default, too
                numbers[match[1].lower()] = int(match[2])
        elif match := re.match(r"l ([\d.]+)", piece, re.IGNORECASE):
            prompt = replace(prompt, cfg=_float(match[1]))
        elif match := re.match(r"n (.+)", piece, re.IGNORECASE):
            prompt = replace(prompt, negative=_literal(match[1]))
    steps = max(1, min(1000, numbers["s"]))
    return _sized(replace(prompt, steps=steps, seed=numbers.get("d")), numbers["w"], numbers["h"])


def from_values(text: str, negative: str, width: int, height: int, steps: int, cfg: float, seed: int | None) -> Prompt:
    """A prompt whose flags are told apart already; its texts have Kohya's backslashes still."""
    return _sized(Prompt(_literal(text), steps=steps, cfg=cfg, seed=seed, negative=_literal(negative)), width, height)


def _sized(prompt: Prompt, width: int, height: int) -> Prompt:
    """`prompt` with the sides that Kohya makes of these."""
    return replace(prompt, width=max(64, width - width % 8), height=max(64, height - height % 8))


def joined_flag(text: str) -> str:
    """A flag in a line that Kohya takes for text, since there is no blank before it; "" where there is none."""
    match = _JOINED.search(text)
    return match[1] if match else ""


def has_weights(text: str) -> bool:
    """Whether a line of a file has brackets that Kohya reads as weights."""
    return bracketed(text.split(" --")[0])


def bracketed(text: str) -> bool:
    """Whether a prompt has brackets that Kohya reads as weights."""
    return re.search(r"(?<!\\)[(\[]", text) is not None


def _escaped(text: str) -> str:
    escaped = re.sub(r"([\\()\[\]])", r"\\\1", _one_line(text)).replace(" --", r" \--")
    if escaped.startswith(("#", "--")):
        return "\\" + escaped
    match = _LIKE_A_FLAG.match(escaped)
    return f"{match[1]}\\{escaped[match.end(1) :]}" if match else escaped


def _literal(text: str) -> str:
    return re.sub(r"\\(.?)", r"\1", text).strip()


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return CFG
