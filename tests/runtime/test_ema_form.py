"""The text field for additional flags and the fields of the EMA: each shows the other, and the user's text survives."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kohya_ext.spec.flags import BY_KEY, FLAGS, Flag, faults, without_ema
from tests.runtime.form_in_node import FIELDS, NODE, SAME, Form

pytestmark = pytest.mark.skipif(NODE is None, reason="needs node")

DEFAULTS = {flag.name: "" if flag.kind.several else flag.default for flag in FIELDS}
ENABLE, DECAY, SCHEDULE, DEVICE = "--enable_ema", "--ema_decay", "--ema_schedule", "--ema_device"
START, SAMPLE, WIDTH, LOG = "--ema_start_step", "--ema_sample", "--ema_sigma_rel", "--kohya_ext_log_every"
VALUES: dict[str, st.SearchStrategy[Any]] = {
    ENABLE: st.booleans(),
    DECAY: st.floats(0, 1, exclude_max=True),
    START: st.integers(0, 10**9),
    WIDTH: st.lists(st.floats(0, 0.28, exclude_min=True), max_size=2, unique=True).map(lambda some: as_text(some)),
    LOG: st.integers(0, 10**6),
    **{flag.name: st.sampled_from(flag.kind.choices) for flag in FIELDS if flag.kind.choices},
}
EDITS = st.sampled_from(FIELDS).flatmap(lambda flag: st.tuples(st.just(flag.name), VALUES[flag.name]))
FOREIGN = st.lists(
    st.sampled_from(
        ["--flag", "--name=value", "--optimizer_args", "eps=1e-8", "'one quoted'", '"a b"', '"', "'", "\\", "#", "--",
         "--ema_decay=2", "--ema_decay", "--ema_device=tpu", "--enable_ema=true", "--ema_foo", "--enable_bucket", "-1",
         "--note=--enable_ema", "x\u00a0y", "\u3000", "   ", "\t", "ü"]
    ),
    max_size=6,
).map(" ".join)  # fmt: skip
WORDS = st.sampled_from(["split", "posix", "windows"])


@pytest.fixture(scope="module")
def form() -> Iterator[Form]:
    one = Form()
    yield one
    one.close()


def run_with(words: list[str]) -> argparse.Namespace:
    """What a run makes of these words."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    for flag in FLAGS:
        parser.add_argument(flag.name, **flag.settings)
    return parser.parse_known_args(words)[0]


@given(edits=st.lists(EDITS, max_size=6))
def test_a_run_gets_exactly_what_the_fields_show(form: Form, edits: list[tuple[str, Any]]) -> None:
    form.words, text, fields = "split", "--flag=1", dict(DEFAULTS)
    for name, value in edits:
        text = form.set(text, name, value)
        fields[name] = value
        assert form.shown(text) == fields
    given = vars(run_with(text.split()))
    assert {flag.name: as_field(flag, flag.read(given)) for flag in FIELDS} == fields


def as_field(flag: Flag, value: Any) -> Any:
    """What a field shows for the value of a run."""
    return as_text(value or ()) if flag.kind.several else value


def as_text(numbers: Iterable[float]) -> str:
    return " ".join(map(str, numbers))


@given(text=FOREIGN, edits=st.lists(EDITS, max_size=4), words=WORDS)
def test_text_that_is_no_valid_flag_survives_every_edit(
    form: Form, text: str, edits: list[tuple[str, Any]], words: str
) -> None:
    form.words = words
    assume(form.shown(text) == DEFAULTS)  # `--ema_device cpu` may come about
    now = text
    for name, value in edits:
        now = form.set(now, name, value)
    assert now.endswith(text)
    for name in DEFAULTS:
        now = form.set(now, name, DEFAULTS[name])
    assert now == text


@given(text=FOREIGN, start=st.integers(1, 99), decay=VALUES[DECAY], words=WORDS)
def test_flags_of_the_user_are_changed_where_they_stand(
    form: Form, text: str, start: int, decay: float, words: str
) -> None:
    form.words = words
    assume(form.shown(text)[DECAY] == DEFAULTS[DECAY])
    assume('"' not in text and "'" not in text and "\\" not in text)
    before = f"--first --ema_decay 0.25  --enable_ema\t--ema_start_step={start} {text}"
    after = form.set(before, DECAY, decay)
    if decay == DEFAULTS[DECAY]:
        assert after == before.replace("--ema_decay 0.25", "", 1).replace("--first  ", "--first ", 1)
    elif decay != 0.25:
        head, _, tail = before.partition("0.25")
        assert after.startswith(head)
        assert after.endswith(tail)
        assert form.shown(after) == {**form.shown(before), DECAY: decay}


