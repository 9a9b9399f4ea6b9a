"""Which text encoders go into the LoRA: one rule, and a reason for each that stays out.

sd-scripts leaves both encoders out, silently but for a log line, when no weight of either moved by more than its
`min_diff` of 0.01: a LoRA of a fine-tune whose text encoder learned a little then lacks what makes its words work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kohya_ext.lora.checkpoint import Checkpoint, Weight, only_rounding

RULES = ("auto", "together", "all", "none")
TITLES = {
    "te": "text encoder",
    "te1": "text encoder 1 (CLIP-L)",
    "te2": "text encoder 2 (OpenCLIP bigG)",
    "te3": "T5-XXL",
}
# what not every program loads of a LoRA: diffusers leaves it out without a word
UNSEEN = {"te3": "sd-scripts and ComfyUI load this part, diffusers does not"}
DEFAULT_MINIMUM = 0.0  # any difference that is more than the rounding of a storage type
SD_SCRIPTS_MINIMUM = 0.01


@dataclass(frozen=True)
class Decision:
    """What happens to one text encoder. largest: greatest difference of a weight that was looked at."""

    group: str
    included: bool
    reason: str
    largest: float | None = None

    @property
    def title(self) -> str:
        """What to call the text encoder in messages."""
        return TITLES.get(self.group, self.group)

    @property
    def unseen(self) -> str:
        """Who does not load what is extracted of it; "" where everybody does, or nothing is extracted."""
        return UNSEEN.get(self.group, "") if self.included else ""


@dataclass(frozen=True)
class _Look:
    largest: float
    beyond: bool


def decide(base: Checkpoint, tuned: Checkpoint, rule: str, minimum: float) -> list[Decision]:
    """Apply `rule` to every text encoder that either model has.

    auto: each encoder by itself, when a weight differs by more than `minimum`. together: all of them when any does
    (sd-scripts' rule). all, none: as it says.
    """
    groups = [group for group in dict.fromkeys((*base.groups, *tuned.groups)) if group != "unet"]
    decisions: dict[str, Decision] = {}
    looks: dict[str, _Look] = {}
    for group in groups:
        if group not in base.groups or group not in tuned.groups:
            lacking = base if group not in base.groups else tuned
            decisions[group] = Decision(group, False, f"dropped: {lacking.path.name} does not contain it")
        elif rule == "none":
            decisions[group] = Decision(group, False, "dropped: --text-encoders none")
        elif rule == "all":
            decisions[group] = Decision(group, True, "kept: --text-encoders all")
        else:
            looks[group] = _look(_pairs(base, tuned, group), minimum)
    any_beyond = any(look.beyond for look in looks.values())
    for group, look in looks.items():
        decisions[group] = _judge(group, look, minimum, rule == "together" and any_beyond)
    return [decisions[group] for group in groups]


def _judge(group: str, look: _Look, minimum: float, with_the_other: bool) -> Decision:
    threshold = f"--min-diff {minimum:g}"
    if look.beyond:
        found = f"kept: a weight differs by {look.largest:.2g}, more than {threshold}"
        return Decision(group, True, found, look.largest)
    if with_the_other:
        return Decision(group, True, "kept: another text encoder changed (--text-encoders together)", look.largest)
    if look.largest == 0:
        return Decision(group, False, "dropped: no weight differs", look.largest)
    if minimum <= 0:
        why = f"no weight differs by more than its rounding when stored (largest {look.largest:.2g})"
    else:
        why = f"no weight differs by more than {threshold} (largest {look.largest:.2g})"
    return Decision(group, False, f"dropped: {why}", look.largest)


def _pairs(base: Checkpoint, tuned: Checkpoint, group: str) -> list[tuple[Weight, Weight]]:
    return [
        (weight, tuned.weights[name])
        for name, weight in base.weights.items()
        if weight.target.group == group and name in tuned.weights
    ]


def _look(pairs: Sequence[tuple[Weight, Weight]], minimum: float) -> _Look:
    """Stops at the first weight beyond the minimum: an encoder that was trained is known by its first matrix."""
    largest = 0.0
    for before, after in pairs:
        a, b = before.load(), after.load()
        if a.shape != b.shape or only_rounding(before, after, a, b):
            if a.shape == b.shape:
                largest = max(largest, _difference(a, b))
            continue
        largest = max(largest, _difference(a, b))
        if largest > minimum:
            return _Look(largest, True)
    return _Look(largest, False)


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((b.float() - a.float()).abs().max())
