"""The flags in "additional parameters": the command line inside a preset."""

from __future__ import annotations

from typing import Any


def flags_in(text: Any) -> dict[str, Any]:
    """Name of each flag, without its dashes -> its value: True for a bare one, the text after it else.

    Of several words after a flag (`--optimizer_args a=1 b=2`) the value is all of them with spaces between. Quotes go,
    as they do in the GUI.
    """
    found: dict[str, Any] = {}
    name = ""
    for word in str(text or "").replace('"', "").split():
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found[name] = value if equals else True
        elif name:
            found[name] = word if found[name] is True else f"{found[name]} {word}"
    return found