@given(text=st.text(), words=WORDS)
def test_no_text_breaks_it(form: Form, text: str, words: str) -> None:
    form.words = words
    shown = form.shown(text)
    assert set(shown) == set(DEFAULTS)
    assert form.set(form.set(text, LOG, 7), LOG, 0) == text or LOG in text


@pytest.mark.parametrize(
    ("text", "shows"),
    [
        ("--enable_ema", {ENABLE: True}),
        ("  --enable_ema   --ema_decay   .5 ", {ENABLE: True, DECAY: 0.5}),
        ("--ema_decay=1e-1 --ema_decay 0.2", {DECAY: 0.2}),
        ("--ema_sample both --ema_device=cpu --ema_schedule=exp", {SAMPLE: "both", DEVICE: "cpu", SCHEDULE: "exp"}),
        ('--ema_decay="0.9" "--enable_ema"', {ENABLE: True, DECAY: 0.9}),
        ("--ema_start_step=10 --kohya_ext_log_every 5", {START: 10, LOG: 5}),
        ("--ema_sigma_rel 0.1", {WIDTH: "0.1"}),
        ("--ema_sigma_rel 0.05  2e-1 --enable_ema", {ENABLE: True, WIDTH: "0.05 2e-1"}),
        ("--ema_sigma_rel 0.1 0.2 0.25", {}),
        ("--ema_sigma_rel 0.1 .10", {}),
        ("--ema_start_step 1e2 --ema_decay 1 --ema_sigma_rel=0 --ema_device --enable_ema=1", {}),
        ("--enable_ema_not --x=--enable_ema ema_decay=0.1", {}),
        ("--ema_decay --enable_ema 0.5", {ENABLE: True}),
        (None, {}),
    ],
)
def test_what_the_fields_show(form: Form, text: str | None, shows: dict[str, Any]) -> None:
    for form.words in ("split", "posix", "windows"):
        assert form.shown(text) == {**DEFAULTS, **shows}


def test_each_gui_reads_quotes_in_its_own_way(form: Form) -> None:
    text = "--note 'about --enable_ema' \"and --ema_decay=0.5 too\" don't \\ --ema_device=cpu"
    form.words = "posix"
    assert form.shown(text.replace("don't \\ ", "")) == {**DEFAULTS, DEVICE: "cpu"}
    assert "--enable_ema: is inside quotes" in form.note
    form.words = "windows"
    assert form.shown(text) == {**DEFAULTS, DEVICE: "cpu"}
    form.words = "split"
    assert form.shown(text) == {**DEFAULTS, DECAY: 0.5, DEVICE: "cpu"}


@given(text=st.lists(st.sampled_from([ENABLE, f"{DECAY}=0.5", "'a b'", '"c d"', "\\ ", "e\\'f"])).map(" ".join))
def test_a_posix_shell_makes_the_same_words(form: Form, text: str) -> None:
    form.words = "posix"
    given = vars(run_with(shlex.split(text)))
    assert form.shown(text)[ENABLE] == given["enable_ema"]
    assert form.shown(text)[DECAY] == (DEFAULTS[DECAY] if given["ema_decay"] is None else given["ema_decay"])


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
@pytest.mark.parametrize(
    "value",
    ["", "0", "1", "-1", "0.5", "0.28", "0.29", "1e-1", "1e400", "nan", "raw", "only", "cpu", "+3", "3.", "0x1", " "],
)
def test_a_field_takes_what_a_run_takes(form: Form, flag: Any, value: str) -> None:
    form.words = "split"
    if flag.name not in DEFAULTS or flag.name == ENABLE:
        return
    given: dict[str, Any] = {}
    try:
        given = vars(run_with([f"{flag.name}={value}"]))
        taken = flag.fault(given) is None and value.strip() != ""
    except argparse.ArgumentError:
        taken = False
    shown = form.shown(f"{flag.name}={value}")[flag.name]
    if flag.kind.several and taken:
        assert shown == value
    else:
        assert shown == (flag.read(given) if taken else DEFAULTS[flag.name])
    assert (f"{flag.name}" in form.note and flag.kind.expected in form.note) == (not taken)


