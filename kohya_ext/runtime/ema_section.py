"""The EMA as fields in the GUI's tabs. They write our flags into the field for additional flags and show those in it.

So nothing of ours is in a preset, a saved configuration or a TOML that the user did not put there, and a tab whose
section was not touched saves what it saves without us. What translates between text and fields is `ema_form.js`.
"""

from __future__ import annotations

import html
import importlib
import inspect
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kohya_ext.core import about
from kohya_ext.runtime.page import made, on, within
from kohya_ext.spec.flags import (
    ENABLE_EMA,
    EXP_BETA,
    FLAGS,
    NO_EMA,
    POWER,
    SCHEDULE,
    SECTION,
    SIGMA_REL,
    TWO_SCHEDULES,
    WIDTH_WITHOUT_POWER,
    Flag,
)
from kohya_ext.spec.hooks import ADDITIONAL_PARAMETERS, ADVANCED_COMMAND, GUI_PACKAGES, WORDS_SO_FAR

HINT = "The fields write flags into Additional parameters, and show the ones found there."
TEXTS = {
    "noEma": NO_EMA,
    "twoSchedules": TWO_SCHEDULES,
    "widthWithoutPower": WIDTH_WITHOUT_POWER,
    "unknown": "not a flag that is read here",
    "quoted": "is inside quotes, where it is part of a value and not a flag",
    "others": "also in Additional parameters",
}
OUR_NAMES = ("--ema_", "--kohya_ext_")
ROW = 4  # fields in a row
GLOBAL = "window.kohyaExtEma"


def advanced_training(original: Callable[..., None], tab: Any, *args: Any, **kwargs: Any) -> None:
    """Kohya's constructor of the advanced settings, then our section. Where that fails, the tab is as Kohya made it."""
    context = importlib.import_module("gradio.context").Context
    block = context.block
    first = len(block.children)
    original(tab, *args, **kwargs)
    # next to a closed accordion of Kohya's, where it is seen; else in front of its advanced settings
    outside = type(block).__name__ == "Accordion" and block.parent is not None
    place = block.parent if outside else block
    with within(context, place):
        _add(tab, context.root_block)
        if not outside:
            place.children.insert(first, place.children.pop())


def _add(tab: Any, root: Any) -> None:
    gradio = importlib.import_module("gradio")
    text = getattr(tab, ADDITIONAL_PARAMETERS)
    flags = [flag for flag in FLAGS if flag.label]
    fields: list[Any] = []
    with made(gradio.Accordion, label=SECTION, open=False):
        for start in range(0, len(flags), ROW):
            with gradio.Row():
                fields += [_field(gradio, flag) for flag in flags[start : start + ROW]]
        note = gradio.HTML(value="")
        gradio.HTML(value=_footer())
    _wire(root, text, fields, note, flags)


def _field(gradio: Any, flag: Flag) -> Any:
    words = {"label": flag.label, "info": f"{flag.info} ({flag.name})", "value": flag.default, "interactive": True}
    if flag.kind.choices:
        return made(gradio.Dropdown, choices=list(flag.kind.choices), **words)
    if flag.kind.numbers is None:
        return made(gradio.Checkbox, **words)
    if flag.kind.several:
        return made(gradio.Textbox, **{**words, "value": ""})
    whole = flag.kind.numbers.whole
    return made(gradio.Number, step=1 if whole else 0.0001, minimum=flag.kind.numbers.least, **words)


def _footer() -> str:
    link = html.escape(about.REPOSITORY)
    return (
        f'<p>{html.escape(HINT)} <a href="{link}" target="_blank" rel="noopener">'
        f"{html.escape(about.NAME)} {html.escape(about.VERSION)}</a></p>"
    )


def _wire(root: Any, text: Any, fields: list[Any], note: Any, flags: list[Flag]) -> None:
    """The events, all of them in the browser. Only a person's edit writes the text (`input`), so nothing loops."""
    section = json.dumps(str(text._id))
    all_of_them, shown = [text, *fields], [*fields, note]
    create = f"{GLOBAL} = {GLOBAL} || ({_script()})({json.dumps(_form())});"
    read = f"return {GLOBAL}.fromText({section}, ...values);"
    on(root.load, f"(...values) => {{ {create} {read} }}", all_of_them, shown)  # it may start with a text
    on(text.change, f"(...values) => {{ {read} }}", all_of_them, shown)
    for index, (field, flag) in enumerate(zip(fields, flags, strict=True)):
        written = f"(text, value) => {GLOBAL}.fromField({section}, {index}, text, value)"
        on(field.input, written, [text, field], [text, note])
        if flag.kind.numbers is not None:
            left = f"(text, value) => {GLOBAL}.left({section}, {index}, text, value)"
            for event in filter(
                None, (getattr(field, "blur", None), field.submit)
            ):  # not all of gradio 4 and 5 have blur
                on(event, left, [text, field], [text, field, note])


def _script() -> str:
    return Path(__file__).with_name("ema_form.js").read_text(encoding="utf-8")


def _form() -> dict[str, Any]:
    """What `ema_form.js` knows: the flag table, and what is to be said."""
    return {
        "flags": [_row(flag) for flag in FLAGS],
        "words": _splitting(),
        "ours": OUR_NAMES,
        "texts": TEXTS,
        "names": {
            "enable": ENABLE_EMA.name,
            "schedule": SCHEDULE.name,
            "width": SIGMA_REL.name,
            "beta": EXP_BETA.name,
            "power": POWER,
        },
    }


def _row(flag: Flag) -> dict[str, Any]:
    numbers = flag.kind.numbers
    return {
        "name": flag.name,
        "feature": flag.feature,
        "default": flag.default,
        "label": flag.label,
        "choices": flag.kind.choices,
        "expected": flag.kind.expected,
        "most": flag.kind.most,
        "numbers": numbers
        and {
            "least": numbers.least,
            "most": numbers.most if math.isfinite(numbers.most) else None,
            "excluded": numbers.excluded,
            "whole": numbers.whole,
        },
    }


def _splitting() -> str:
    """How this GUI makes words of the text."""
    for package in GUI_PACKAGES:
        module = sys.modules.get(f"{package}.common_gui")
        command = getattr(module, ADVANCED_COMMAND, None)
        if command is not None and WORDS_SO_FAR in inspect.signature(command).parameters:
            return "split"
    return "windows" if os.name == "nt" else "posix"
