"""`ema_form.js` run by node, call by call."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import kohya_ext.runtime.ema_section as section
from kohya_ext.spec.flags import FLAGS

NODE = shutil.which("node") or shutil.which("nodejs")
SAME = {"__type__": "update"}
FIELDS = [flag for flag in FLAGS if flag.label]

SERVER = """
const [source, form] = JSON.parse(process.argv[1]);
const make = (words) => [words, (0, eval)(source)({...form, words})];
const called = Object.fromEntries(['split', 'posix', 'windows'].map(make));
require('readline').createInterface({input: process.stdin}).on('line', (line) => {
  const [words, name, ...values] = JSON.parse(line);
  const answer = called[words][name](...values);
  console.log(JSON.stringify(answer instanceof Promise ? null : answer));
});
"""


class Form:
    """The form in a GUI that makes words as `words` says. note: what the last call remarked."""

    def __init__(self) -> None:
        assert NODE is not None
        given = json.dumps([section._script(), section._form()])
        self._process = subprocess.Popen(
            [NODE, "-e", SERVER, given], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        self.words = "split"
        self.note = ""
        self._section = 0

    def close(self) -> None:
        self._process.communicate(timeout=10)

    def call(self, name: str, *values: Any) -> list[Any]:
        """The new values, the note aside; SAME where one stays, none where all do."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([self.words, name, *values]) + "\n")
        self._process.stdin.flush()
        *result, note = json.loads(self._process.stdout.readline()) or [SAME]
        self.note = self.note if note == SAME else note
        return result

    def new(self) -> str:
        """A section that nothing has happened in."""
        self._section += 1
        self.note = ""
        return str(self._section)

    def shown(self, text: str | None) -> dict[str, Any]:
        """Flag -> what its field shows when the text has come."""
        values = self.call("fromText", self.new(), text, *("?" for _ in FIELDS))
        return {flag.name: value for flag, value in zip(FIELDS, values, strict=True)}

    def set(self, text: str | None, name: str, value: Any, section: str = "") -> Any:
        """The text after a person has given a field a value."""
        result = self.call("fromField", section or self.new(), self.index(name), text, value)
        return text if result in ([], [SAME]) else result[0]

    def left(self, text: str, name: str, value: Any) -> tuple[Any, Any]:
        """The text and the field after a person has left the field."""
        after, field = self.call("left", self.new(), self.index(name), text, value) or [SAME, SAME]
        return text if after == SAME else after, value if field == SAME else field

    @staticmethod
    def index(name: str) -> int:
        return [flag.name for flag in FIELDS].index(name)
