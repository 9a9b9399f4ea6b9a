from __future__ import annotations

import ast
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kohya_ext.core.errors import UsageError
from kohya_ext.presets.document import (
    MAX_BYTES,
    as_preset,
    bundled,
    dump_values,
    find_bundled,
    other_kind,
    parse_values,
    read_values,
    tab_of,
    without_slips,
)
from kohya_ext.presets.keys import RATES


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{", "not JSON: line 1"),
        (b"[1]", "holds a list"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8"),
        (b"\x00", "not JSON"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a": ' + b"[" * 50 + b"]" * 50 + b"}", "nested too deeply"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not a preset"),
    ],
)
def test_broken_presets_are_refused_with_a_reason(data: bytes, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_values(data, "x.json")


@pytest.mark.parametrize(
    "text",
    [
        '{"a":' + "[" * 900_000,
        '{"a":' * 150_000 + "1" + "}" * 150_000,
        '{"epoch":' + "9" * 900_000 + "}",
        "{" + ",".join(f'"k{n}":{n}' for n in range(60_000)) + "}",
        "\0" * 900_000,
    ],
    ids=["lists", "objects", "digits", "keys", "nul"],
)
def test_a_giant_below_the_limit_is_refused(text: str, tmp_path: Path) -> None:
    giant = tmp_path / "giant.json"
    giant.write_text(text)
    assert giant.stat().st_size <= MAX_BYTES
    with pytest.raises(UsageError, match="giant"):
        read_values(giant)


def test_a_giant_is_not_even_read(tmp_path: Path) -> None:
    giant = tmp_path / "giant.json"
    with giant.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(UsageError, match="larger than"):
        read_values(giant)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UsageError, match=r"does not exist|is a folder"):
            read_values(path)


def test_a_byte_order_mark_is_read_and_never_written() -> None:
    assert parse_values(b'\xef\xbb\xbf{"a": "\xc3\xa9"}', "x") == {"a": "é"}
    assert dump_values({"b": "é", "a": 1}) == b'{\n  "a": 1,\n  "b": "\\u00e9"\n}\n'


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(UsageError):
        parse_values(data, "x")


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10))


@given(st.dictionaries(st.text(max_size=10), st.recursive(SCALARS, lambda x: st.lists(x, max_size=3), max_leaves=5)))
def test_any_json_object_is_read(values: dict[str, Any]) -> None:
    assert isinstance(parse_values(json.dumps(values).encode(), "x"), dict)


def test_our_presets_say_where_they_come_from() -> None:
    presets = list(bundled())
    assert {preset.name for preset in presets} >= {
        "AdaCoor-48GB",
        "AdaCoor-48GB-EMA",
        "AdaCoor-24GB",
        "Lion-48GB",
        "Skynet-80GB",
        "A100-80GB-EMA",
        "A6000-48GB",
        "AdaCoor-Auto-48GB",
        "AdaCoor-Auto-24GB",
        "LoRA-AdaCoor-Auto",
    }
    for preset in presets:
        assert {"title", "origin", "date", "vram", "requires", "fill_in", "derived", "extract"} <= set(preset.about)
        assert preset.values["optimizer"]


@pytest.mark.parametrize("name", ["AdaCoor-Auto-48GB", "AdaCoor-Auto-24GB", "LoRA-AdaCoor-Auto"])
def test_presets_that_find_their_rate_are_ours_and_have_arguments_that_kohya_can_read(name: str) -> None:
    preset = find_bundled(name)
    assert str(preset.about["origin"]).startswith("ours")
    words = dict(word.split("=") for word in str(preset.values["optimizer_args"]).split())
    read = {key: ast.literal_eval(value) for key, value in words.items()}  # as sd-scripts does
    eps = 1e-6 if name.startswith("LoRA") else 1e-8
    assert read.items() >= {"eps": eps, "auto_lr": True, "momentum": 0.9}.items()
    assert {value for key, value in preset.values.items() if key in RATES} == {1.0}


def test_our_presets_are_found_by_any_spelling_of_their_name() -> None:
    assert find_bundled("adacoor-48gb.json") == find_bundled("finetune/AdaCoor-48GB")
    with pytest.raises(UsageError, match="AdaCoor-48GB"):
        find_bundled("nothing")


def test_the_about_block_is_no_setting() -> None:
    preset = as_preset({"_about": {"requires": ["EMA"]}, "epoch": 1}, "x", "finetune")
    assert dict(preset.values) == {"epoch": 1}
    assert preset.requires == ("EMA",)
    assert as_preset({"_about": "odd"}, "x", "finetune").requires == ()


def test_the_tab_of_a_file() -> None:
    assert tab_of({}, Path("presets/lora/a.json"), None) == "lora"
    assert tab_of({}, Path("presets/lora/a.json"), "ti") == "ti"
    assert tab_of({"LoRA_type": "Standard"}, Path("a.json"), None) == "lora"
    assert tab_of({"train_data_dir": ""}, Path("a.json"), None) == "dreambooth"
    assert tab_of({}, Path("a.json"), None) == "finetune"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{\n "LoRA_type": "Standard",\n "network_dim": 8,\n}\n', "line 3, column 18: a comma with nothing behind it"),
        ('{"a": [1, 2,\n]}', "line 1, column 12: a comma"),
        ('{\n // mine\n "a": 1}', "line 2, column 2: JSON has no comments"),
        ('{\n "a": 1 # mine\n}', "line 2, column 9: JSON has no comments"),
    ],
)
def test_the_usual_slips_are_located_and_repaired_on_request(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "slip.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        read_values(path)
    repairs: list[str] = []
    assert read_values(path, repairs)
    assert len(repairs) == 1


def test_a_repair_leaves_texts_alone() -> None:
    repairs: list[str] = []
    data = without_slips(b'{"a": "x, } // # y \\" ,]", /* two\nlines */ "b": [1,],}', repairs)
    assert parse_values(data, "x") == {"a": 'x, } // # y " ,]', "b": [1]}
    comma = "line 2: a comma with nothing behind it"
    assert repairs == ["line 1: a comment", comma, comma]
    repairs = []
    assert without_slips(b'{"a": 1}', repairs) == b'{"a": 1}'
    assert repairs == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"img/a.png": {"caption": "a", "train_resolution": [64, 64]}, "img/b.png": {"caption": "b"}}, "in_json"),
        ({"ss_network_dim": "8", "modelspec.title": "x"}, "trained file"),
        ({"nodes": [], "links": []}, "ComfyUI"),
        ({"compute_environment": "x"}, "accelerate"),
        ({"colour": "red"}, "another program"),
    ],
)
def test_other_kinds_of_file_are_named(values: dict[str, Any], said: str) -> None:
    assert said in other_kind(values)
    assert other_kind({**values, "learning_rate": 1}) == ""


def test_every_preset_of_ours_is_a_preset() -> None:
    assert [preset.name for preset in bundled() if other_kind(preset.values)] == []
    assert other_kind({}) == ""
