"""The gradio of a GUI, and the line of config.toml that its version 6 needs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kohya_ext.core.errors import ConflictError
from kohya_ext.files.regular import toml_loads
from kohya_ext.install.gui_gradio import installed_version, warmup_is_number, with_warmup, write_warmup
from kohya_ext.install.requirements import check
from tests.install.test_requirements import PACKAGES, Make, environment, named


def site(folder: Path, version: str) -> Path:
    """An environment with that gradio; gives its interpreter."""
    (folder / "lib" / "python3.11" / "site-packages" / f"gradio-{version}.dist-info").mkdir(parents=True)
    (folder / "lib" / "python3.11" / "site-packages" / "gradio_client-1.0.dist-info").mkdir()
    (folder / "bin").mkdir()
    return folder / "bin" / "python"


def test_the_version_comes_from_the_environment(make: Make, tmp_path: Path) -> None:
    checkout = make("submodule")
    assert installed_version(checkout) is None
    site(checkout.root / "venv", "5.34.2")
    assert installed_version(checkout) == "5.34.2"
    assert installed_version(checkout, site(tmp_path / "other", "6.17.3")) == "6.17.3"


@pytest.mark.parametrize(
    ("text", "is_number"),
    [
        ("[server]\nlr_warmup = 1\n[basic]\nseed = 1\n  lr_warmup = 0\n", True),
        ("basic = { lr_warmup = 2.5 }\n", True),
        ("[basic]\nseed = 1\n[other]\nlr_warmup = 0\n", False),
        ('[basic]\nlr_warmup = "0"\n', False),
        ("[basic\n", False),
        ("basic = 1\n", False),
    ],
)
def test_a_number_in_config_toml_cures_it(make: Make, text: str, is_number: bool) -> None:
    checkout = dataclasses.replace(make("submodule"), release="v26.0.0")
    (checkout.root / "config.toml").write_text(text)
    assert warmup_is_number(checkout) is is_number
    found = named(check(checkout, environment({**PACKAGES, "gradio": "6.17.3"})), "gradio")
    assert found.level == ("ok" if is_number else "warning")
    assert is_number or "--fix-warmup" in str(found.fix)


@pytest.mark.parametrize(("default", "level"), [('"0"', "warning"), ("0", "ok"), ("", "warning")])
def test_a_checkout_whose_source_has_a_number_there_needs_no_fix(make: Make, default: str, level: str) -> None:
    """Kohya's main branch calls itself v26.0.0 too."""
    checkout = dataclasses.replace(make("submodule"), release="v26.0.0")
    if default:
        code = f"class BasicTraining:\n    def __init__(self, a, b=1, lr_warmup_value: float = {default}, c=2): ...\n"
        (checkout.root / "kohya_gui").mkdir(exist_ok=True)
        (checkout.root / "kohya_gui" / "class_basic_training.py").write_text(code)
    found = named(check(checkout, environment({**PACKAGES, "gradio": "6.17.3"})), "gradio")
    assert found.level == level


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "[basic]\nlr_warmup = 0\n"),
        ("[server]\na = 1", "[server]\na = 1\n[basic]\nlr_warmup = 0\n"),
        ("[basic] # mine\nseed = 3\n", "[basic] # mine\nlr_warmup = 0\nseed = 3\n"),
        ("[basic]", "[basic]\nlr_warmup = 0\n"),
        ("[a]\r\nb = 1\r\n", "[a]\r\nb = 1\r\n[basic]\r\nlr_warmup = 0\r\n"),
    ],
)
def test_the_line_is_added_and_nothing_else_changes(before: str, after: str) -> None:
    assert with_warmup(before) == after
    assert toml_loads(with_warmup(before))["basic"]["lr_warmup"] == 0


@pytest.mark.parametrize(
    "text",
    ['[basic]\nlr_warmup = "0"\n', "[basic\n", "basic = { seed = 1 }\n", "basic = 1\n", 'a = """\n[basic]\n"""\n'],
)
def test_a_file_that_cannot_be_added_to_stays(make: Make, text: str) -> None:
    checkout = make("submodule")
    (checkout.root / "config.toml").write_text(text)
    with pytest.raises(ConflictError, match=r"config\.toml: not changed"):
        write_warmup(checkout)
    assert (checkout.root / "config.toml").read_text() == text


def test_the_file_is_made_where_there_is_none(make: Make) -> None:
    checkout = make("submodule")
    assert write_warmup(checkout).read_text() == "[basic]\nlr_warmup = 0\n"
    assert warmup_is_number(checkout)


@given(
    st.text(max_size=80)
    | st.lists(st.sampled_from(["[basic]", "a = 1", "[x]", "#c", "", "b = '[basic]'"])).map("\n".join)
)
def test_whatever_the_file_holds_only_the_warm_up_is_new(text: str) -> None:
    try:
        after = toml_loads(with_warmup(text).lstrip("\ufeff"))
    except ValueError:
        return
    assert after["basic"].pop("lr_warmup") == 0
    before = toml_loads(text.lstrip("\ufeff"))
    assert {key: value for key, value in after.items() if value or key in before} == before
