"""The arguments of AdaCoor and what each may be: the one table of them, for its constructor and for `presets check`."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

AUTO_LR, MOMENTUM = "auto_lr", "momentum"
STATE_BITS = (8, 16, 32)
# The smallest number above 0 of bfloat16, in which the published optimizer multiplies with eps, and the largest.
LEAST_EPS, MOST_EPS = 2.0**-133, 3.38e38

# What the constructor takes apart from the parameters, and its defaults.
DEFAULTS: dict[str, Any] = {
    "lr": 1.0,
    "eps": 1e-8,
    "weight_decay": 0.0,
    "vt_rate": 1.0,
    "state_bits": 16,
    "stochastic_state": False,
    "stochastic_weights": True,
    "seed": 0,
    "maximize": False,
    "foreach": None,
    "fused": None,
    AUTO_LR: False,
    MOMENTUM: 0.0,
}
NUMBERS = ("lr", "eps", "weight_decay", "vt_rate", MOMENTUM)
SWITCHES = (AUTO_LR, "stochastic_state", "stochastic_weights", "maximize")
CHOICES = ("foreach", "fused")

# Schedulers of torch that set a momentum of their own, from .95 down, unless `cycle_momentum` is False.
CYCLING = ("OneCycleLR", "CyclicLR")

NO_DEEPSPEED = "it measures how far each tensor has moved, and DeepSpeed joins tensors and divides them among the ranks"


@dataclass(frozen=True)
class RefusedArgument:
    """Why one is refused. wrong_type: it is not of the kind that it has to be. message: names it."""

    name: str
    message: str
    wrong_type: bool = False


def faults(values: Mapping[str, Any]) -> Iterator[RefusedArgument]:
    """What is wrong with arguments. values: of all of `DEFAULTS`."""
    for name in NUMBERS:
        fault = _number_fault(name, values[name])
        if fault is not None:
            yield fault
    for name in SWITCHES:
        if not isinstance(values[name], bool):
            yield RefusedArgument(name, f"{name} must be True or False, got {values[name]!r}", True)
    for name in CHOICES:
        if values[name] is not None and not isinstance(values[name], bool):
            yield RefusedArgument(name, f"{name} must be True, False or None, got {values[name]!r}", True)
    bits, seed = values["state_bits"], values["seed"]
    if isinstance(bits, bool) or bits not in STATE_BITS:
        yield RefusedArgument("state_bits", f"state_bits must be 8, 16 or 32, got {bits!r}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        yield RefusedArgument("seed", f"seed must be a whole number, got {seed!r}", True)
    if values["foreach"] is True and values["fused"] is True:
        yield RefusedArgument("foreach", "foreach and fused cannot both be True: each names a way to compute the step")
    if values["stochastic_state"] is True and bits == 32:
        message = "stochastic_state is for 16 bits; with state_bits=32 nothing is rounded away"
        yield RefusedArgument("stochastic_state", message)


def _number_fault(name: str, value: Any) -> RefusedArgument | None:
    if not isinstance(value, (int, float, numbers.Real)) or isinstance(value, bool):
        return RefusedArgument(name, f"{name} must be a number, got {value!r}", True)
    try:
        number = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    if not (math.isfinite(number) and number >= 0):
        return RefusedArgument(name, f"{name} must be a finite number of at least 0, got {value!r}")
    if name == "eps" and number < LEAST_EPS:
        return RefusedArgument(name, f"eps must be above 0, got {value!r}: it is the first step's size and the divisor")
    if name == "eps" and number > MOST_EPS:
        return RefusedArgument(name, f"eps must be below {MOST_EPS:g}, got {value!r}: bfloat16 holds no more")
    if name == MOMENTUM and number >= 1:
        return RefusedArgument(name, f"momentum must be below 1, got {value!r}: it is the share that each step keeps")
    return None
