"""One source for four eras: a template marks the lines that only some releases have.

A line `#: since v24`, `#: before v24` or `#: since v22 before v26`, indented as one likes, opens a block; the next such
line closes it and opens another, `#: end` closes it. Lines outside of blocks belong to every era. A first line
`#: file since v24` says which eras have the file at all.
"""

from __future__ import annotations

import re

ERAS = ("v06", "v22", "v24", "v26")
MARK = "#: "
WHOLE_FILE = "#: file "

# Until sd-scripts 0.10 these modules were one file, `train_util.py`; its parts in the order in which it had them.
SPLIT_OFF = (
    "args",
    "optimizer",
    "accelerator_setup",
    "checkpoint_io",
    "sampling",
)
# What v26's scripts call them by; before, all of it was found in `train_util`.
CALLED = (
    "accelerator_setup",
    "args_util",
    "checkpoint_io",
    "optimizer_util",
    "sampling",
)
_PREFIX = re.compile(rf"\b({'|'.join(CALLED)})\.(?=\w)")
_IMPORT = re.compile(r"(import|from) \S")


def render(template: str, era: str) -> str:
    """The text of `template` in `era`; before v26, the split modules' prefixes all become `train_util`."""
    text = "".join(_lines_of(template, ERAS.index(era)))
    return text if era == "v26" else _PREFIX.sub("train_util.", text)


def exists(template: str, era: str) -> bool:
    """Whether `era` has the file of `template`."""
    first = template.partition("\n")[0]
    return not first.startswith(WHOLE_FILE) or _applies(first.removeprefix(WHOLE_FILE).split(), ERAS.index(era))


def join(templates: list[str], era: str) -> str:
    """Several modules as one, with their imports at its head."""
    imports: dict[str, None] = {}
    bodies: list[str] = []
    for template in templates:
        lines, body = _split_imports(render(template, era))
        imports.update(dict.fromkeys(lines))
        bodies.append(body.strip("\n"))
    plain = [line for line in imports if line.startswith("import")]
    named = [line for line in imports if line.startswith("from")]
    head = "".join(sorted(plain) + sorted(named))
    return f'"""What the training scripts share."""\n\n{head}\n\n' + "\n\n\n".join(bodies) + "\n"


def _lines_of(template: str, era: int) -> list[str]:
    kept: list[str] = []
    wanted = True
    for line in template.splitlines(keepends=True):
        if line.startswith(WHOLE_FILE):
            continue
        if line.lstrip().startswith(MARK):
            wanted = _applies(line.strip().removeprefix(MARK).split(), era)
        elif wanted:
            kept.append(line)
    return kept


def _applies(words: list[str], era: int) -> bool:
    if words == ["end"]:
        return True
    conditions = dict(zip(words[::2], words[1::2], strict=True))
    since = ERAS.index(conditions.get("since", ERAS[0]))
    before = ERAS.index(conditions["before"]) if "before" in conditions else len(ERAS)
    return since <= era < before


def _split_imports(text: str) -> tuple[list[str], str]:
    """The one-line imports at the top level, and the rest without the module's docstring."""
    _, _, text = text.partition('"""\n') if text.startswith('"""') else ("", "", text)
    head = [line for line in text.splitlines(keepends=True) if _IMPORT.match(line)]
    body = "".join(line for line in text.splitlines(keepends=True) if not _IMPORT.match(line))
    return head, body
