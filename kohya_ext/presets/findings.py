"""What a check says about a preset."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing about one setting.

    error: training or the GUI fails, or does something else than the preset says. warning: a value is lost or doubtful.
    note: worth knowing. rule: a stable name for programs. effect: what happens in this release if it stays.
    """

    level: Level
    rule: str
    key: str
    value: Any
    effect: str
    fix: str

    def as_json(self) -> dict[str, Any]:
        """The finding as `--json` prints it."""
        return {
            "level": self.level,
            "rule": self.rule,
            "key": self.key,
            "value": str(self.value) if isinstance(self.value, float) and not math.isfinite(self.value) else self.value,
            "effect": self.effect,
            "fix": self.fix,
        }
