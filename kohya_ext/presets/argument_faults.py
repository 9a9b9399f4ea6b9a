"""What is wrong with single arguments of a script, whichever field of the form they come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kohya_ext.presets.findings import Level
from kohya_ext.presets.script_run import ScriptRun

SEEDS = 2**32  # numpy, which accelerate seeds too, takes the numbers below


@dataclass(frozen=True)
class ArgumentFault:
    """What is wrong with one argument of a script; "" is the network's kind. names: of the fields that it may be in."""

    rule: str
    names: tuple[str, ...]
    effect: str
    fix: str
    level: Level = "error"


def value_faults(training: ScriptRun) -> Iterator[ArgumentFault]:
    """Values that argparse refuses, flags that lack the one that they need, seeds that no random numbers start from."""
    for name, fault in training.refused.items():
        fix = f"write --{name} without a value" if fault.endswith("no value") else "give it such a value, or remove it"
        yield ArgumentFault("argument-type", (name,), f"{training.script} stops: {fault}", fix)
    seed = training.given.get("seed")
    if isinstance(seed, (int, float)) and not 0 <= seed < SEEDS:
        effect = f"{training.script} stops: a seed is a number from 0 to {SEEDS - 1}"
        yield ArgumentFault(
            "training-stops", ("seed",), effect, "leave it empty for a random one, or write such a number"
        )
