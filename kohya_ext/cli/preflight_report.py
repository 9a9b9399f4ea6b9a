"""The answer of a preflight, as lines for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kohya_ext.core.console import Output
from kohya_ext.core.terminal import Tone
from kohya_ext.presets.memory_text import PARTS, PHASES
from kohya_ext.spec.cards import GIB

if TYPE_CHECKING:
    from kohya_ext.preflight.explain import StartError
    from kohya_ext.preflight.report import Answer
    from kohya_ext.spec.measurements import Measured

REACHED = {
    "models": "up to where the models load",
    "scheduler": "up to the training, which was not run",
    "loop": "up to the first step",
    "steps": "two steps on tensors without contents",
}
UNCONFIRMED = "an estimate that has not been compared with a card yet: leave room above the interval"
MOST_BUCKETS = 6
WORTH_SAYING = 50 << 20  # bytes of a part
TONES: dict[str, Tone] = {"fits": "good", "tight": "doubtful", "does not fit": "bad"}  # of a verdict
NAMES, WIDTH = 30, 40  # characters of a name and of the longest bar


def say(answer: Answer, out: Output, only: str | None) -> None:
    """Print it.

    Args:
        answer: of the preflight.
        out: of the command.
        only: the part that was asked for, None for all.
    """
    for note in answer.notes:
        out.item("note", note)
    if answer.error is not None:
        _say_error(answer.error, answer.script, out)
        return
    reached = REACHED.get(answer.reached or "", "")
    why = f" ({answer.reason})" if answer.reason else ""
    started = f"yes: {answer.script} runs {reached}{why}" if reached else f"unknown{why}"
    out.item("start", started, "good" if reached else "doubtful")
    if only != "start" and answer.facts.get("data"):
        _say_data(answer, out)
    if only in (None, "memory"):
        _say_memory(answer, out)
    for problem in answer.problems:
        out.item("problem", problem, "bad")


def _say_memory(answer: Answer, out: Output) -> None:
    memory = answer.memory
    if memory is None:
        if answer.untraced:
            out.item("memory", f"unknown: {answer.untraced}")
        return
    verdict = "" if memory.verdict is None else f"; {_gib(memory.card or 0)}: {memory.verdict}"
    said = f"{_gib(memory.peak)} at the peak ({_gib(memory.low)} to {_gib(memory.high)}){verdict}"
    out.item("memory", said, TONES.get(memory.verdict or ""))
    if memory.measured is None:
        out.item("", UNCONFIRMED)
    else:
        _say_measured(answer, memory.measured, out)
    parts = {PARTS[name]: size for name, size in memory.parts.items() if size >= WORTH_SAYING}
    out.item("of it", _bars(parts, memory.peak))
    out.item("by phase", _bars({PHASES[one["name"]]: one["bytes"] for one in memory.phases}, memory.peak))
    if memory.ema_on_host:
        out.item("", "the EMA is kept in host memory (--ema_device auto): the card has no room for it")
    for number, one in enumerate(answer.cheapest):
        line = f"{'' if not number else 'and '}{one['change']} (costs {one['costs']}): {_gib(one['peak_bytes'])}"
        out.item("" if number else "to fit", f"{line}, {one['verdict']}")


def _bars(sizes: Mapping[str, float], whole: float) -> str:
    """A line for each size, with a bar: the whole has WIDTH characters."""
    lines = (f"{name:<{NAMES}} {_gib(size):>9}  {'#' * round(WIDTH * size / whole)}" for name, size in sizes.items())
    return "\n".join(line.rstrip() for line in lines)


def _say_measured(answer: Answer, measured: Measured, out: Output) -> None:
    """What a run with these settings took here, and what all steps will take."""
    out.item("measured", str(measured))
    hours, price = answer.hours, answer.price
    if hours is not None:
        cost = "" if price is None else f", {hours * price:.2f} at {price:g} an hour"
        out.item("time", f"{hours:.1f} hours for {answer.facts['steps']['total_steps']} steps{cost}")


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def _say_error(error: StartError, script: str, out: Output) -> None:
    kind = "" if error.type in ("SystemExit", "ended", "AssertionError", "died", "timeout") else f"{error.type}: "
    out.item("start", f"no: {script} stops", "bad")
    out.item("it says", f"{kind}{error.message}")
    if error.where:
        out.item("where", error.where)
    if error.field:
        value = "" if error.value in (None, "") else f" = {error.value}"
        out.item("setting", f"{error.field}{value}")
    if error.fix:
        out.item("fix", error.fix)


def _say_data(answer: Answer, out: Output) -> None:
    facts = answer.facts
    data: dict[str, Any] = facts["data"]
    captions = data["captions"]
    stand_in = " (stand-ins: give yours with --data)" if answer.own_images else ""
    out.item("images", f"{data['images']}, {data['with_repeats']} with repeats{stand_in}")
    for one in data["datasets"]:
        for subset in one["subsets"]:
            out.item("", f"{subset['images']} x {subset['repeats']} in {subset['folder']}")
    empty = f", {captions['empty']} empty" if captions["empty"] else ""
    out.item("captions", f"{captions['distinct']} different{empty}, the longest has {captions['longest']} characters")
    buckets = [bucket for one in data["datasets"] for bucket in one["buckets"]]
    buckets.sort(key=lambda bucket: -bucket["images"])
    for number, bucket in enumerate(buckets[:MOST_BUCKETS]):
        width, height = bucket["resolution"]
        batches = "1 batch" if bucket["batches"] == 1 else f"{bucket['batches']} batches"
        line = f"{width}x{height}: {bucket['images']} in {batches}"
        out.item("" if number else "buckets", line)
    if len(buckets) > MOST_BUCKETS:
        out.item("", f"and {len(buckets) - MOST_BUCKETS} more")
    _say_steps(facts, out)


def _say_steps(facts: Any, out: Output) -> None:
    steps = facts.get("steps")
    if steps:
        out.item(
            "steps",
            f"{steps['total_steps']} in total: {steps['steps_per_epoch']} per epoch, {steps['epochs']} epochs, "
            f"{steps['batches_per_epoch']} batches per epoch, accumulation {steps['gradient_accumulation_steps']}",
        )
    for number, one in enumerate(facts.get("trained") or ()):
        line = f"{one['part']}: {one['weights']:,} weights at {one['learning_rate']:g}"
        out.item("" if number else "trained", line if number else f"{line}, by {facts.get('optimizer')}")
