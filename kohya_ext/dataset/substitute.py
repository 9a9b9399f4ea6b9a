"""A regular expression of the user's, tried in a process of its own: some take longer than the universe has.

`(a+)+$` on thirty letters is enough, and Python cannot interrupt its search. The process can be ended. This file is
also what the process runs; then it knows the standard library only.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

SECONDS = 10.0  # for all captions together; a good expression takes some milliseconds for thousands
MEGABYTES = 512
LARGEST = 1 << 20  # characters of a caption


class TooSlowError(Exception):
    """The expression was ended. reached: how many texts were done by then."""

    def __init__(self, reached: int) -> None:
        super().__init__(reached)
        self.reached = reached


class BadExpressionError(Exception):
    """The expression, or what it is replaced by, is not one."""


def substituted(pattern: str, new: str, texts: Sequence[str], *, ignore_case: bool = False) -> list[str]:
    """`re.sub` on each of `texts`. Raises BadExpressionError, TooSlowError; OSError when no process can be started."""
    order = json.dumps({"pattern": pattern, "new": new, "ignore_case": ignore_case, "texts": list(texts)})
    command = [sys.executable, "-I", "-S", __file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as worker:
        try:
            answer, _ = worker.communicate(order.encode(), timeout=SECONDS)
        except subprocess.TimeoutExpired:
            worker.kill()
            answer, _ = worker.communicate()
            raise TooSlowError(answer.count(b"\n")) from None
        except BaseException:
            worker.kill()
            raise
    lines = answer.decode().splitlines()
    results = [json.loads(line) for line in lines]
    if results and isinstance(results[-1], dict):
        raise BadExpressionError(str(results[-1]["error"]))
    if len(results) != len(texts):
        raise BadExpressionError(f"it needs more than {MEGABYTES} MB, or Python ran out of memory")
    return [str(result) for result in results]


def _work() -> None:
    _bound_memory()
    order: dict[str, Any] = json.loads(sys.stdin.buffer.read())
    try:
        found = re.compile(order["pattern"], re.IGNORECASE if order["ignore_case"] else 0)
        for text in order["texts"]:
            room = LARGEST - len(text)
            for match in found.finditer(text):
                room -= len(match.expand(order["new"])) - len(match.group())
                if room < 0:
                    raise ValueError(f"a caption would have more than {LARGEST} characters")
            _say(found.sub(order["new"], text))
    except (re.error, IndexError, ValueError, OverflowError, RecursionError) as error:
        _say({"error": str(error) or "it is nested too deeply"})
    except MemoryError:
        _say({"error": f"it needs more than {MEGABYTES} MB"})


def _bound_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEGABYTES << 20, MEGABYTES << 20))


def _say(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _work()
