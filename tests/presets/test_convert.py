from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kohya_ext.presets.convert import convert, shown_at_start
from kohya_ext.presets.schema import Field

CHECKBOX = Field("a", "Checkbox")
NUMBER = Field("a", "Number", minimum=0, maximum=1)
WHOLE = Field("a", "Number", precision=0)
SLIDER = Field("a", "Slider", minimum=1, maximum=64, step=1)
TEXTS = Field("a", "Dropdown", choices=("75", "150"))
NUMBERS = Field("a", "Dropdown", choices=(75, 150))
XFORMERS = Field("xformers", "Dropdown", choices=("none", "sdpa", "xformers"))
TEXT = Field("a", "Textbox")
SEED = Field("seed", "Textbox")
EPOCHS = Field("max_train_epochs", "Textbox")


@pytest.mark.parametrize(
    ("value", "field", "expected"),
    [
        ("false", CHECKBOX, False),
        ("True", CHECKBOX, True),
        ("xformers", CHECKBOX, True),
        ("none", CHECKBOX, False),
        ("1e-3", NUMBER, 1e-3),
        ("100", WHOLE, 100),
        (100.0, WHOLE, 100),
        (3.0, SLIDER, 3),
        (75, TEXTS, "75"),
        ("75", NUMBERS, 75),
        (75.0, TEXTS, "75"),
        (True, XFORMERS, "xformers"),
        (False, XFORMERS, "none"),
        (1.0, TEXT, "1"),
        (0, SEED, "0"),  # what the release trains with
        (0, EPOCHS, ""),
        ("0", EPOCHS, ""),
        (1234, SEED, "1234"),
    ],
)
def test_same_meaning_in_the_form_the_field_takes(value: Any, field: Field, expected: Any) -> None:
    converted = convert(value, field)
    assert converted.value == expected
    assert type(converted.value) is type(expected)
    assert converted.problem == ""


@pytest.mark.parametrize(
    ("value", "field", "expected"), [(2, NUMBER, 1), (-1, NUMBER, 0), (0, SLIDER, 1), (2.5, WHOLE, 2)]
)
def test_what_has_to_change_is_said(value: Any, field: Field, expected: Any) -> None:
    converted = convert(value, field)
    assert converted.value == expected
    assert converted.problem


@pytest.mark.parametrize(
    ("value", "field"),
    [("maybe", CHECKBOX), ("fast", NUMBER), (["75"], TEXTS), ("80", TEXTS), (float("nan"), NUMBER), (None, TEXT)],
)
def test_what_cannot_be_meant_is_refused(value: Any, field: Field) -> None:
    assert not convert(value, field).usable


def test_typed_values_are_kept_where_they_may_be_typed() -> None:
    assert (
        convert("my.own.Optimizer", Field("a", "Dropdown", choices=("Lion",), custom=True)).value == "my.own.Optimizer"
    )


def test_a_default_of_the_wrong_type_is_converted_too() -> None:
    assert shown_at_start(Field("lr_warmup", "Slider", minimum=0, maximum=100, step=1, default="0")).value == 0
    assert not shown_at_start(Field("a", "Number", inexact=("default",))).usable


FIELDS = (CHECKBOX, NUMBER, WHOLE, SLIDER, TEXTS, NUMBERS, XFORMERS, TEXT, SEED, EPOCHS)


@given(
    value=st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.lists(st.integers())
    ),
    field=st.sampled_from(FIELDS),
)
def test_converting_is_total_and_stable(value: Any, field: Field) -> None:
    once = convert(value, field)
    if once.usable:
        twice = convert(once.value, field)
        assert twice.usable
        assert twice.value == once.value
        assert twice.problem == ""
