"""The table of flags, and that the run and `presets check` go by it alike."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kohya_ext.presets.keys import flags_in
from kohya_ext.runtime import options, validation_options
from kohya_ext.spec.flags import BY_KEY, FLAGS, FOLDER, SWITCH, faults

VALUES = st.sampled_from(
    ["", "0", "1", "-1", "0.5", "0.28", "0.29", "2.0", "1e400", "nan", "inf", "yes", "true", "debiased", "power", "exp",
     "cpu", "bfloat16", "beside", "only", "raw", "both", "float16", "九", "１"]
)  # fmt: skip


def test_the_defaults_are_among_the_values_it_takes() -> None:
    for flag in FLAGS:
        if flag.default is not None:
            assert flag.read({flag.key: flag.default}) == flag.default


def test_no_key_twice() -> None:
    assert len(BY_KEY) == len(FLAGS)


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.key)
@pytest.mark.parametrize("value", [None, [], {}, object(), float("nan"), float("inf"), 10**400, "\ud800", b"1"])
def test_any_value_is_taken_or_refused_by_what_is_expected(flag: Any, value: Any) -> None:
    fault = flag.fault({flag.key: value})
    assert fault is None or "expected" in fault


def stops(settings: dict[str, Any]) -> bool:
    args = argparse.Namespace(**settings)
    with contextlib.redirect_stderr(None), contextlib.redirect_stdout(None):
        try:
            options.read(args)
            options.log_every(args)
            validation_options.read(args)
        except SystemExit:
            return True
    return False


KEYS = [flag.key for flag in FLAGS if flag.kind not in (SWITCH, FOLDER)]  # whether a folder exists, only the run knows


@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4))
def test_what_the_check_of_a_preset_refuses_stops_the_run(settings: dict[str, str]) -> None:
    """As a TOML brings it; on a command line argparse refuses some of it before."""
    words = " ".join(f"--{key}={value}" for key, value in settings.items())
    preset = flags_in(f"--enable_ema {words}")
    assert bool(list(faults(preset))) == stops({"enable_ema": True, **settings})
