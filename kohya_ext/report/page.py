"""The report as one HTML file."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from itertools import groupby, pairwise
from typing import Any

from kohya_ext.files.document import document, thumbnail
from kohya_ext.report import judging
from kohya_ext.report.chart import Chart, Line, Point, running_mean
from kohya_ext.report.gather import Gathered, by_time
from kohya_ext.spec.judged import NOT_BY_CHANCE
from kohya_ext.validation.records import EMA, RAW, SECOND_EMA, Row, lowest

SAMPLE_SIDE, SHEET_SIDE = 192, 1400  # pixels
MOST_TIMES = 12  # epochs or steps with samples: the first, the last, and some between
MOST_ROWS = 20  # of a table that is not folded up
MOST_SHEETS = 3
WIDE = 2  # largest over smallest loss, from which on the axis is logarithmic
RISE = 0.01  # of the loss; noise and images are the same each time, so little is needed
EACH_STEP, MEAN = "var(--each-step)", "var(--mean)"  # by light or dark mode: see STYLE
COLOURS = {RAW: "#d9622b", EMA: "#2563c9"}
FURTHER = ("#2f9e6e", "#8e5bb5", "#b5852f", "#4a7a8c")
NAMES = {RAW: "raw weights", EMA: "EMA", SECOND_EMA: "second EMA"}
STYLE = """
:root { --each-step: #c3c9d3; --mean: #6b7280 }
.chart { margin: .5rem 0 } .chart svg { width: 100%; height: auto; display: block }
.chart text { font: 12px system-ui, sans-serif; fill: #666 } .chart .grid { stroke: #ddd }
.chart .mark { stroke: #2f9e6e; stroke-dasharray: 4 3 } .chart figcaption { font-size: .85rem }
.chart figcaption span { margin-right: 1.2rem } .chart i { display: inline-block; width: 1.2rem; height: .2rem;
  margin-right: .4rem; vertical-align: middle }
.best { border-left: 4px solid #2f9e6e; padding: .3rem .8rem; background: #f2faf6 }
.number { text-align: right } .lowest { font-weight: 600 } .scroll { overflow-x: auto }
.times { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem } .samples img { display: block }
.samples { display: flex; flex-wrap: wrap; gap: .4rem; margin: .3rem 0 .9rem } .costs td:first-child {
  white-space: nowrap }
.sheet img { max-width: 100% } .settings { columns: 2 22rem } .settings td { vertical-align: top;
  overflow-wrap: anywhere } .note { color: #666; font-size: .9rem }
@media (prefers-color-scheme: dark) { :root { --each-step: #646b76; --mean: #c3c9d3 }
  .chart text { fill: #aaa } .chart .grid { stroke: #3a3a3a }
  .best { background: #15281f } .note { color: #999 } }
"""


def page(run: Gathered) -> str:
    """The whole page; nothing in it is loaded from elsewhere."""
    title = f"Training report: {run.name}"
    body = [f"<h1>{html.escape(title)}</h1>", *_summary(run), *_validation(run), *_judged(run)]
    body += [*_loss(run), *_rates(run), *_samples(run), *_sheets(run), *_costs(run), *_settings(run)]
    return document(title, body, STYLE)


def best_row(run: Gathered) -> Row | None:
    """The validation with the lowest loss of all kinds of weights."""
    return lowest(run.rows)


def overfits(rows: Iterable[Row]) -> Row | None:
    """The lowest validation of the raw weights, where the last one is RISE above it; None where it is not."""
    raw = [row for row in rows if row.weights == RAW]
    best = lowest(raw)
    if best is None or raw[-1] is best or not math.isfinite(raw[-1].loss - best.loss):
        return None
    return best if raw[-1].loss > best.loss * (1 + RISE) else None


def _summary(run: Gathered) -> Iterator[str]:
    best = best_row(run)
    if best is not None:
        kept = ""
        if run.best:
            said = {key: html.escape(value) for key, value in run.best.items()}
            kept = f"<br>Kept by --save_best: {said.get('file', '?')}, step {said.get('step', '?')}"
        yield (
            f"<p class=best>Lowest validation loss: <b>{best.loss:.5g}</b>, {html.escape(_named(best.weights))}, "
            f"epoch {best.epoch}, step {best.step}.{kept}</p>"
        )
        turned = overfits(run.rows)
        if turned is not None:
            yield (
                f"<p>The validation loss of the raw weights is lowest after step {turned.step} and has risen since: "
                "later checkpoints fit the training images better, and others worse.</p>"
            )
        memorizes = judging.memorizes_from(judging.checkpoints(run))
        if memorizes is not None:
            yield f"<p>{judging.told(memorizes)}.</p>"
    elif not run.losses:
        yield "<p>There is neither a record of validations nor of losses; --logs names Kohya's --logging_dir.</p>"


def _validation(run: Gathered) -> Iterator[str]:
    if not run.rows:
        return
    kinds = list(dict.fromkeys(row.weights for row in run.rows))
    lines = []
    for number, weights in enumerate(kinds):
        rows = [row for row in run.rows if row.weights == weights]
        band = [(row.low, row.high) for row in rows]
        colour = COLOURS.get(weights) or FURTHER[number % len(FURTHER)]
        points: list[Point] = [(row.step, row.loss) for row in rows]
        lines.append(Line(_named(weights), colour, points, band, dots=True, width=2.2))
    best = best_row(run)
    yield "<h2>Validation</h2>"
    mark, losses = None if best is None else best.step, [row.loss for row in run.rows if math.isfinite(row.loss)]
    wide = bool(losses) and min(losses) > 0 and max(losses) > WIDE * min(losses)
    yield Chart(lines, mark=mark, logarithmic=wide, up="loss on held-out images").svg()
    last = run.rows[-1]
    yield (
        f"<p class=note>{last.images} held-out images, {last.timesteps} timesteps each, the same noise every time. "
        "Bands: 95 % intervals of the mean over the images; they say how far other images may differ, not how exact a "
        "difference between two points is. The dashed line is the lowest.</p>"
    )
    yield from _table(run.rows, kinds)


def _judged(run: Gathered) -> Iterator[str]:
    found = judging.checkpoints(run)
    if found:
        yield "<h2>Images compared with the training images</h2>"
        yield from judging.table(found, NAMES)
        yield (
            "<p class=note>What <code>kohya-ext grid</code> has found. Nearer: of the images drawn from training and "
            f"held-out captions; p is how often it would be as many by chance, in bold below {NOT_BY_CHANCE:g}.</p>"
        )


def _table(rows: Iterable[Row], kinds: list[str]) -> Iterator[str]:
    by_step: dict[int, dict[str, Row]] = {}
    for row in rows:
        by_step.setdefault(row.step, {})[row.weights] = row
    lowest_of = {weights: lowest(row for row in rows if row.weights == weights) for weights in kinds}
    folded = len(by_step) > MOST_ROWS
    if folded:
        yield f"<details><summary>All {len(by_step)} validations</summary>"
    yield "<div class=scroll><table><tr><th>Step<th>Epoch<th>Training loss since the last one"
    yield "".join(f"<th>{html.escape(_named(weights))}<th>95 %" for weights in kinds) + "</tr>"
    for step, found in by_step.items():
        one = next(iter(found.values()))
        cells = [
            f"<td class=number>{step}",
            f"<td class=number>{one.epoch}",
            f"<td class=number>{_number(one.train_loss)}",
        ]
        for weights in kinds:
            here = found.get(weights)
            if here is None:
                cells.append("<td><td>")
                continue
            mark = " lowest" if here is lowest_of[weights] else ""
            interval = f"{here.low:#.4g} to {here.high:#.4g}" if math.isfinite(here.low) else ""
            cells.append(f"<td class='number{mark}'>{_number(here.loss)}<td>{interval}")
        yield f"<tr>{''.join(cells)}</tr>"
    yield "</table></div></details>" if folded else "</table></div>"


def _loss(run: Gathered) -> Iterator[str]:
    points = [(float(step), loss) for step, loss in run.losses if math.isfinite(loss)]
    if not points:
        return
    yield "<h2>Training loss</h2>"
    lines = [Line("each step", EACH_STEP, points, width=1), Line("running mean", MEAN, running_mean(points), width=2)]
    yield Chart(lines).svg()
    yield (
        "<p class=note>Each step has other images, noise and timesteps, so single values say little, and the mean "
        "keeps falling as the model memorizes the training images.</p>"
    )


def _rates(run: Gathered) -> Iterator[str]:
    if run.rates:
        yield "<h2>Effective learning rate</h2>"
        yield Chart(list(_lines(run.rates)), logarithmic=True, up="effective rate").svg()
        yield "<p class=note>The step over the gradient (--kohya_ext_log_every), for each group of parameters.</p>"
    if run.learning_rates:
        yield "<h2>Learning rate</h2>"
        yield Chart(list(_lines(run.learning_rates)), up="rate").svg()


def _lines(series: Mapping[str, list[tuple[int, float]]]) -> Iterator[Line]:
    for number, (label, points) in enumerate(sorted(series.items())[: len(FURTHER)]):
        yield Line(label, FURTHER[number], [(float(step), value) for step, value in points])


def _samples(run: Gathered) -> Iterator[str]:
    times = list(dict.fromkeys(sample.order for sample in run.samples))
    if not times:
        return
    if len(times) > MOST_TIMES:
        times = [times[round(number * (len(times) - 1) / (MOST_TIMES - 1))] for number in range(MOST_TIMES)]
    yield "<h2>Samples</h2><div class=times>"
    for when, samples in by_time(sample for sample in run.samples if sample.order in times).items():
        images = "".join(thumbnail(sample.path, SAMPLE_SIDE) for sample in samples[:MOST_TIMES])
        yield f"<div><div>{html.escape(when)}</div><div class=samples>{images}</div></div>"
    yield "</div>"


def _sheets(run: Gathered) -> Iterator[str]:
    shown = [(path, image) for path in run.sheets[:MOST_SHEETS] if (image := thumbnail(path, SHEET_SIDE))]
    if shown:
        yield "<h2>Grid</h2>"
    for path, image in shown:
        yield f"<p class=note>{html.escape(path.name)}</p><div class=sheet>{image}</div>"


def costs(run: Gathered) -> dict[str, Any]:
    """What was measured: {} without validations. The clock of a resumed run begins at 0 again."""
    if not run.rows:
        return {}
    made = [next(rows) for _, rows in groupby(run.rows, lambda row: (row.step, row.seconds))]  # raw and EMA share them
    following = list(pairwise(made))
    ends = [row for row, after in following if after.elapsed < row.elapsed] + made[-1:]
    timed = [(row, after) for row, after in following if after.elapsed >= row.elapsed and after.step > row.step]
    steps = sum(after.step - row.step for row, after in timed)
    training = max(sum(after.elapsed - row.elapsed - after.seconds for row, after in timed), 0.0)
    return {
        "seconds": sum(row.elapsed for row in ends),
        "validation_seconds": sum(row.seconds for row in made),
        "validations": len(made),
        "seconds_per_step": training / steps if steps else None,
        "peak_bytes": max(row.peak_bytes for row in run.rows) or None,
    }


def _costs(run: Gathered) -> Iterator[str]:
    found = costs(run)
    if not found:
        return
    share = found["validation_seconds"] / found["seconds"] if found["seconds"] else 0.0
    rows = {
        "Time": f"{_duration(found['seconds'])}, of which {found['validations']} validations: "
        f"{_duration(found['validation_seconds'])} ({share:.0%})"
    }
    if found["seconds_per_step"] is not None:
        rows["A step"] = f"{found['seconds_per_step']:.3g} s"
    if found["peak_bytes"]:
        rows["Most memory"] = (
            f"{found['peak_bytes'] / 2**30:.2f} GiB (of the GPU where there is one, else of the process)"
        )
    rows["Checkpoints"] = ", ".join(path.name for path in run.checkpoints) or "none"
    yield "<h2>Time and memory</h2>"
    yield f"<div class=costs>{_pairs(rows)}</div>"


def _settings(run: Gathered) -> Iterator[str]:
    if run.settings:
        yield "<h2>Settings</h2>"
        yield f"<div class=settings>{_pairs(run.settings)}</div>"


def _pairs(rows: Mapping[str, str]) -> str:
    lines = (f"<tr><td>{html.escape(key)}<td>{html.escape(value)}</tr>" for key, value in rows.items())
    return f"<table>{''.join(lines)}</table>"


def _named(weights: str) -> str:
    return NAMES.get(weights, weights)


def _number(value: float) -> str:
    return f"{value:#.5g}" if math.isfinite(value) else ""


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds))) if math.isfinite(seconds) and 0 <= seconds < 1e9 else "unknown"
