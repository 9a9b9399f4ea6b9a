"""What the command line says by itself: help with examples, suggestions, and the list of commands."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kohya_ext.cli import captions
from kohya_ext.cli.examples import EXAMPLES
from kohya_ext.cli.main import build_parser
from kohya_ext.core.errors import DONE, WRONG_USAGE
from tests.cli.conftest import Ran

Run = Callable[..., Ran]
ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"^more: https://github\.com/[\w.-]+/kohya_ext/blob/main/(\S+)$", re.MULTILINE)


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from parsers(child)


COMMANDS = [parser.prog for parser in parsers(build_parser())]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_ends_with_two_examples_and_a_link(command: str, run: Run) -> None:
    done = run(*command.split()[1:], "--help")
    assert done.code == DONE
    _, _, end = done.text.partition("\nexamples:\n")
    shown, link = end.strip("\n").rsplit("\n\n", 1)
    lines = [line.strip() for line in shown.splitlines()]
    assert len(lines) == 2 and lines[0] != lines[1]
    for line in lines:
        assert line.startswith("kohya-ext" if command.endswith(" write") else command)
        build_parser().parse_args(captions.with_verb(shlex.split(line)[1:]))
    assert (found := LINK.match(link)) is not None and (ROOT / found[1]).is_file()


def test_no_example_is_of_a_command_that_does_not_exist() -> None:
    assert {command.partition(" ")[2] for command in COMMANDS} == set(EXAMPLES)


@pytest.mark.parametrize("group", ["", "presets", "captions", "lora"])
def test_a_command_alone_lists_its_verbs(group: str, run: Run) -> None:
    done = run(*group.split())
    assert done.code == WRONG_USAGE
    verbs = [command.split()[-1] for command in COMMANDS if re.fullmatch(rf"kohya-ext ?{group} \S+", command)]
    assert len(verbs) >= 2
    for verb in verbs:
        assert re.search(rf"^    {verb}\s", done.errors, re.MULTILINE), verb


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("instal", "install"),
        ("presets chekc --all", "check"),
        ("lora extrakt", "extract"),
        ("captions chekc images", "check"),
        ("install --dry-rum", "--dry-run"),
        ("install --dryrun=1", "--dry-run"),
        ("presets check --guied x.json", "--guide"),
        ("lora extract --base a --tuned b --outt c", "--out"),
        ("grid a --prompts b --output c --imagse d", "--images"),
        ("base-model --overwirte", "--overwrite"),
        ("card a --for huggingfase", "huggingface"),
        ("install --patch-set hok", "hook"),
        ("presets show adacor-48gb", "AdaCoor-48GB"),
        ("presets show lora/LoRA-AdaCoor-42GB", "LoRA-AdaCoor-24GB"),
        ("card a.safetensors --preset AdaCor-48GB", "AdaCoor-48GB"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(words: str, meant: str, run: Run) -> None:
    done = run(*words.split())
    assert done.code == WRONG_USAGE
    assert f"did you mean {meant}?" in done.errors


@pytest.mark.parametrize("words", ["qqqq", "install --zzzzzz", "presets show qqqq"])
def test_what_is_close_to_nothing_gets_no_guess(words: str, run: Run) -> None:
    done = run(*words.split())
    assert done.code == WRONG_USAGE and "did you mean" not in done.errors


def test_a_folder_that_is_called_almost_like_a_verb_is_a_folder(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "undos").mkdir()
    done = run("captions", "undos")
    assert "did you mean" not in done.errors
    assert "undos" in done.errors + done.text
