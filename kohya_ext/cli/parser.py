"""argparse with examples in every help, "did you mean" in its errors, and one of its faults fixed."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from kohya_ext.cli.examples import examples
from kohya_ext.core.errors import WRONG_USAGE, did_you_mean
from kohya_ext.core.terminal import printable


class Parser(argparse.ArgumentParser):
    """The parser of every command; its subparsers are of this class too."""

    any_order = False  # accept `NAME --data DIR CHECKOUT` as well: plain argparse ends positional words at a flag
    after_dashes = ""  # where the words after `--` are kept, whatever they look like; "" for argparse's own way
    _misspelt = ""
    _inside = False

    def format_help(self) -> str:
        """argparse's, with the examples of the command at its end."""
        return super().format_help() + examples(self.prog)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does it, but a command alone lists its verbs, and unknown arguments are an error here.

        argparse leaves the latter to the topmost parser, which knows neither the usage nor the options of the verb.
        """
        if self._inside:  # the intermixed parser works by calling this method
            return super().parse_known_args(args, namespace)
        if args is not None and not args and any(action.required for action in self._groups()):
            self.exit(WRONG_USAGE, self.format_help())
        words = list(args or ())
        at = words.index("--") if self.after_dashes and "--" in words else len(words)
        self._misspelt = self._close_to_a_flag(words[:at])
        if self.any_order:
            self._inside = True
            try:
                parsed, unknown = self.parse_known_intermixed_args(words[:at], namespace)
            finally:
                self._inside = False
        else:
            parsed, unknown = super().parse_known_args(args if at == len(words) else words[:at], namespace)
        if self.after_dashes:
            setattr(parsed, self.after_dashes, words[at + 1 :])
        self.refuse(unknown)
        return parsed, unknown

    def refuse(self, unknown: Sequence[str]) -> None:
        """End with an error where there is an argument that the parser does not know."""
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")

    def error(self, message: str) -> NoReturn:
        """argparse's, with the flag that was meant: one that is misspelt may also lack as a required one."""
        if not message.startswith(("unrecognized arguments", "the following arguments are required")):
            self._misspelt = ""
        super().error(printable(f"{message}{self._misspelt}", one_line=True))

    def _close_to_a_flag(self, words: Iterable[str]) -> str:
        """`; did you mean --rank?` for the first of `words` that looks like a flag and is none."""
        known = self._option_string_actions
        flags = [word.partition("=")[0] for word in words if word.startswith("--") and word != "--"]
        unknown = next((flag for flag in flags if not any(one.startswith(flag) for one in known)), None)
        return did_you_mean(unknown, known) if unknown is not None else ""

    def _groups(self) -> list[argparse._SubParsersAction[Any]]:
        return [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            close = did_you_mean(str(value), map(str, action.choices or ()))
            raise argparse.ArgumentError(action, f"{error.message}{close}") from None

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """Take `--option=--` for what it says; argparse before Python 3.13 makes an empty list of it."""
        if action.nargs is None and action.option_strings and arg_strings == ["--"]:
            value = self._get_value(action, "--")
            self._check_value(action, value)
            return value
        return super()._get_values(action, arg_strings)
