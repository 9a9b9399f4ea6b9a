"""The state of the one run that this process is: all in this room that outlasts a call.

The savers that Kohya calls last have no accelerator at hand, and nothing may be hung on `args`, which Kohya writes into
logs and TOML files. So it is one object of this module, and everybody who needs it imports it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Run:
    """What this run has and has met so far.

    average, telemetry: an `Average` and a `Telemetry`, None while it keeps no EMA or measures nothing; their modules
    import this one. reminders: warnings to repeat at the end.
    skip_counts, skips_told: AdaCoor's counts of skipped gradient elements, and how many have been reported. old_files:
    file of an older patch -> what it has. faults: what could not be wrapped, with the reason. yielded: feature of ours
    -> the fork's flag that it gave way to. replaced: functions of other packages that it replaced, as they were.
    """

    average: Any = None
    telemetry: Any = None
    reminders: list[str] = field(default_factory=list)
    skip_counts: list[Any] = field(default_factory=list)
    skips_told: int = 0
    old_files: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    yielded: dict[str, str] = field(default_factory=dict)
    replaced: list[tuple[Any, str, Any]] = field(default_factory=list)

    def replace(self, module: Any, name: str, function: Any) -> None:
        """Put `function` in the place of a function that is not ours, until `restore`."""
        self.replaced.append((module, name, getattr(module, name)))
        setattr(module, name, function)

    def restore(self) -> None:
        """Give everybody their functions back; one who was replaced twice gets the first."""
        while self.replaced:
            module, name, function = self.replaced.pop()
            setattr(module, name, function)


run = Run()
