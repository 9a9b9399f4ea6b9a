"""One value into the form that one component of one release takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from kohya_ext.presets.keys import ZERO_TRAINS_NOTHING
from kohya_ext.presets.schema import Field

TRUE_WORDS = ("true", "yes", "on", "1")
FALSE_WORDS = ("false", "no", "off", "0", "none", "")


@dataclass(frozen=True)
class Converted:
    """value: what to write. problem: why it is not the value that was given, "" where it means the same.

    usable: False when nothing sensible could be made of it, so that the GUI's default has to serve.
    """

    value: Any
    problem: str = ""
    usable: bool = True


def unusable(problem: str) -> Converted:
    """No value, and the reason: the GUI's default has to serve."""
    return Converted(None, problem, usable=False)


def convert(value: Any, field: Field) -> Converted:
    """`value` as `field` takes it: same meaning, right type, inside its limits."""
    if isinstance(value, (dict, list)) or value is None:
        return unusable(f"a {type(value).__name__} is not a setting")
    if isinstance(value, float) and not math.isfinite(value):
        return unusable("not a finite number")
    if field.component == "Checkbox":
        return _checkbox(value)
    if field.component in ("Number", "Slider"):
        return _number(value, field)
    if field.component in ("Dropdown", "Radio"):
        return _choice(value, field)
    if field.component in ("Textbox", "Text"):
        return Converted(text_of(value, field.key))
    return Converted(value)


def text_of(value: Any, key: str) -> str:
    """A value as somebody would type it."""
    if isinstance(value, bool):
        return str(value)
    if key in ZERO_TRAINS_NOTHING and value in (0, "0"):
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)


def _checkbox(value: Any) -> Converted:
    if isinstance(value, bool):
        return Converted(value)
    if isinstance(value, (int, float)):
        return Converted(bool(value), "" if value in (0, 1) else f"{value} is neither on nor off: taken as on")
    word = str(value).strip().lower()
    if word in TRUE_WORDS or word in ("xformers", "sdpa"):  # a check box before it became a list of methods
        return Converted(True, "the box offers only xformers" if word == "sdpa" else "")
    return Converted(False) if word in FALSE_WORDS else unusable(f"{value!r} is neither on nor off")


def _number(value: Any, field: Field) -> Converted:
    number = parse_number(value)
    if number is None:
        return unusable(f"{value!r} is not a number")
    problem = ""
    low, high = field.minimum, field.maximum
    limit = low if low is not None and number < low else high if high is not None and number > high else None
    if limit is not None:
        problem, number = f"{number} is outside {low} to {high}: set to {limit}", limit
    whole = field.precision == 0 or (field.component == "Slider" and _is_whole(field.step))
    if whole and _is_whole(number):
        number = int(number)
    elif field.precision == 0:
        problem, number = f"{number} has a fraction, the field takes whole numbers", round(number)
    return Converted(number, problem)


def parse_number(value: Any) -> float | int | None:
    """The number in a value, None where there is none; empty text counts as 0, as in the GUI's own migration."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, (int, float)):
        return value if abs(value) < 1e300 else None
    text = str(value).strip()
    if not text:
        return 0
    try:
        number = float(text)
    except (ValueError, OverflowError):
        return None
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() and "e" not in text.lower() and "." not in text else number


def _is_whole(number: float | None) -> bool:
    return number is not None and float(number).is_integer()


def _choice(value: Any, field: Field) -> Converted:
    choices = field.choices or ()
    for candidate in _spellings(value):
        for choice in choices:
            if choice == candidate and type(choice) is type(candidate):
                return Converted(choice)
    if isinstance(value, str):
        for choice in choices:
            if isinstance(choice, str) and choice.casefold() == value.casefold():
                return Converted(choice)
    if field.custom or not choices:
        return Converted(text_of(value, field.key))
    return unusable(f"{value!r} is not offered: {', '.join(map(repr, choices))}")


def _spellings(value: Any) -> list[Any]:
    """The value itself, and the same as text, number or switch."""
    spellings = [value]
    if isinstance(value, bool):
        spellings += ["xformers"] if value else ["none", "No", ""]
        spellings += ["Yes"] if value else []
    elif isinstance(value, (int, float)):
        spellings += [text_of(value, ""), int(value)] if _is_whole(value) else [text_of(value, "")]
        spellings += [float(value)]
    else:
        number = parse_number(value) if str(value).strip() else None
        spellings += [] if number is None else [number, int(number)] if _is_whole(number) else [number]
    return spellings


def shown_at_start(field: Field) -> Converted:
    """What the GUI shows in a field before anything is loaded; unusable where only the running GUI knows."""
    if "default" in field.inexact:
        return unusable("its default is known to the running GUI only")
    if field.default is not None:
        converted = convert(field.default, field)
        if converted.usable:
            return converted
    if field.component == "Checkbox":
        return Converted(False)
    if field.component == "Slider" and field.minimum is not None:
        return convert(field.minimum, field)
    if field.component == "Number":
        return convert(0, field)
    if field.component in ("Textbox", "Text"):
        return Converted("")
    if field.component in ("Dropdown", "Radio") and field.choices:
        return Converted(field.choices[0])
    return unusable("it has no default")


def optimizer_words(arguments: Any) -> dict[str, str]:
    """name -> value of each `name=value` of an optimizer's, in a text or a list of texts; the last of two counts."""
    words = arguments if isinstance(arguments, (list, tuple)) else str(arguments or "").replace(",", " ").split()
    pairs = (str(word).strip("\"' ").partition("=") for word in words)
    return {name.strip(): value.strip() for name, equals, value in pairs if equals}


def optimizer_argument(arguments: Any, name: str) -> float | int | None:
    """The number that `name=number` gives among them; None without one."""
    return parse_number(optimizer_words(arguments).get(name, ""))
