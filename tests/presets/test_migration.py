from __future__ import annotations

import pytest

from kohya_ext.presets.migration import LoadError, Migration, read_migration
from kohya_ext.pysource.sources import TextSources

OLD = """
def update_my_data(my_data):
    for key in ['epoch', 'lr_warmup']:
        value = my_data.get(key, 0)
        if isinstance(value, str) and value.strip().isdigit():
            my_data[key] = int(value)
        elif not value:
            my_data[key] = 0
    return my_data

def other():
    pass
"""
NEW = """
def update_my_data(my_data):
    for key in ["epoch", "seed"]:
        value = my_data.get(key)
        if value is not None:
            try:
                my_data[key] = int(value)
            except ValueError:
                my_data[key] = int(7)
    for key in ["learning_rate"]:
        value = my_data.get(key)
        if value is not None:
            try:
                my_data[key] = float(value)
            except ValueError:
                my_data[key] = float(0.5)
    xformers_value = my_data.get("xformers", None)
    for key in ["use_wandb"]:
        my_data.pop(key, None)
    return my_data
"""


def migration(text: str) -> Migration:
    return read_migration(TextSources({"library/common_gui.py": text}))


def test_old_releases_zero_what_is_absent() -> None:
    old = migration(OLD)
    assert old.apply({"epoch": "12"})["epoch"] == 12
    assert old.apply({})["lr_warmup"] == 0
    assert old.apply({"epoch": "x"})["epoch"] == "x"


def test_newer_releases_convert_and_fall_back() -> None:
    new = migration(NEW)
    result = new.apply({"epoch": "12", "seed": "x", "learning_rate": "1e-4", "xformers": True, "use_wandb": "True"})
    assert result == {
        "epoch": 12,
        "seed": 7,
        "learning_rate": 1e-4,
        "xformers": "xformers",
        "log_with": "wandb",
        "optimizer": "AdamW",
    }


def test_what_the_gui_would_stumble_over_is_an_error() -> None:
    with pytest.raises(LoadError):
        migration(NEW).apply({"epoch": [1]})


def test_no_function_changes_nothing_but_the_optimizer() -> None:
    assert read_migration(TextSources({})).apply({"epoch": "1"}) == {"epoch": "1", "optimizer": "AdamW"}


def test_locon_gets_its_name_of_today_where_the_release_gives_it() -> None:
    renaming = NEW.replace(
        "    return my_data",
        """    if my_data.get("LoRA_type") == "LoCon":
        my_data["LoRA_type"] = "LyCORIS/LoCon"
    return my_data""",
    )
    assert migration(renaming).apply({"LoRA_type": "LoCon"})["LoRA_type"] == "LyCORIS/LoCon"
    assert migration(NEW).apply({"LoRA_type": "LoCon"})["LoRA_type"] == "LoCon"
