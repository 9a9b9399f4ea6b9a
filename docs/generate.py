"""Writes the parts of the documentation that are facts of the code: `python docs/generate.py` (`--check` only looks).

A generated part stands between two comments in a committed page, so that it reads the same on the site, on GitHub and
in an editor:

    <!-- generated: NAME -->
    ...
    <!-- end of generated -->

Torch is not needed. A test runs the check, so a flag, a command or a preset that changes takes its page along.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from kohya_ext.cli.examples import EXAMPLES  # noqa: E402
from kohya_ext.cli.main import build_parser  # noqa: E402
from kohya_ext.core import about  # noqa: E402
from kohya_ext.preflight.memory import Memory  # noqa: E402
from kohya_ext.presets.document import Preset, bundled  # noqa: E402
from kohya_ext.presets.family_settings import FAMILIES  # noqa: E402
from kohya_ext.presets.guide import ADVICE  # noqa: E402
from kohya_ext.presets.keys import EXTRA, flags_in  # noqa: E402
from kohya_ext.presets.settings import SECTIONS as SETTINGS  # noqa: E402
from kohya_ext.spec.cards import GIB  # noqa: E402
from kohya_ext.spec.flags import FLAGS  # noqa: E402

PAGES = (
    "README.md",
    "docs/reference/commands.md",
    "docs/reference/ema-scripts.md",
    "docs/reference/flags.md",
    "docs/reference/presets.md",
)
# every mention of the repository is this one address: a fork changes `about.REPOSITORY` and runs this script
LINKED = (
    "README.md",
    "pyproject.toml",
    "SECURITY.md",
    "CITATION.cff",
    "mkdocs.yml",
    "provisioning.yaml",
    "docs/**/*.md",
)
SECTION = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end of generated -->)", re.DOTALL)
REPOSITORY = re.compile(r"https://github\.com/[\w.-]+/kohya_ext\b")


def commands() -> str:
    """Every command with its arguments, from the parser itself."""
    return "\n".join(line for verb in _verbs(build_parser(), ()) for line in _command(*verb))


def flags() -> str:
    """The flags of a patched training script as `--help` says them."""
    rows = ["| flag | values | default | since | `--help` |", "|---|---|---|---|---|"]
    for flag in FLAGS:
        values = ", ".join(flag.kind.choices) or getattr(flag.kind.type, "__name__", "")
        default = "" if flag.default in (None, False) else f"`{flag.default}`"
        rows.append(f"| `{flag.name}` | {values} | {default} | {flag.since} | {_cell(flag.help % {})} |")
    return "\n".join(rows)


def presets() -> str:
    """The presets that ship, by what their own files say."""
    rows = [
        "| preset | tab | card | optimizer | rate | batch / repeats / accumulation | EMA | origin |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join(rows + [_preset(preset) for preset in bundled()])


def _preset(preset: Preset) -> str:
    values, flags = preset.values, flags_in(preset.values.get(EXTRA))
    passes = (values.get(key) for key in ("train_batch_size", "dataset_repeats", "gradient_accumulation_steps"))
    ema = f"{flags['ema_decay']}, {flags.get('ema_device', 'auto')}" if "enable_ema" in flags else "-"
    cells = (
        f"`{preset.name}`",
        preset.tab,
        f"{preset.about['vram']['tier_gb']} GB",
        " ".join(str(values[key]) for key in ("optimizer", "optimizer_args") if values.get(key)),
        f"{values['learning_rate']:g}",
        " / ".join("-" if value is None else str(value) for value in passes),
        ema,
        str(preset.about["origin"]).partition(":")[0].partition(";")[0],
    )
    return f"| {' | '.join(map(_cell, cells))} |"


CARDS = (24, 32, 48, 80)  # GB


def memory() -> str:
    """What the presets take and which cards they fit, by the figures that their files hold."""
    rows = [
        f"| preset | at the peak, GiB | interval | {' | '.join(f'{size} GB' for size in CARDS)} |",
        f"|---|---|---|{'---|' * len(CARDS)}",
    ]
    return "\n".join(rows + [_memory(preset) for preset in bundled()])


def _memory(preset: Preset) -> str:
    gib = preset.about["vram"]["gib"]
    peak, low, high = (int(gib[name] * GIB) for name in ("expected", "low", "high"))
    verdicts = [str(Memory(peak, low, high, [], {}, size * GIB).verdict) for size in CARDS]
    cells = (f"`{preset.name}`", f"{gib['expected']:.1f}", f"{gib['low']:.1f} to {gib['high']:.1f}", *verdicts)
    return f"| {' | '.join(cells)} |"


SETTINGS_PAGE = "docs/reference/parameters.md"
SETTINGS_HEAD = """# Settings

