"""The `kohya-ext` command: its groups, and what an error looks like to the user.

A group module offers `register(subparsers)`; each of its parsers sets `run`, a function that takes the parsed arguments
and returns an exit code. Groups import what they need inside that function, so that `kohya-ext --help` stays quick.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
from collections.abc import Sequence

from kohya_ext.cli import (
    audit,
    basemodel,
    captions,
    card,
    common,
    demo,
    ema,
    grid,
    health,
    install,
    lora,
    preflight,
    presets,
    prompts,
    report,
    resume,
    update,
)
from kohya_ext.cli.parser import Parser
from kohya_ext.core import shell
from kohya_ext.core.about import NAME, REPOSITORY, VERSION
from kohya_ext.core.errors import FOUND_PROBLEMS, ConflictError, KohyaExtError, UsageError
from kohya_ext.core.terminal import OutputLostError, abandon_output, indented, named_in_one_line, safe_streams

GROUPS = (
    install,
    health,
    update,
    presets,
    preflight,
    basemodel,
    captions,
    audit,
    lora,
    ema,
    resume,
    prompts,
    grid,
    card,
    report,
    demo,
)
INTERRUPTED = 130  # what shells report for Ctrl+C
FRAMES_SHOWN = 4
DESCRIPTION = "AdaCoor, an EMA of the weights and presets for the Kohya_ss or sd-scripts that you already have"
EPILOG = """exit codes: 0 done or nothing to do; 1 a check found problems; 2 wrong usage or bad input;
3 not a Kohya checkout, or unsupported; 4 conflict, nothing was changed; 5 an interrupted transaction was recovered"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = Parser(
        prog=NAME, description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"{NAME} {VERSION}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for group in GROUPS:
        group.register(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Every error ends as a readable line on standard error."""
    with safe_streams():
        try:
            return _run(sys.argv[1:] if argv is None else argv)
        except (BrokenPipeError, OutputLostError) as error:
            # whoever read our output has gone, or the disk it goes to is full
            if isinstance(error, OutputLostError):
                with contextlib.suppress(OutputLostError, BrokenPipeError):
                    print(f"{NAME}: {error}", file=sys.stderr)
            abandon_output()
            return FOUND_PROBLEMS


def _run(argv: Sequence[str]) -> int:
    words = captions.with_verb(argv)
    arguments = build_parser().parse_args(words)
    try:
        common.require_replaceable(arguments)
        code: int = arguments.run(arguments)
        if sys.stdout:
            sys.stdout.flush()
        return code
    except (BrokenPipeError, OutputLostError):
        raise
    except KohyaExtError as error:
        return _failed(error, arguments, words)
    except KeyboardInterrupt:
        print(f"{NAME}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        refusal = _of_the_system(error)
        if refusal is not None:
            return _failed(refusal, arguments, words)
        if os.environ.get("KOHYA_EXT_TRACEBACK"):
            raise
        return _unexpected(error, arguments, words)


def _of_the_system(error: Exception) -> KohyaExtError | None:
    """What the system refused about a path, in words for the user; None for what is a fault of ours."""
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # pathlib before Python 3.13
        return UsageError(f"{str(error).removeprefix('Symlink loop from ')}: its symbolic links form a loop")
    if not isinstance(error, OSError) or error.filename is None or error.errno is None:
        return None
    place = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else error.filename
    text = f"{place}: {error.strerror or error}"
    wrong = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.EILSEQ)
    return UsageError(text) if error.errno in wrong else ConflictError(text)


def _failed(error: KohyaExtError, arguments: argparse.Namespace, words: Sequence[str]) -> int:
    print(f"{NAME}: {indented(named_in_one_line(str(error), words), 2)}", file=sys.stderr)
    if getattr(arguments, "json", False):
        import json

        print(json.dumps({"version": VERSION, "exit_code": error.exit_code, "error": str(error)}, indent=2))
    return error.exit_code


def _unexpected(error: Exception, arguments: argparse.Namespace, argv: Sequence[str]) -> int:
    import platform
    import traceback
    from pathlib import Path

    frames = traceback.extract_tb(error.__traceback__)[-FRAMES_SHOWN:]
    files = [f"{'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno}" for frame in frames]
    where = " < ".join(reversed(files))
    lines = (
        f"{NAME}: internal error (a bug in kohya-ext). Please report these lines at {REPOSITORY}:",
        f"  {type(error).__name__}: {indented(str(error), 2)}",
        f"  at {where}",
        f"  {NAME} {VERSION}, Python {platform.python_version()} ({sys.executable}), {platform.platform()}",
        f"  checkout: {getattr(arguments, 'checkout', None) or 'not given'}; command: {shell.line(NAME, *argv)}",
        "  KOHYA_EXT_TRACEBACK=1 in the environment shows the whole trace.",
    )
    print("\n".join(lines), file=sys.stderr)
    return FOUND_PROBLEMS
