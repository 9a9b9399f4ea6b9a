"""The memory of a run on a card: what was counted, what a GPU takes besides, and a verdict with its interval."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from kohya_ext.core.errors import UsageError, did_you_mean
from kohya_ext.preflight.measured import CONTEXT as MEASURED_CONTEXT
from kohya_ext.spec.cards import CARDS, GIB, USABLE
from kohya_ext.spec.measurements import Measured

Verdict = Literal["fits", "tight", "does not fit"]

# Bytes that no tensor accounts for: CUDA's context with its kernels, workspaces of cuBLAS and cuDNN, and blocks that
# the allocator has reserved and does not use, a share of what is alive. Low, expected and high.
CONTEXT = (0.35 * GIB, 0.8 * GIB, 2.0 * GIB)
SHARE = (0.0, 0.08, 0.2)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:G|GB|GIB)?", re.IGNORECASE)
EMA = "ema"  # the part
MOSTLY = 0.85  # of a card: a run that ran out of memory had reserved at least so much of it
MOST = 1024  # GiB


@dataclass(frozen=True)
class Memory:
    """Bytes on the card at the peak: expected, at least, at most. phases and parts: as counted.

    ema_on_host: `--ema_device auto` keeps the EMA off this card.
    """

    peak: int
    low: int
    high: int
    phases: list[dict[str, Any]]
    parts: dict[str, int]
    card: int | None = None
    measured: Measured | None = None
    ema_on_host: bool = False

    @property
    def verdict(self) -> Verdict | None:
        """Whether it fits the card; None where no card is named."""
        if self.card is None:
            return None
        usable = self.card * USABLE
        if self.measured is not None and self.measured.died and (self.measured.peak or 0) >= usable * MOSTLY:
            return "does not fit"
        return "fits" if self.high <= usable else "tight" if self.low <= usable else "does not fit"

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "peak_bytes": self.peak,
            "low_bytes": self.low,
            "high_bytes": self.high,
            "phases": self.phases,
            "parts": self.parts,
            "card_bytes": self.card,
            "verdict": self.verdict,
            "ema_on_host": self.ema_on_host,
            "measured": None if self.measured is None else self.measured.as_json(),
        }

    def corrected(self, measured: Measured | None) -> Memory:
        """The same with what was measured here: its interval is that of the measurement."""
        if measured is None or measured.peak is None:
            return replace(self, measured=measured)
        low, peak, high = (int(measured.peak + more) for more in MEASURED_CONTEXT)
        alive = self.peak - self.parts["overhead"]
        return replace(
            self, measured=measured, low=low, peak=peak, high=high, parts={**self.parts, "overhead": peak - alive}
        )


def judged(counted: Mapping[str, Any], card: int | None) -> Memory | None:
    """What a run takes.

    Args:
        counted: of the child's report. ema_free_share: of the card, where the EMA chooses its place by itself.
        card: bytes of its memory, None where none is named.

    Returns:
        None where nothing was counted.
    """
    phases = [{"name": one["name"], "bytes": one["bytes"]} for one in counted.get("phases", ())]
    largest = max(counted.get("phases", ()), key=lambda one: one["bytes"], default=None)
    if largest is None or not largest["bytes"]:
        return None
    alive = largest["bytes"]
    low, expected, high = (int(alive * (1 + share) + fixed) for fixed, share in zip(CONTEXT, SHARE, strict=True))
    left = counted.get("ema_free_share")
    if left is not None and card is not None and expected > card * (1 - left) and largest["parts"].get(EMA):
        return _with_ema_on_the_host(counted, card)
    return Memory(expected, low, high, phases, {**largest["parts"], "overhead": expected - alive}, card)


def _with_ema_on_the_host(counted: Mapping[str, Any], card: int) -> Memory | None:
    """The same run where `--ema_device auto` finds too little room on the card."""
    phases = [
        {**one, "bytes": one["bytes"] - one["parts"].get(EMA, 0), "parts": {**one["parts"], EMA: 0}}
        for one in counted["phases"]
    ]
    memory = judged({"phases": phases}, card)
    return None if memory is None else replace(memory, ema_on_host=True)


def card_memory(name: str) -> int:
    """Bytes of a card's memory, from its size or its name. Raises UsageError."""
    wanted = _plain(name)
    found = next((memory for card, memory in CARDS.items() if wanted and wanted in _names(card)), None)
    if found is not None:
        return found * GIB
    size = _SIZE.fullmatch(name.strip())
    if size is None:
        close = did_you_mean(name, CARDS)
        raise UsageError(f"--card {name}: unknown{close}; give its memory instead, as in --card 24GB")
    if not 0 < float(size[1]) <= MOST:
        raise UsageError(f"--card {name}: give its memory in GB, as in 24GB, or its name, as in 'RTX 4090'")
    return int(float(size[1]) * GIB)


def _names(card: str) -> tuple[str, str]:
    """How people write a card's name."""
    return _plain(card), _plain(card).removeprefix("rtx")


def _plain(name: str) -> str:
    return re.sub(r"nvidia|geforce|[\s_-]", "", name.casefold())