What each setting of the GUI's presets does, by the key that preset files use. The *advice* is the guide's, for full
fine-tuning of SDXL; `kohya-ext presets check NAME --guide` says where a preset departs from it, and
`kohya-ext presets schema` what the installed release takes for a key.

This page is made by `python docs/generate.py`; change the texts in `kohya_ext/presets/settings.py`."""


def settings() -> str:
    """The whole page on settings, from the texts that `presets show` uses and the guide's advice."""
    return "\n".join([SETTINGS_HEAD, *(line for name in SETTINGS for line in _settings_of(name))]) + "\n"


def _settings_of(section: str) -> Iterator[str]:
    advised = section not in FAMILIES and any(key in ADVICE for key in SETTINGS[section])
    yield from ("", f"## {section}", "")
    yield "| setting | what it does |" + (" the guide's advice |" if advised else "")
    yield "|---|---|" + ("---|" if advised else "")
    for key, text in SETTINGS[section].items():
        yield f"| `{key}` | {text} |" + (f" {_advice(key)} |" if advised else "")


def _advice(key: str) -> str:
    if key not in ADVICE:
        return ""
    value, reason = ADVICE[key]
    shown = "empty" if value == "" else f"`{value if isinstance(value, str) else json.dumps(value)}`"
    return f"{shown}: {reason}"


# kept by tests/upstream/ema_results.py
EMA_RESULTS = ROOT / "tests" / "upstream" / "ema_results.json"
# columns of the table -> the tree on which the tests train
TREES = {
    "v0.6.6": "sd-scripts-0.6.6",
    "v22.3.1": "kohya_ss-v22",
    "v0.8.7": "sd-scripts-0.8.7",
    "main": "sd-scripts-main",
    "v0.11.1": "sd-scripts-0.11.1",
}
# how a script saves, in the order of the rows -> what the table calls it
WAYS = {
    "checkpoint": "checkpoint",
    "network": "network",
    "LLLite": "network",
    "LLLite function": "network",
    "embeddings": "embeddings",
    "ControlNet": "ControlNet",
}
# in the place of a date: passed by a run that kept no results
EARLIER = "before results were kept"
RUN_EARLIER = "It passed by what this page said before results were kept (November 2026), and has not been run since."
# why a script does not run on the rig
WITHOUT_DATA = "In v22.3.1 the data set of the ControlNet scripts raises a TypeError, with or without kohya_ext."
WITHOUT_TOKENIZER = (
    "In main this script asks for a tokenizer in a way that the release no longer has, with or without kohya_ext."
)
WITHOUT_PACKAGE = "It imports open_clip, which no release asks for."
NOT_RUN = {
    ("sdxl_train_control_net_lllite", "kohya_ss-v22"): WITHOUT_DATA,
    ("sdxl_train_control_net_lllite_old", "kohya_ss-v22"): WITHOUT_DATA,
    ("train_controlnet", "kohya_ss-v22"): WITHOUT_DATA,
    ("sdxl_train_control_net_lllite_old", "sd-scripts-main"): WITHOUT_TOKENIZER,
    ("train_textual_inversion_XTI", "sd-scripts-main"): WITHOUT_TOKENIZER,
    ("sdxl_train_textual_inversion", "kohya_ss-v22"): WITHOUT_PACKAGE,
}


