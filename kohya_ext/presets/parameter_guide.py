"""The parameter guide of the docs, made from the texts that `presets show` uses and the guide's advice.

`python -m kohya_ext.presets.parameter_guide > docs/reference/parameters.md`
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from kohya_ext.presets.family_texts import FAMILIES
from kohya_ext.presets.guide import ADVICE
from kohya_ext.presets.settings import SECTIONS

HEAD = """# Settings

What each setting of the GUI's presets does, by the key that preset files use. The *advice* is the guide's, for full
fine-tuning of SDXL; `kohya-ext presets check NAME --guide` says where a preset departs from it, and
`kohya-ext presets schema` what the installed release takes for a key.

This page is made by `python -m kohya_ext.presets.parameter_guide`; change the texts there."""
PLAIN = ("| setting | what it does |", "|---|---|")
ADVISED = ("| setting | what it does | the guide's advice |", "|---|---|---|")


def as_markdown() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(line for section in SECTIONS for line in _section(section))]) + "\n"


def _section(name: str) -> Iterator[str]:
    short = name in FAMILIES or not any(key in ADVICE for key in SECTIONS[name])
    yield ""
    yield f"## {name}"
    yield ""
    yield from PLAIN if short else ADVISED
    for key, text in SECTIONS[name].items():
        yield f"| `{key}` | {text} |" + ("" if short else f" {_advice(key)} |")


def _advice(key: str) -> str:
    if key not in ADVICE:
        return ""
    value, reason = ADVICE[key]
    shown = "empty" if value == "" else f"`{value if isinstance(value, str) else json.dumps(value)}`"
    return f"{shown}: {reason}"


if __name__ == "__main__":
    print(as_markdown(), end="")
