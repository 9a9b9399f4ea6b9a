"""What stops a training with an optimizer of ours, by the tables that the run itself uses; and what it cannot do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from difflib import get_close_matches

from kohya_ext.presets.argument_faults import ArgumentFault
from kohya_ext.presets.optimizer_choice import malformed
from kohya_ext.presets.script_run import ScriptRun
from kohya_ext.spec import adacoor
from kohya_ext.spec.named_arguments import named_arguments
from kohya_ext.spec.optimizers import ADACOOR, ours

RULE, WORDS = "optimizer-args", ("optimizer_args",)
# First steps so long that training does not recover: AdamW's of 1e-2 left the U-Net of docs/explanation/auto-lr.md as
# bad as untrained. The weights of a model itself are of some 0.02, so for them the warning comes earlier.
DESTROYS = 1e-2
DESTROYS_A_MODEL = 1e-3


def own_optimizer_faults(training: ScriptRun) -> Iterator[ArgumentFault]:
    """Arguments that AdaCoor's constructor refuses, and what it does not work with."""
    if ours(training.value("optimizer_type")) != ADACOOR:
        return
    given = named_arguments(word for word in training.value("optimizer_args") or () if not malformed(str(word)))
    # a flag of the script among them is found for any optimizer
    switches = {name for name, argument in training.arguments.items() if argument.type == "bool"}
    for name in given:
        if name == "lr":
            yield _stops(training, "it gets lr twice: the script gives it", "remove it")
        elif name not in adacoor.DEFAULTS and name not in switches:
            near = get_close_matches(name, adacoor.DEFAULTS, n=1, cutoff=0.75)
            fix = f"write {near[0]}, or remove it" if near else "remove it, or choose the optimizer that it belongs to"
            yield _stops(training, f"it has no argument {name}", fix)
    known = {name: value for name, value in given.items() if name in adacoor.DEFAULTS and name != "lr"}
    refused = list(adacoor.faults({**adacoor.DEFAULTS, **known}))
    for fault in refused:
        value = known.get(fault.name)
        quoted = isinstance(value, str) and value.strip()
        yield _stops(
            training, fault.message, f"write {fault.name}={quoted}, without quotes" if quoted else "change or remove it"
        )
    if training.value("deepspeed") and given.get(adacoor.AUTO_LR):
        effect = f"{adacoor.AUTO_LR} does not work with DeepSpeed: {adacoor.NO_DEEPSPEED}"
        yield _stops(training, effect, f"remove {adacoor.AUTO_LR} and give a learning rate, or train without DeepSpeed")
    elif given.get(adacoor.AUTO_LR) and not refused:
        yield from _found_rate(training, float(known.get("eps", adacoor.DEFAULTS["eps"])))
    if not given.get(adacoor.MOMENTUM):
        yield from _cycled_momentum(training)


def _found_rate(training: ScriptRun, eps: float) -> Iterator[ArgumentFault]:
    """Where a rate that finds itself is not found, or starts too large."""
    guess = math.sqrt(eps)
    if "textual_inversion" in training.script:
        effect = f"{ADACOOR.name}: {adacoor.AUTO_LR} measures how far the whole table of embeddings moves, of which "
        effect += "textual inversion trains a few rows: the rate stays at about its first guess"
        fix = (
            f"remove {adacoor.AUTO_LR}; `kohya-ext presets rate` tells the learning rate for one of AdamW that you know"
        )
        yield ArgumentFault(RULE, WORDS, effect, fix, "warning")
    elif guess >= (DESTROYS if "network" in training.script else DESTROYS_A_MODEL):
        effect = f"{ADACOOR.name}: with {adacoor.AUTO_LR}, the root of eps is the first guess of the rate: the first "
        effect += f"step moves weights by up to {guess:.2g}, which may destroy the model"
        fix = f"write {ADACOOR.words}, for a LoRA eps=1e-6"
        yield ArgumentFault(RULE, WORDS, effect, fix, "warning")


def _cycled_momentum(training: ScriptRun) -> Iterator[ArgumentFault]:
    """Schedulers that refuse an optimizer without momentum."""
    scheduler = str(training.value("lr_scheduler_type") or "").rpartition(".")[2]
    cycles = named_arguments(training.value("lr_scheduler_args")).get("cycle_momentum", True)
    if scheduler in adacoor.CYCLING and cycles:
        effect = f"{training.script} stops: {scheduler} changes the momentum from step to step, and {ADACOOR.name} has "
        effect += "none here"
        fix = "write cycle_momentum=False into lr_scheduler_args, or momentum=0.9 into optimizer_args"
        yield ArgumentFault("scheduler", ("lr_scheduler_type",), effect, fix)


def _stops(training: ScriptRun, why: str, fix: str) -> ArgumentFault:
    return ArgumentFault(RULE, WORDS, f"{training.script} stops: {ADACOOR.name}: {why}", fix)