def ema_scripts() -> str:
    """Every script of each release; `run` where a test of the real script has passed and nowhere else."""
    results = {"runs": {}, **json.loads(EMA_RESULTS.read_text(encoding="utf-8"))}
    ways = {script: max(release.values(), key=list(WAYS).index) for script, release in results["releases"].items()}
    rows = [f"| script | saved as | {' | '.join(TREES)} |", f"|---|---|{'---|' * len(TREES)}"]
    reasons = [*dict.fromkeys(NOT_RUN.values()), RUN_EARLIER]
    for script in sorted(ways, key=lambda name: (list(WAYS).index(ways[name]), name)):
        cells = [f"`{script}`", WAYS[ways[script]]]
        for tree in TREES.values():
            run = results["runs"].get(script, {}).get(tree)
            reason = RUN_EARLIER if run == EARLIER else NOT_RUN.get((script, tree))
            note = f"<sup>{reasons.index(reason) + 1}</sup>" if reason else ""
            there = tree in results["releases"][script]
            cells.append(f"{'run' if run else 'stub'}{note}" if there else "")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([*rows, "", *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1))])


SECTIONS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "ema_scripts": ema_scripts,
    "flags": flags,
    "memory": memory,
    "presets": presets,
}


def _verbs(
    parser: argparse.ArgumentParser, path: tuple[str, ...], what_for: str = ""
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser, str]]:
    """Each command with its path and what it is for: its description, else its line in the list of commands."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if path:
        yield path, parser, parser.description or what_for
    for group in groups:
        lines = {action.dest: action.help or "" for action in group._choices_actions}
        for name, child in group.choices.items():
            line = lines.get(name, "")
            yield from _verbs(child, (*path, name), line and f"{line[0].upper()}{line[1:]}.")


def _command(path: tuple[str, ...], parser: argparse.ArgumentParser, what_for: str) -> Iterator[str]:
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS and action not in groups]
    yield f"{'##' if len(path) == 1 else '###'} kohya-ext {' '.join(path)}"
    yield ""
    if what_for:
        yield f"{_cell(what_for)}\n"
    shown = [action for action in shown if not isinstance(action, argparse._HelpAction)]
    if shown:
        yield "| argument | default | meaning |"
        yield "|---|---|---|"
        for action in shown:
            yield f"| {_names(action)} | {_default(action)} | {_cell(_help(action, parser))} |"
        yield ""
    if not groups or parser.get_default("run"):
        program = parser.prog.partition(" ")[0]
        yield from ("```", *(f"{program} {line}" for line in EXAMPLES[" ".join(path)][1:]), "```", "")


def _names(action: argparse.Action) -> str:
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
    value = value if isinstance(value, str) else " ".join(value)
    if not action.option_strings:
        return f"`{_cell(value)}`"
    takes = "" if action.nargs == 0 else f" {value}"
    return _cell(", ".join(f"`{option}{takes}`" for option in action.option_strings))


def _default(action: argparse.Action) -> str:
    plain = action.default in (None, False, "", argparse.SUPPRESS) or isinstance(action.default, (list, tuple))
    return "" if plain else f"`{_cell(str(action.default))}`"


def _help(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    values = {**vars(action), "prog": parser.prog}
    return (action.help or "") % values


def _prose(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _prose(text).replace("|", "\\|")


def generated(page: str, text: str) -> str:
    """`text` of the file `page` as it should be."""
    text = SECTION.sub(lambda found: f"{found[1]}\n{SECTIONS[found[2]]()}\n\n{found[3]}", text)
    if page == SETTINGS_PAGE:
        text = settings()
    return REPOSITORY.sub(about.REPOSITORY, text)


def stale(write: bool) -> list[str]:
    """The files that are not as they should be; with `write` they are afterwards."""
    names = {*PAGES, SETTINGS_PAGE}
    names |= {path.relative_to(ROOT).as_posix() for pattern in LINKED for path in ROOT.glob(pattern)}
    found = []
    for name in sorted(names):
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        wanted = generated(name, text)
        if wanted != text:
            found.append(name)
            if write:
                path.write_text(wanted, encoding="utf-8", newline="\n")
    return found


def main() -> int:
    """Write, or with --check only name, the stale pages."""
    parser = argparse.ArgumentParser(description="write the generated parts of the documentation")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a page is stale")
    check = parser.parse_args().check
    names = stale(write=not check)
    for name in names:
        print(f"{'stale' if check else 'written'}: {name}")
    return 1 if check and names else 0


if __name__ == "__main__":
    raise SystemExit(main())
