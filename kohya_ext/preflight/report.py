"""The answer of a preflight: start, data and memory, for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kohya_ext.preflight.explain import StartError
from kohya_ext.preflight.memory import Memory


@dataclass
class Answer:
    """memory: None where it was not asked for, or could not be traced; untraced says why. cheapest: changes to fit.

    price: of an hour on the card.
    """

    script: str
    reached: str | None
    error: StartError | None
    reason: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    own_images: bool = False
    memory: Memory | None = None
    untraced: str = ""
    price: float | None = None
    cheapest: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the run would start, train something, and fit."""
        return (
            self.error is None and not self.problems and (self.memory is None or self.memory.verdict != "does not fit")
        )

    def as_json(self, only: str | None) -> dict[str, Any]:
        """The document; `only` one of its parts, or all."""
        start = {
            "ok": self.error is None,
            "error": None if self.error is None else self.error.as_json(),
            "script": self.script,
            "reached": self.reached,
            "reason": self.reason,
        }
        parts = {"start": start, "data": self._data(), "memory": self._memory()}
        shown = {key: value for key, value in parts.items() if only in (None, key) or key == "start"}
        return {**shown, "notes": self.notes}

    def _memory(self) -> dict[str, Any] | None:
        if self.memory is None:
            return {"verdict": None, "reason": self.untraced} if self.untraced else None
        hours = self.hours
        cost = None if hours is None or self.price is None else hours * self.price
        return {**self.memory.as_json(), "cheapest": self.cheapest, "hours": hours, "cost": cost}

    @property
    def hours(self) -> float | None:
        """How long all steps take, where a run with these settings has been measured here."""
        measured = None if self.memory is None else self.memory.measured
        steps = self.facts.get("steps")
        if measured is None or measured.seconds is None or steps is None:
            return None
        return float(steps["total_steps"] * measured.seconds / 3600)

    def _data(self) -> dict[str, Any] | None:
        data, steps = self.facts.get("data"), self.facts.get("steps")
        if data is None:
            return None
        return {
            **data,
            "stand_in": self.own_images,
            **(steps or {"steps_per_epoch": None, "total_steps": None}),
            "optimizer": self.facts.get("optimizer"),
            "trained": self.facts.get("trained", []),
            "problems": self.problems,
        }


def captions_of(facts: Mapping[str, Any], *, own_images: bool) -> list[str]:
    """What is to be said of images whose captions upstream has not found.

    Args:
        facts: of the child's report.
        own_images: whether the images are stand-ins.
    """
    subsets = (
        [] if own_images else [one for each in facts.get("data", {}).get("datasets", []) for one in each["subsets"]]
    )
    found = []
    for one in subsets:
        if not one.get("without_caption"):
            continue
        instead = f"{one['named']!r} is their caption" if one.get("named") else "their caption is empty"
        files = f"{one['without_caption']} of {one['images']} images in {one['folder']} have no {one['extension']} file"
        line = f"{files}: {instead}"
        if one.get("with_txt"):
            line += f"; {one['with_txt']} of them have a .txt file, which --caption_extension=.txt takes"
        found.append(line)
    return found


def problems_of(facts: Mapping[str, Any], *, own_images: bool) -> list[str]:
    """What makes a run pointless though it starts: nothing to train on, or nothing that is trained.

    Args:
        facts: of the child's report.
        own_images: whether the images are stand-ins, of which nothing follows.
    """
    found = []
    steps, trained = facts.get("steps"), facts.get("trained")
    if steps is not None and not own_images and not steps["batches_per_epoch"]:
        found.append("0 steps: there is no batch of images in an epoch")
    elif steps is not None and steps["total_steps"] <= 0:
        found.append("0 steps: the number of epochs or steps is 0 (max_train_epochs, max_train_steps)")
    if trained is not None and not any(one["weights"] and one["learning_rate"] > 0 for one in trained):
        rates = ", ".join(f"{one['part']} at {one['learning_rate']:g}" for one in trained) or "no weights at all"
        found.append(f"nothing is trained: {rates}; set a learning rate above 0")
    return found
