"""A preflight from settings to answer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kohya_ext.checkout.checkout import Checkout
from kohya_ext.preflight.child import Request, run_child
from kohya_ext.preflight.commands import Planned
from kohya_ext.preflight.explain import start_error
from kohya_ext.preflight.prepare import Workplace, prepare
from kohya_ext.preflight.report import Answer, problems_of
from kohya_ext.presets.release import Release
from kohya_ext.spec.flags import ENABLE_EMA
from kohya_ext.spec.optimizers import ours

# what is asked for -> the milestone of `kohya_ext.tracing` at which the script is stopped
UNTIL = {"start": "loop", "data": "scheduler", "memory": "steps"}


def preflight(
    planned: Planned, release: Release, checkout: Checkout, python: Path, place: Workplace, only: str
) -> Answer:
    """Run the scripts in the checkout's Python as far as `only` needs it.

    Args:
        release: the installed code.
        checkout: where it is.
        python: that runs Kohya.
        place: the temporary folder; stand-ins go there.
        planned: of one of the functions in `commands`.
        only: "start", "data" or "memory".

    Returns:
        What was seen, and what is wrong with it.

    Raises:
        ConflictError: there is no room for a temporary folder.
    """
    training = planned.training
    prepare(training, place)
    needs_us = not release.patched and asks_for_us(planned)
    if needs_us:
        place.notes.append(
            "this checkout does not have kohya_ext yet: answered as after `kohya-ext install`, without which it stops"
        )
    request = Request(
        commands=[[command.script, *command.words] for command in planned.commands],
        until=UNTIL[only],
        root=str(checkout.root),
        directory=str(checkout.training_root),
        paths=list(dict.fromkeys([str(checkout.root), str(checkout.training_root)])),
        images=str(place.images(in_concept=True) / _only_folder(place)),
        unknown_models=place.unknown_models,
        activate=needs_us,
    )
    report = run_child(python, request, place.folder)
    if report.get("error"):
        report["error"]["message"] = place.by_their_names(str(report["error"]["message"]))
    script = Path(training.script).name
    arguments = list(release.arguments_of(script))
    answer = Answer(
        script=script,
        reached=report.get("reached"),
        error=start_error(report, planned, arguments),
        reason=str(report.get("reason") or ""),
        facts=report,
        notes=[*place.notes, *report.get("notes", [])],
        own_images=place.own_images,
        memory=report.get("memory"),
    )
    _name_folders(report, {**place.mirrors, **report.get("mirrors", {})})
    if answer.error is None:
        answer.problems = problems_of(report, own_images=place.own_images)
    return answer


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


def asks_for_us(planned: Planned) -> bool:
    """Whether the command asks for something of kohya_ext's."""
    given: dict[str, Any] = dict(planned.training.given())
    return ours(given.get("optimizer_type")) is not None or bool(given.get(ENABLE_EMA.key))