def test_a_field_for_several_numbers(form: Form) -> None:
    form.words = "split"
    text = "--enable_ema --ema_schedule=power --ema_sigma_rel 0.1 0.2 x"
    assert form.shown(text)[WIDTH] == "0.1 0.2"
    assert form.note == ""
    assert form.set(text, WIDTH, "0.05") == text.replace("0.1 0.2", "0.05")
    assert form.set(text, WIDTH, " 0.05,0.25 ") == text.replace("0.1 0.2", "0.05 0.25")
    assert form.left(text, WIDTH, " 0.05,0.25 ") == (text.replace("0.1 0.2", "0.05 0.25"), "0.05 0.25")
    assert form.set(text, WIDTH, "") == form.set(text, WIDTH, " ") == text.replace(" --ema_sigma_rel 0.1 0.2", "")
    for wrong in ("0.1 0.2 0.3", "0.1 x", "0.1 0.10", "0.5", "0.1;0.2"):
        assert form.set(text, WIDTH, wrong) == text
        assert "EMA width (power) is &#39;" in form.note
        assert "or 2 different ones" in form.note
    # an equals sign takes one value only, for the fields as for a run
    assert form.set("--ema_sigma_rel=0.1 0.2", WIDTH, "") == "0.2"
    assert form.set("--ema_sigma_rel=0.1", WIDTH, "0.1 0.2") == "--ema_sigma_rel 0.1 0.2"


def test_what_cannot_be_is_not_written_and_said(form: Form) -> None:
    form.words = "split"
    assert form.set("--enable_ema --ema_decay=0.9 x", DECAY, 2) == "--enable_ema --ema_decay=0.9 x"
    assert "EMA decay is &#39;2&#39;: expected a number from 0" in form.note
    assert form.left("--enable_ema --ema_decay=0.9 x", DECAY, 2) == ("--enable_ema --ema_decay=0.9 x", 0.9)
    assert form.note == ""
    assert form.set("--ema_start_step=3", START, 1.5) == "--ema_start_step=3"
    assert form.set("--ema_start_step=3", START, None) == ""


def test_a_field_that_is_left_and_the_text_say_the_same(form: Form) -> None:
    form.words = "split"
    assert form.left("x --ema_decay=0.9", DECAY, 0.99) == ("x --ema_decay=0.99", 0.99)
    assert form.left("x --ema_decay=0.9", DECAY, None) == ("x", DEFAULTS[DECAY])
    assert form.left("x", DECAY, DEFAULTS[DECAY]) == ("x", DEFAULTS[DECAY])


def test_a_field_that_is_being_typed_in_is_left_alone(form: Form) -> None:
    """The page tells late, and not each time, that it shows what the fields have written."""
    form.words, section = "split", form.new()
    same = [SAME for _ in FIELDS]
    values = [False, 0.99, *list(DEFAULTS.values())[2:]]
    first = form.set("x", DECAY, 0.9, section)
    second = form.set("x", DECAY, 0.99, section)
    assert form.call("fromText", section, first, *values) == []
    assert form.call("fromText", section, second, *values) == []
    assert form.call("fromText", section, first, *values) == [SAME, 0.9, *same[2:]]


def test_text_that_is_none_of_ours_asks_nothing_of_the_page(form: Form) -> None:
    """In v26 the page takes a second for any answer."""
    form.words, section = "split", form.new()
    values = list(DEFAULTS.values())
    form.call("fromText", section, "", *values)
    for end in range(1, 20):
        assert form.call("fromText", section, "--flag=value --other"[:end], *values) == []


def test_two_edits_before_the_page_shows_the_first(form: Form) -> None:
    form.words, section = "split", form.new()
    form.set("x", ENABLE, True, section)
    assert form.set("x", DECAY, 0.5, section) == "--enable_ema --ema_decay=0.5 x"
    assert form.set("x y", DECAY, 0.25, section) == "--ema_decay=0.25 x y"


@pytest.mark.parametrize(
    "text",
    ["--ema_decay=0.5", "--enable_ema --ema_schedule=exp --ema_exp_beta=3", "--enable_ema --ema_schedule power",
     "--enable_ema --ema_sigma_rel=0.1", "--enable_ema --ema_schedule=power --ema_sigma_rel=0.1", "--ema_save=only",
     "--kohya_ext_log_every=3", "--enable_ema --ema_exp_beta=0", "--enable_ema"],
)  # fmt: skip
def test_the_note_says_what_a_run_says(form: Form, text: str) -> None:
    form.words = "split"
    given = vars(run_with(text.split()))
    said = [fault for _, fault in faults(given)]
    if not given["enable_ema"] and (ignored := without_ema(given)):
        said.append(f"{ignored} is set, but --enable_ema is not: this run keeps no EMA")
    form.shown(text)
    others = (
        [word for word in text.split() if BY_KEY[word[2:].partition("=")[0]].label == ""] if "power" not in text else []
    )
    expected = [*said, *([f"also in Additional parameters: {' '.join(others)}"] if others else [])]
    assert form.note == "".join(f"<p>{line}</p>" for line in expected)


def test_the_note_cannot_be_code(form: Form) -> None:
    form.shown('--ema_decay=<img/src="x"onerror=alert(1)>')
    assert "<img" not in form.note
    assert "&#60;img" in form.note
