from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("PIL")
from kohya_ext.report.gather import gather
from kohya_ext.report.page import MOST_ROWS, MOST_TIMES, best_row, costs, overfits, page
from kohya_ext.validation import records
from kohya_ext.validation.records import Row
from tests.report import runs


def test_a_page_that_needs_nothing_else(tmp_path: Path) -> None:
    folder = runs.make(tmp_path)
    for epoch in range(1, 30):
        runs.draw(folder / "sample" / f"dog_e{epoch:06d}_00_1.png")
    runs.draw(folder / "grid.jpg")
    text = page(gather(folder))
    assert "http" not in text and "<script" not in text and "<b>&" not in text and "&lt;b&gt;" in text
    assert text.count("<svg") == 2 and text.count("data:image/jpeg") == MOST_TIMES + 1
    assert (
        "<b>0.6</b>, raw weights, epoch 2, step 4" in text
        and "Kept by --save_best: dog-000002.safetensors, step 4" in text
    )
    assert "epoch 1</div>" in text and "epoch 29</div>" in text
    assert "<details>" not in text
    assert "3.00 GiB" in text and "4 validations" in text and "<td>1e-05" in text


def test_where_validation_turns(tmp_path: Path) -> None:
    turned = gather(runs.make(tmp_path / "a"))
    row = overfits(turned.rows)
    assert row is not None and row.step == 4 and "has risen since" in page(turned)
    falling = gather(runs.make(tmp_path / "b", rising=False))
    assert overfits(falling.rows) is None and "has risen since" not in page(falling)
    best = best_row(falling)
    assert best is not None and best.step == 6


def test_what_was_measured(tmp_path: Path) -> None:
    found = costs(gather(runs.make(tmp_path)))
    assert found == {
        "seconds": 31.5,
        "validation_seconds": 6.0,
        "validations": 4,
        "seconds_per_step": 4.25,
        "peak_bytes": 3 << 30,
    }


def test_a_run_of_which_little_is_known(tmp_path: Path) -> None:
    (tmp_path / "cat-losses.csv").write_text("step,epoch,loss\n")
    text = page(gather(tmp_path))
    assert "neither a record" in text and "<svg" not in text and costs(gather(tmp_path)) == {}


def test_the_time_of_a_resumed_run_is_that_of_all_its_parts(tmp_path: Path) -> None:
    """Killed after step 20, resumed from step 15: 2 s a step, and 1 s each validation."""

    def row(step: int, elapsed: float, weights: str = "raw") -> Row:
        return Row(step, 1, weights, 1.0, 0.5, 1.5, 1.0, 4, 2, 1.0 + step / 1e6, elapsed, 0)

    rows = [row(0, 1.0), row(0, 1.1, "ema"), row(10, 22.0), row(20, 43.0), row(30, 31.0), row(40, 52.0)]
    records.write(tmp_path / "dog-validation.csv", records.COLUMNS, map(records.cells, rows))
    found = costs(gather(tmp_path))
    assert (found["seconds"], found["validations"]) == (43.0 + 52.0, 5)
    assert found["seconds_per_step"] == pytest.approx(2.0, abs=0.01)


def test_a_long_table_is_folded_up(tmp_path: Path) -> None:
    rows = tuple(Row(step, step, "raw", 1.0, 0.9, 1.1, 1.0, 4, 2, 1.0, float(step), 0) for step in range(MOST_ROWS + 1))
    text = page(replace(gather(runs.make(tmp_path)), rows=rows))
    assert f"<summary>All {MOST_ROWS + 1} validations</summary>" in text and text.count("<details>") == 1
    assert text.index("<svg") < text.index("<details>") < text.index("</table></div></details>")


def test_samples_of_an_epoch_are_side_by_side(tmp_path: Path) -> None:
    folder = runs.make(tmp_path)
    for epoch in range(1, 30):
        for name in ("dog-ema", "dog"):
            runs.draw(folder / "sample" / f"{name}_e{epoch:06d}_00_1.png")
    text = page(gather(folder))
    assert text.count("data:image/jpeg") == 2 * MOST_TIMES
    assert text.index("<div>epoch 29</div>") < text.index("<div>EMA, epoch 29</div>") < text.index("Time and memory")


def luminance(colour: str) -> float:
    """As WCAG defines it."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = (int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_lines_can_be_told_apart_in_light_and_dark_mode(tmp_path: Path, dark: bool) -> None:
    text = page(gather(runs.make(tmp_path)))
    style = text[text.index("<style>") : text.index("</style>")]
    dark_rules = "".join(re.findall(r"@media \(prefers-color-scheme: dark\) \{(.*?\}) \}", style, re.S))
    rules = (
        style + dark_rules if dark else re.sub(r"@media \(prefers-color-scheme: dark\).*?\} \}", "", style, flags=re.S)
    )
    background = re.findall(r"body \{[^}]*background: (#\w+)", rules)[-1]
    named = dict(re.findall(r"(--[\w-]+): (#\w+)", rules))
    lines = re.findall(r"<polyline [^>]*stroke='([^']*)'", text)
    raw, ema, each, mean = (named[one[4:-1]] if one.startswith("var(") else one for one in lines)
    assert all(contrast(one, background) > 3 for one in (raw, ema, mean))
    assert contrast(mean, background) > 2 * contrast(each, background) > 3
