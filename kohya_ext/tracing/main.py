"""The child of a preflight: runs scripts as `python script.py` would, and writes down what it saw.

Started by `kohya_ext.preflight.child` in a process of its own, confined to a temporary folder.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import runpy
import sys
import time
import traceback
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from kohya_ext.files.image_suffixes import SUFFIXES
from kohya_ext.tracing.confine import confine
from kohya_ext.tracing.facts import Facts
from kohya_ext.tracing.milestones import STEPS, Reached

SAID_OF_ERROR = 200  # characters
SAID = 40  # warnings and errors of the log that are kept
REPORT = "report.json"


def run(request_file: str) -> None:
    """Do what a request says, and leave the report next to it.

    Args:
        request_file: JSON; see `kohya_ext.preflight.child.Request`.
    """
    began = time.monotonic()
    folder = Path(request_file).parent
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    said = _listen()
    facts = Facts()
    report: dict[str, Any] = {"reached": None, "error": None}
    confine(folder)
    if request["deepspeed"]:
        os.environ.setdefault("WORLD_SIZE", "1")  # of the launcher, which such scripts ask for
    try:
        sys.path[:0] = request["paths"]
        os.chdir(request["directory"])
        from kohya_ext.tracing.staging import staged

        with staged(request, folder, facts) as stage:
            for number, words in enumerate(request["commands"]):
                last = number == len(request["commands"]) - 1
                report.update(_script(words, request["root"], last=last))
                if report["error"] and stage.steps is not None and stage.steps.done:
                    _end_after_a_step(report, facts.notes)
                if report["error"]:
                    break
            report["memory"] = stage.memory
    except BaseException as error:  # of ours, or of what we import
        report["error"] = _described(error, error.__traceback__, request["root"])
    report.update(facts.as_json(), log=said, seconds=round(time.monotonic() - began, 1))
    (folder / REPORT).write_text(json.dumps(report), encoding="utf-8")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # nothing of upstream's is to be run at the exit


def _script(words: list[str], root: str, *, last: bool) -> dict[str, Any]:
    """Run one script, to its end or as far as it is to come."""
    sys.argv = words
    sys.path.insert(0, os.path.dirname(os.path.abspath(words[0])))  # noqa: PTH100, PTH120
    try:
        runpy.run_path(words[0], run_name="__main__")
    except Reached as reached:
        return {"reached": reached.milestone, "reason": reached.reason, "error": None}
    except SystemExit as stopped:
        if stopped.code in (None, 0):
            return {"error": _ended(words[0]) if last else None}
        return {"error": {**_described(stopped, stopped.__traceback__, root), "script": Path(words[0]).name}}
    except BaseException as error:
        return {"error": {**_described(error, error.__traceback__, root), "script": Path(words[0]).name}}
    return {"error": _ended(words[0]) if last else None}


def _end_after_a_step(report: dict[str, Any], notes: list[str]) -> None:
    """Optimizer steps have been counted: what comes after them takes nothing from that."""
    error = report["error"]
    if error["type"] != "ended":
        notes.append(f"what follows the steps cannot be traced: {error['type']}: {error['message'][:SAID_OF_ERROR]}")
    report.update(reached=STEPS, reason="", error=None)


def _ended(script: str) -> dict[str, Any]:
    return {"type": "ended", "message": "", "where": "", "code": "", "names": [], "script": Path(script).name}


def _described(error: BaseException, trace: TracebackType | None, root: str) -> dict[str, Any]:
    """The error, the statement of the checkout's that raised it, and the arguments which that speaks of."""
    frames = traceback.extract_tb(trace)
    home = os.path.realpath(root) + os.sep
    theirs = [frame for frame in frames if _is_theirs(frame.filename, home)]
    at = next(reversed(theirs or frames), None)
    where = "" if at is None else f"{os.path.relpath(at.filename, root) if theirs else at.filename}:{at.lineno}"
    return {
        "type": type(error).__name__,
        "message": str(error),
        "where": where,
        "own": bool(theirs) and frames[-1] is theirs[-1],
        "code": _statement(trace, home) if theirs else "",
        "image": _image_at(trace, home) if isinstance(error, (ZeroDivisionError, OSError)) else "",
        "trace": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-8:]],
    }


def _is_theirs(file: str, home: str) -> bool:
    """Whether code belongs to the checkout. Code that Python itself has built in is named like <frozen importlib>."""
    return not file.startswith("<") and os.path.realpath(file).startswith(home)


def _image_at(trace: TracebackType | None, home: str) -> str:
    """The image that the checkout's code was about to read or to place; "" where none is in sight."""
    found = ""
    while trace is not None:
        if _is_theirs(trace.tb_frame.f_code.co_filename, home):
            for value in list(trace.tb_frame.f_locals.values()):
                path = getattr(value, "absolute_path", value)
                if isinstance(path, str) and path.lower().endswith(SUFFIXES):
                    found = path
        trace = trace.tb_next
    return found


def _statement(trace: TracebackType | None, home: str) -> str:
    """The whole statement at which the innermost frame of the checkout stands, and the tests around it."""
    import ast
    import linecache

    found: tuple[FrameType, int] | None = None
    while trace is not None:
        if _is_theirs(trace.tb_frame.f_code.co_filename, home):
            found = (trace.tb_frame, trace.tb_lineno)
        trace = trace.tb_next
    if found is None:
        return ""
    frame, number = found
    try:
        tree = ast.parse("".join(linecache.getlines(frame.f_code.co_filename)))
    except SyntaxError:
        return ""
    around = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.stmt) and node.lineno <= number <= (node.end_lineno or node.lineno)
    ]
    inner = max(around, key=lambda node: node.lineno, default=None)
    tests = [ast.unparse(node.test) for node in around if isinstance(node, ast.If)]
    return "\n".join(["" if inner is None else ast.unparse(inner), *tests[-2:]])


def _listen() -> list[dict[str, Any]]:
    """Keeps what is logged as a warning or worse: some scripts say what is wrong and end without an error."""
    said: list[dict[str, Any]] = []
    make = logging.getLogRecordFactory()

    @functools.wraps(make)
    def record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        made = make(*args, **kwargs)
        if made.levelno >= logging.WARNING and len(said) < SAID:
            said.append({"level": made.levelname, "message": made.getMessage(), "logger": made.name})
        return made

    logging.setLogRecordFactory(record)
    return said
