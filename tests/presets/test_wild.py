"""Ten thousand broken presets: none ends in anything but a finding or a usage error."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kohya_ext.core.errors import UnsupportedError, UsageError
from kohya_ext.presets.check import check
from kohya_ext.presets.document import as_preset, bundled, dump_values, parse_values
from kohya_ext.presets.fit import fit
from kohya_ext.presets.guide import departures
from kohya_ext.presets.migration import Migration
from tests.presets.test_check import RELEASE

MIGRATION = Migration(
    whole={"epoch": 0, "seed": 0},
    real={"learning_rate": 0.0},
    digits=frozenset({"lr_warmup"}),
    zeroed=frozenset({"learning_rate"}),
    switches_xformers=True,
    takes_wandb=True,
)
VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.sampled_from(["true", "1e400", "-0", "NaN"])
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
WHOLE = [dict(preset.values) for preset in bundled()]
CHANGED = st.tuples(st.sampled_from(WHOLE), st.dictionaries(st.sampled_from(sorted(WHOLE[0])), VALUES, max_size=8)).map(
    lambda pair: {**pair[0], **pair[1]}
)
PREFIXES = st.sampled_from([b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"[" * 5000, b" " * 100])
ENCODINGS = st.sampled_from(["utf-8", "utf-16", "utf-32", "cp1252"])


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """The bytes of a preset with wrong values, cut, damaged or in another encoding."""
    text = json.dumps(draw(CHANGED), ensure_ascii=draw(st.booleans()))
    data = draw(PREFIXES) + text.encode(draw(ENCODINGS), errors="replace")
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(data) - 1))
        data = data[:place] + draw(st.binary(max_size=3)) + data[place + draw(st.integers(0, 2)) :]
    return data[: draw(st.integers(0, len(data)))] if draw(st.integers(0, 9)) == 0 else data


def judge(data: bytes, gradio: int | None) -> str:
    try:
        values = parse_values(data, "wild.json")
    except UsageError:
        return "refused"
    preset = as_preset(values, "wild", "finetune")
    release = replace(RELEASE, gradio=gradio, migration=MIGRATION)
    findings = [*check(preset, release), *departures(preset)]
    json.dumps([finding.as_json() for finding in findings])
    try:
        fitted = fit(preset, release.schema, arguments=frozenset())
    except UnsupportedError:
        return "checked"
    again: dict[str, Any] = parse_values(dump_values(fitted.values), "fitted.json")
    assert fit(as_preset(again, "wild", "finetune"), release.schema).values == fitted.values
    return "fitted"


@given(broken(), st.sampled_from([None, 3, 5, 6]))
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_broken_presets(data: bytes, gradio: int | None) -> None:
    judge(data, gradio)


@pytest.mark.slow
@given(broken(), st.sampled_from([None, 3, 5, 6]))
@settings(max_examples=10_000, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_ten_thousand_broken_presets(data: bytes, gradio: int | None) -> None:
    judge(data, gradio)
