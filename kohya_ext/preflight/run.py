"""A preflight from settings to answer."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kohya_ext.checkout.checkout import Checkout
from kohya_ext.preflight.arguments import ScriptCommand
from kohya_ext.preflight.changes import one_by_one
from kohya_ext.preflight.child import Request, run_child
from kohya_ext.preflight.commands import Planned, digest_of
from kohya_ext.preflight.explain import start_error
from kohya_ext.preflight.measured import measured_here
from kohya_ext.preflight.memory import Memory, judged
from kohya_ext.preflight.prepare import OUTPUT_FOLDER, Workplace, prepare
from kohya_ext.preflight.report import Answer, captions_of, problems_of
from kohya_ext.presets.release import Release
from kohya_ext.spec.flags import ENABLE_EMA
from kohya_ext.spec.optimizers import ours

LOOP, SCHEDULER, STEPS = "loop", "scheduler", "steps"  # milestones of `kohya_ext.tracing`
# what is asked for -> the milestone at which the script is stopped
UNTIL = {"start": LOOP, "data": SCHEDULER, "memory": STEPS, "all": STEPS}
NOT_INSTALLED = (
    "this checkout does not have kohya_ext yet: answered as after `kohya-ext install`, without which it stops"
)
_OF_TRACING = re.compile(
    r'device "?meta"?|fake ?tensor|^(DynamicOutputShape|DataDependentOutput|Unsupported)', re.IGNORECASE
)
ENGINE = "DeepSpeed is started by several processes on their cards, and not here"
DIVIDED = "DeepSpeed divides the weights, gradients and states among the processes, which is not estimated"
MOST_SAID = 300  # characters of an error
MOST_TRIES = 8  # runs with changes
WORTH_IT = 0.99  # of the peak: a change that leaves more of it is of no use


class Preflight:
    """One preflight: the same scripts may be run several times, with changes.

    release, checkout, python: what is installed. place: the temporary folder. card: bytes of its memory.
    """

    def __init__(
        self, planned: Planned, release: Release, checkout: Checkout, python: Path, place: Workplace, card: int | None
    ) -> None:
        self.planned, self.release, self.checkout = planned, release, checkout
        self.python, self.place, self.card = python, place, card
        self.settings = digest_of(planned.training, release)
        self.activate = not release.patched and asks_for_us(planned.training)
        self.deepspeed = bool(planned.training.value("deepspeed"))
        self.arguments = list(release.arguments_of(Path(planned.training.script).name))
        prepare(planned.training, place)
        self.lacks_output = OUTPUT_FOLDER in self.arguments and planned.training.value(OUTPUT_FOLDER) is None
        if self.lacks_output:
            planned.training.give(OUTPUT_FOLDER, place.output(OUTPUT_FOLDER))

    def answer(self, only: str) -> Answer:
        """Run the scripts as far as `only` needs it.

        Args:
            only: a key of UNTIL.

        Returns:
            What was seen, and what is wrong with it.
        """
        until, untraced = UNTIL[only], ""
        if self.deepspeed:
            return self._without_engine(asked_for_memory=until == STEPS)
        report = self._run(until, self.planned.training)
        if report.get("error") and until == STEPS and not _is_upstreams(report["error"]):
            error = report["error"]
            untraced = _untraced(error)
            report = self._run(LOOP, self.planned.training)
        if _is_of_tracing(report.get("error")):
            error = report["error"]
            untraced = untraced or _untraced(error)
            report.update(error=None, reason=f"at {error['where']}: {untraced}")
        answer = self._answer(report)
        if answer.error is None and until == STEPS:
            answer.memory = judged(report.get("memory") or {}, self.card)
            answer.untraced = "" if answer.memory else untraced or answer.reason or "the script never trained a step"
            if answer.memory is not None:
                measured = measured_here(self.checkout.root, self.settings)
                answer.memory = answer.memory.corrected(measured)
            if answer.memory is not None and answer.memory.verdict not in (None, "fits"):
                answer.cheapest = list(self._cheaper(answer.memory))
        return answer

    def _without_engine(self, *, asked_for_memory: bool) -> Answer:
        """DeepSpeed: as far as its engine would be made."""
        report = self._run(SCHEDULER, self.planned.training)
        if not report.get("error"):
            report["reason"] = ENGINE
        answer = self._answer(report)
        if answer.error is None and asked_for_memory:
            answer.untraced = DIVIDED
        return answer

    def _answer(self, report: dict[str, Any]) -> Answer:
        place, notes = self.place, list(self.place.notes)
        if report.get("error"):
            for key in ("message", "image"):
                report["error"][key] = place.by_their_names(str(report["error"].get(key, "")))
        if self.activate:
            notes.append(NOT_INSTALLED)
        answer = Answer(
            script=Path(self.planned.training.script).name,
            reached=report.get("reached"),
            error=start_error(report, self.planned, self.arguments),
            reason=str(report.get("reason") or ""),
            facts=report,
            notes=list(dict.fromkeys([*notes, *report.get("notes", [])])),
            own_images=place.own_images,
        )
        _name_folders(report, {**place.mirrors, **report.get("mirrors", {})})
        if answer.error is None:
            answer.problems = problems_of(report, own_images=place.own_images)
            if self.lacks_output:
                answer.problems.append(f"--{OUTPUT_FOLDER} is not given: the run stops where it first saves")
            answer.notes += captions_of(report, own_images=place.own_images)
        return answer

    def _cheaper(self, before: Memory) -> Iterator[dict[str, Any]]:
        """Changes, each on top of those before, until the run fits; one that takes nothing off is not among them."""
        changes = one_by_one(self.planned.training, frozenset(self.arguments))
        kept: bool | None = None
        for _ in range(MOST_TRIES):
            try:
                change, command = changes.send(kept)  # type: ignore[arg-type] # the first is None, by the protocol
            except StopIteration:
                return
            report = self._run(STEPS, command)
            found = None if report.get("error") else judged(report.get("memory") or {}, self.card)
            kept = found is not None and found.peak < before.peak * WORTH_IT
            if found is None or not kept:  # the script refuses it, or it is of no use
                continue
            before = found
            yield {
                "change": change.text,
                "arguments": dict(change.arguments),
                "costs": change.costs,
                "peak_bytes": found.peak,
                "verdict": found.verdict,
            }
            if found.verdict == "fits":
                return

    def _run(self, until: str, training: ScriptCommand) -> dict[str, Any]:
        commands = [*self.planned.commands[:-1], training]
        request = Request(
            commands=[[command.script, *command.words] for command in commands],
            until=until,
            root=str(self.checkout.root),
            directory=str(self.checkout.training_root),
            paths=list(dict.fromkeys([str(self.checkout.root), str(self.checkout.training_root)])),
            images=str(self.place.images(in_concept=True) / _only_folder(self.place)),
            unknown_models=self.place.unknown_models,
            activate=self.activate or (not self.release.patched and asks_for_us(training)),
            deepspeed=self.deepspeed,
        )
        return run_child(self.python, request, self.place.folder)


def _is_upstreams(error: Mapping[str, Any]) -> bool:
    """Whether it is one of upstream's own checks that failed, which it would do on a GPU as well."""
    return bool(error.get("own")) and error["type"] in ("AssertionError", "ValueError", "FileNotFoundError")


