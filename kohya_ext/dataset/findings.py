"""What is wrong with a file of a data set, or could be better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

PROBLEM = "problem"  # breaks a run, or trains something else than was meant
ADVICE = "advice"  # the guide would do it otherwise


@dataclass(frozen=True)
class AuditFinding:
    """One thing to look at. code: stable name for scripts. path: relative to the folder, "" for all of it.

    other: the path of the image that this one was compared with.
    """

    code: str
    path: str
    text: str
    level: str = PROBLEM
    other: str = ""

    def as_json(self) -> dict[str, Any]:
        """The finding as `--json` prints it."""
        document = asdict(self)
        if not self.other:
            del document["other"]
        return document


def numbered(findings: Sequence[AuditFinding]) -> tuple[str, str]:
    """("3 problems", "1 piece of advice")."""
    problems = sum(finding.level == PROBLEM for finding in findings)
    others = len(findings) - problems
    return (
        f"{problems} problem{'s' if problems != 1 else ''}",
        f"{others} {'pieces' if others != 1 else 'piece'} of advice",
    )
