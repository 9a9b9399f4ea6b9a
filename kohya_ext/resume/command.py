"""The command that resumes a run from one of its states: the run's own, with another `--resume`."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kohya_ext.core import shell
from kohya_ext.core.errors import UsageError
from kohya_ext.resume.record import RunStart
from kohya_ext.resume.states import SavedState
from kohya_ext.spec.secrets import KOHYAS, is_secret

RESUME = "--resume"
STANDARD_ERROR = 2
_FROM_HUB = "--resume_from_huggingface"
# What a launcher hands to the script in its environment; nothing else of it is recorded.
_PREFIXES = ("ACCELERATE_", "PYTORCH_")
_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "HF_DATASETS_OFFLINE",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
    "PYTHONPATH",
    "TOKENIZERS_PARALLELISM",
    "TRANSFORMERS_OFFLINE",
)


@dataclass(frozen=True)
class ResumeCommand:
    """words: the interpreter, the script and its flags. folder: where to run it. environment: what it needs besides."""

    words: tuple[str, ...]
    folder: str
    environment: dict[str, str]

    @property
    def text(self) -> str:
        """One line for the user's shell."""
        given = [f"{key}={value}" for key, value in self.environment.items()]
        words = self.words if os.name == "nt" or not given else ("env", *given, *self.words)
        return shell.in_turn(shell.line("cd", self.folder), shell.line(*words))


def launch_of(python: str, argv: Sequence[str], folder: str, environment: Mapping[str, str]) -> RunStart:
    """How this process was started, without secrets. argv: the script and its flags."""
    words, omitted = _without_secrets(argv)
    kept = {
        key: value
        for key, value in sorted(environment.items())
        if (key in _VARIABLES or key.startswith(_PREFIXES)) and not is_secret(key)
    }
    return RunStart(python, words, folder, kept, omitted)


def _without_secrets(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    words: list[str] = []
    omitted: list[str] = []
    skipping = False
    for word in argv:
        flag = word.partition("=")[0]
        if skipping and not word.startswith("--"):
            continue
        skipping = flag.startswith("--") and (is_secret(flag) or _is_short_for_a_secret(flag))
        if skipping:
            omitted.append(flag)
        else:
            words.append(word)
    return words, omitted


def _is_short_for_a_secret(flag: str) -> bool:
    """argparse takes any unambiguous beginning of a flag for the flag."""
    return len(flag) > 2 and any(f"--{name}".startswith(flag) for name in KOHYAS)


def command(state: SavedState) -> ResumeCommand:
    """The command that resumes from `state`."""
    start = state.record.launch
    words = (start.python, *_without_resume(start.words), f"{RESUME}={Path(state.folder).absolute()}")
    return ResumeCommand(words, start.folder, start.environment)


def run(made: ResumeCommand, *, quiet: bool = False) -> int:
    """Run the command and return its exit code. quiet: what it prints goes to standard error.

    The training decides what becomes of SIGINT and SIGTERM, which are passed on: it may want to save a state.
    Raises UsageError where it cannot be started.
    """
    try:
        process = subprocess.Popen(
            made.words,
            cwd=made.folder,
            env={**os.environ, **made.environment},
            stdout=STANDARD_ERROR if quiet else None,
        )
    except (OSError, ValueError) as error:  # ValueError: words that no process can get, in a damaged record
        raise UsageError(f"{made.words[0]} cannot be started in {made.folder}: {error}") from error
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),  # a terminal sends it to both
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: process.terminate()),
    }
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _without_resume(words: Sequence[str]) -> Iterator[str]:
    value_follows = False
    for word in words:
        if value_follows and not word.startswith("--"):
            value_follows = False
            continue
        value_follows = word == RESUME
        if word != RESUME and word != _FROM_HUB and not word.startswith(f"{RESUME}="):
            yield word