def _is_of_tracing(error: Mapping[str, Any] | None) -> bool:
    """Whether an error comes of tensors without contents, which the run itself would not have."""
    return error is not None and bool(_OF_TRACING.search(f"{error['type']}: {error['message']}"))


def _untraced(error: Mapping[str, Any]) -> str:
    where = f" ({error['where']})" if error.get("where") else ""
    return f"it cannot be traced: {error['type']}: {error['message']}".splitlines()[0][:MOST_SAID] + where


def _only_folder(place: Workplace) -> str:
    return sorted(os.listdir(place.images(in_concept=True)))[0]  # noqa: PTH208


def _name_folders(report: dict[str, Any], mirrors: Mapping[str, str]) -> None:
    """Folders of images by their own names."""
    for one in report.get("data", {}).get("datasets", []):
        for subset in one["subsets"]:
            folder = str(subset["folder"])
            mirror = next((mirror for mirror in mirrors if Path(folder).is_relative_to(mirror)), None)
            if mirror is not None:
                subset["folder"] = str(Path(mirrors[mirror]) / Path(folder).relative_to(mirror))


def asks_for_us(command: ScriptCommand) -> bool:
    """Whether a command asks for something of kohya_ext's."""
    given: dict[str, Any] = dict(command.given())
    return ours(given.get("optimizer_type")) is not None or bool(given.get(ENABLE_EMA.key))
