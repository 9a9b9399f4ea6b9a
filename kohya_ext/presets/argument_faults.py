"""What is wrong with single arguments of a script, whichever field of the form they come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kohya_ext.presets.findings import Level
from kohya_ext.presets.script_run import ScriptRun


@dataclass(frozen=True)
class ArgumentFault:
    """What is wrong with one argument of a script; "" is the network's kind. names: of the fields that it may be in."""

    rule: str
    names: tuple[str, ...]
    effect: str
    fix: str
    level: Level = "error"


def value_faults(training: ScriptRun) -> Iterator[ArgumentFault]:
    """Flags of the command line whose value argparse refuses, or that lack the one that they need."""
    for name, fault in training.refused.items():
        fix = f"write --{name} without a value" if fault.endswith("no value") else "give it such a value, or remove it"
        yield ArgumentFault("argument-type", (name,), f"{training.script} stops: {fault}", fix)
