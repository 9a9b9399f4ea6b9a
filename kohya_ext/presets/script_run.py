"""What the training script gets from a launch command: its arguments, as argparse would read them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from kohya_ext.presets.keys import PATHS, PERSONAL, SECRETS, flags_in
from kohya_ext.presets.launch_command import LaunchCommands
from kohya_ext.presets.release import Release
from kohya_ext.pysource.arguments import Argument
from kohya_ext.pysource.values import Unknown
from kohya_ext.spec.measurements import digest


@dataclass(frozen=True)
class ScriptRun:
    """script: its file name. given: argument -> value, for those that the command sets. arguments: all that it has.

    strays: words that argparse does not recognise. refused: argument -> why argparse does not take its word.
    families without a script of their own have no arguments.
    """

    script: str
    given: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    strays: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    def value(self, name: str) -> Any:
        """What the script has for an argument; None where it has none."""
        if name in self.given:
            return self.given[name]
        argument = self.arguments.get(name)
        return None if argument is None else _default(argument)

    def namespace(self) -> dict[str, Any]:
        """All of its arguments; unknown where a project decides, as for the folders that a preset never holds."""
        values = {name: _default(argument) for name, argument in self.arguments.items()}
        values.update({name: Unknown("a project's") for name, value in values.items() if value is None and _open(name)})
        return {**values, **self.given}

    def settings(self, file: Mapping[str, Any] | None = None) -> str:
        """The digest under which a run of this command leaves what it measures. file: settings that it reads."""
        return digest(self.script, {**(file or {}), **self.namespace(), **flags_in(" ".join(self.strays))})


def _open(name: str) -> bool:
    return name in PATHS or name in PERSONAL or name in SECRETS or name.endswith(("_dir", "_path", "_file", "_config"))


def _default(argument: Argument) -> Any:
    return False if argument.type == "bool" and argument.default is None else argument.default


def script_run(result: LaunchCommands, release: Release) -> ScriptRun | None:
    """The script that a command runs, and what it makes of its words; None where there is none to be seen."""
    command = result.training
    try:
        words = shlex.split(command) if isinstance(command, str) else list(command or ())
    except ValueError:  # a quote without its partner: the shell waits for it
        return None
    at = next((index for index, word in enumerate(words) if word.endswith(".py")), None)
    if at is None or release.training is None:
        return None
    script = PurePosixPath(words[at]).name
    arguments = release.arguments_of(script)
    given: dict[str, Any] = {}
    for settings in result.toml.values():
        given.update({key: value for key, value in _flat(settings).items() if key in arguments})
    words, strays, refused = words[at + 1 :], [], {}
    by_flag = {argument.flag: name for name, argument in arguments.items()}
    while words:
        word = words.pop(0)
        flag, equals, text = word.partition("=")
        near = [one for one in by_flag if one.startswith(flag)] if flag.startswith("--") and len(flag) > 2 else []
        flag = flag if flag in by_flag or len(near) != 1 else near[0]  # argparse takes beginnings too
        if flag not in by_flag:
            strays.append(word)
            continue
        argument = arguments[by_flag[flag]]
        fault = ""
        if argument.type == "bool":
            given[argument.name] = True
            fault = f"{flag} takes no value" if equals else ""
        elif argument.nargs in ("*", "+"):
            several = [text] if equals else []
            while not equals and words and not words[0].startswith("--"):
                several.append(words.pop(0))
            given[argument.name] = several
        else:
            taken = text if equals else words.pop(0) if words and not words[0].startswith("--") else None
            given[argument.name] = _typed(taken or "", argument)
            fault = f"{flag} needs a value" if taken is None else _fault(given[argument.name], argument)
        if fault:
            refused[argument.name] = fault
    return ScriptRun(script, given, arguments, tuple(strays) if arguments else (), refused)


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """sd-scripts takes the settings of each table as if they stood at the top."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat.update(value if isinstance(value, dict) else {key: value})
    return flat


def _fault(value: Any, argument: Argument) -> str:
    """Why argparse does not take a value, as far as its types and choices are read; "" where it does."""
    kinds = {"int": ("a whole number", int), "float": ("a number", float)}
    if argument.type in kinds and not isinstance(value, kinds[argument.type][1]):
        return f"{argument.flag} takes {kinds[argument.type][0]}"
    if argument.choices is not None and str(value) not in map(str, argument.choices):
        return f"{argument.flag} takes {', '.join(map(str, argument.choices))}"
    return ""


def _typed(text: str, argument: Argument) -> Any:
    try:
        return {"int": int, "float": float}.get(argument.type, str)(text)
    except ValueError:
        return text
