"""What `grid` has found about the checkpoints of a run, each next to the validation of the same weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from kohya_ext.report.gather import Gathered
from kohya_ext.spec.judged import Judged
from kohya_ext.spec.outputs import EMA_SUFFIX, SAVED
from kohya_ext.validation.records import EMA, RAW, SECOND_EMA, Row

_WEIGHTS = {None: RAW, EMA_SUFFIX: EMA, f"{EMA_SUFFIX}2": SECOND_EMA}
_LAST = math.inf  # the file at the end of a run has no number


@dataclass(frozen=True)
class JudgedCheckpoint:
    """One that was judged. when: "epoch 3", "step 200", "the end". order: (step, epoch). row: its validation."""

    when: str
    order: tuple[float, float]
    weights: str
    found: Judged
    row: Row | None


def checkpoints(run: Gathered) -> list[JudgedCheckpoint]:
    """Those of which something is known, from the first to the last, raw before EMA."""
    made = []
    for one in run.judged:
        match = SAVED.fullmatch(one.model)
        if match is None:
            continue
        weights = _WEIGHTS[match["ema"]]
        when, order = _place(match, run)
        rows = [row for row in run.rows if row.weights == weights]
        row = rows[-1] if rows and order[0] == _LAST else next((row for row in rows if row.step == order[0]), None)
        made.append(JudgedCheckpoint(when, order, weights, one, row))
    return sorted(made, key=lambda one: (one.order, list(_WEIGHTS.values()).index(one.weights)))


def _place(match: re.Match[str], run: Gathered) -> tuple[str, tuple[float, float]]:
    """What to call a checkpoint by its file's name, and (step, epoch); the step is -1 where it is not known."""
    if match["epoch"]:
        epoch = int(match["epoch"])
        return f"epoch {epoch}", (run.ends.get(epoch, -1), epoch)
    if match["step"]:
        return f"step {int(match['step'])}", (int(match["step"]), 0)
    return "the end", (_LAST, 0)


def memorizes_from(found: Iterable[JudgedCheckpoint], weights: str = RAW) -> JudgedCheckpoint | None:
    """The first checkpoint from which on all are nearer to training than to held-out images, more than by chance."""
    first = None
    for one in found:
        if one.weights == weights and one.found.chance is not None:
            first = (first or one) if one.found.memorizes else None
    return first


def told(first: JudgedCheckpoint) -> str:
    """What it means that `memorizes_from` has found this one."""
    return (
        f"From {first.when} on, images of the raw weights are nearer to training than to held-out images more often "
        f"than by chance ({first.found.told()} there)"
    )


def table(found: Iterable[JudgedCheckpoint], names: dict[str, str]) -> Iterator[str]:
    """As HTML. names: of weights."""
    compared = any(one.found.told() for one in found)
    yield "<div class=scroll><table><tr><th>Checkpoint<th>Weights<th>Validation loss<th>Near copies"
    yield "<th>Nearer to a training than to a held-out image</tr>" if compared else "</tr>"
    for one in found:
        loss = f"{one.row.loss:#.5g}" if one.row and math.isfinite(one.row.loss) else ""
        cells = [one.when, names[one.weights], loss, f"{one.found.copies} of {one.found.images}"]
        cells += [one.found.told()] if compared else []
        mark = " class=lowest" if one.found.memorizes else ""
        yield f"<tr{mark}>{''.join(f'<td>{cell}' for cell in cells)}</tr>"
    yield "</table></div>"


def document(one: JudgedCheckpoint) -> dict[str, Any]:
    """As JSON."""
    loss = one.row.loss if one.row and math.isfinite(one.row.loss) else None
    found = {name: getattr(one.found, name) for name in ("images", "copies", "samples", "nearer", "chance")}
    return {"when": one.when, "weights": one.weights, "validation_loss": loss, **found}
