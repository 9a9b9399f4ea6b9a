"""The schema of every real release, and its truth on eight: the tab's own builder run on a stand-in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import toml

from kohya_ext.presets.schema import ATTRIBUTES, TABS, Field, Schema, Tab, read_schema
from kohya_ext.presets.settings import described
from kohya_ext.pysource.sources import FolderSources
from tests.upstream.presets_trees import GitSources, export_python
from tests.upstream.trees import kohya_revisions

pytestmark = pytest.mark.upstream

PROVED = ("v21.8.0", "v22.3.1", "v22.6.2", "v23.0.15", "v24.1.7", "v25.2.1", "v26.0.0", "master")
# Share of keys of which everything is known: from the text alone, and from a checkout on disk with its folders.
LEAST_EXACT_AS_TEXT = {"finetune": 0.89, "lora": 0.91, "dreambooth": 0.88, "ti": 0.88}
LEAST_EXACT = {"finetune": 0.92, "lora": 0.92, "dreambooth": 0.88, "ti": 0.88}
RECORDER = Path(__file__).with_name("recorded_gui.py")


@pytest.mark.parametrize("revision", kohya_revisions())
def test_every_component_of_every_release_is_known(revision: str) -> None:
    sources = GitSources(revision)
    for tab in TABS:
        schema = read_schema(sources, tab)
        assert schema is not None
        assert schema.notes == ()
        fields = schema.fields.values()
        assert [one.key for one in fields if one.component is None] == []
        assert [one.key for one in fields if not described(one.key)] == []
        assert sum(one.exact for one in fields) / len(fields) >= LEAST_EXACT_AS_TEXT[tab]


@pytest.mark.parametrize("tab", TABS)
@pytest.mark.parametrize("revision", PROVED)
def test_what_is_claimed_is_what_the_real_builder_makes(revision: str, tab: Tab, tmp_path: Path) -> None:
    tree = export_python(revision, tmp_path)
    schema = read_schema(FolderSources(tree), tab)
    assert schema is not None
    exact = sum(one.exact for one in schema.fields.values()) / len(schema.fields)
    assert exact >= LEAST_EXACT[tab]
    compared = compare(schema, recorded(tree, tab))
    assert compared > 100
    note({"schema of": revision, "tab": tab, "keys": len(schema.fields), "exact": exact, "attributes": compared})


@pytest.mark.parametrize("tab", TABS)
@pytest.mark.parametrize("revision", ["v24.1.7", "v25.2.1", "v26.0.0", "master"])
def test_the_users_config_toml_counts_as_in_the_real_gui(revision: str, tab: Tab, tmp_path: Path) -> None:
    tree = export_python(revision, tmp_path)
    plain = read_schema(FolderSources(tree), tab)
    assert plain is not None
    wanted: dict[str, Any] = {}
    for key, one in plain.fields.items():
        name = one.settings.get("default")
        if name is not None and key != "training_preset":
            wanted[name] = other_than(one)
    assert len(wanted) > 40
    (tree / "config.toml").write_text(toml.dumps(nested(wanted)), "utf-8")
    schema = read_schema(FolderSources(tree), tab)
    assert schema is not None
    assert schema.notes == ()
    compare(schema, recorded(tree, tab))
    changed = [key for key, one in schema.fields.items() if one.default != plain.fields[key].default]
    assert len(changed) >= len(wanted) * 0.8


def other_than(one: Field) -> Any:
    """A value for a field's default that differs from the release's."""
    if one.component == "Checkbox":
        return not one.default
    if one.component in ("Number", "Slider"):
        return (one.maximum if one.maximum is not None else 7) if one.default != one.maximum else one.minimum
    others = [choice for choice in one.choices or ("other",) if choice != one.default]
    return others[-1] if others else "other"


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """`{"a.b": 1}` as `{"a": {"b": 1}}`."""
    result: dict[str, Any] = {}
    for name, value in flat.items():
        *above, last = name.split(".")
        place = result
        for part in above:
            place = place.setdefault(part, {})
        place[last] = value
    return result


def note(row: dict[str, Any]) -> None:
    """One line of figures for the file that KOHYA_EXT_REPORT names."""
    if target := os.environ.get("KOHYA_EXT_REPORT"):
        with Path(target).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def compare(schema: Schema, truth: dict[str, Any]) -> int:
    """Asserts that every attribute claimed exact is the real one; gives their number."""
    compared = 0
    for key, one in schema.fields.items():
        if key not in truth and key == "training_preset":
            continue
        assert one.component == truth[key]["component"], key
        for ours, theirs in ATTRIBUTES.items():
            if ours in one.inexact:
                continue
            if theirs not in truth[key]:
                assert not getattr(one, ours), (key, ours)  # nothing is claimed that was not given
                continue
            claimed = getattr(one, ours)
            assert (list(claimed) if ours == "choices" else claimed) == plain_choices(truth[key][theirs]), (key, ours)
            compared += 1
    return compared


def plain_choices(value: Any) -> Any:
    """Of (label, value) pairs the values."""
    if isinstance(value, list):
        return [item[1] if isinstance(item, list) and len(item) == 2 else item for item in value]
    return value


def recorded(tree: Path, tab: str) -> dict[str, Any]:
    environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(RECORDER), str(tree), tab]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    truth: dict[str, Any] = json.loads(done.stdout)
    return truth


def test_the_crossed_wires_that_are_known_are_found() -> None:
    def crossed(revision: str, tab: Tab) -> int:
        schema = read_schema(GitSources(revision), tab)
        assert schema is not None
        return sum(one.wired_to is not None for one in schema.fields.values())

    assert crossed("v25.2.1", "finetune") == 12
    assert crossed("v26.0.0", "finetune") == 0
    assert crossed("v22.2.0", "lora") == 3
    assert crossed("v22.3.1", "lora") == 0
