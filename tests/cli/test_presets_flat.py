"""The `presets` commands between JSON and TOML, and in a checkout with the second GUI."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import toml

from kohya_ext.cli.main import main
from kohya_ext.core.errors import UsageError
from tests.checkout import trees
from tests.cli.conftest import words_of
from tests.cli.test_presets import as_json, run
from tests.presets import second_guis
from tests.presets.test_unread import LECO

PRESET = {"sdxl_checkbox": True, "learning_rate": 1e-6, "optimizer": "AdamW", "epoch": 3, "sdxl_no_half_vae": True}


@pytest.fixture
def both(tmp_path: Path) -> Path:
    """A kohya_ss with both GUIs."""
    return second_guis.write(tmp_path / "kohya_ss").root


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    path = tmp_path / "finetune" / "mine.json"
    path.parent.mkdir()
    path.write_text(json.dumps(PRESET))
    return path


def test_json_to_toml_and_back(capsys: pytest.CaptureFixture[str], both: Path, preset: Path, tmp_path: Path) -> None:
    flat, again = tmp_path / "mine.toml", tmp_path / "again.json"
    code, document = as_json(capsys, "fit", preset, "--out", flat, both)
    read = toml.loads(flat.read_text())
    assert code == 0
    assert read == document["values"]
    assert (read["learning_rate"], read["optimizer_type"], read["training_type"]) == (1e-6, "AdamW", "finetune")
    assert as_json(capsys, "fit", flat, "--out", again, both)[0] == 0
    values = json.loads(again.read_text())
    assert {key: values[key] for key in PRESET} == PRESET


def test_a_dry_run_writes_neither(capsys: pytest.CaptureFixture[str], both: Path, preset: Path, tmp_path: Path) -> None:
    flat = tmp_path / "mine.toml"
    assert run("fit", preset, "--out", flat, "--dry-run", both) == 0
    assert not flat.exists()
    assert run("fit", preset, "--out", flat, both) == 0
    assert run("fit", flat, "--out", tmp_path / "again.json", "--dry-run", both) == 0
    assert not (tmp_path / "again.json").exists()
    assert "would write" in capsys.readouterr().out


def test_toml_to_toml_keeps_what_only_presets_have(
    capsys: pytest.CaptureFixture[str], both: Path, preset: Path, tmp_path: Path
) -> None:
    flat, again = tmp_path / "mine.toml", tmp_path / "again.toml"
    assert as_json(capsys, "fit", preset, "--out", flat, both)[0] == 0
    assert as_json(capsys, "fit", flat, "--out", again, both)[0] == 0
    assert toml.loads(again.read_text()) == toml.loads(flat.read_text())
    with pytest.raises(UsageError, match=r"ends in \.toml or \.json"):
        run("fit", flat, "--out", tmp_path / "again.txt", both)


def test_settings_of_another_script_need_their_tab(both: Path, tmp_path: Path) -> None:
    flat = tmp_path / "mine.toml"
    flat.write_text("learning_rate = 0.5\nnetwork_module = 'networks.lora'\n")
    with pytest.raises(UsageError, match="give --tab"):
        run("fit", flat, "--out", tmp_path / "again.json", "--tab", "finetune", "--script", "train_network.py", both)


def test_check_says_what_the_second_gui_loses(
    capsys: pytest.CaptureFixture[str], both: Path, preset: Path, tmp_path: Path
) -> None:
    flat = tmp_path / "mine.toml"
    assert as_json(capsys, "fit", preset, "--out", flat, both)[0] == 0
    code, document = as_json(capsys, "check", flat, both)
    lost = [one["key"] for one in document["presets"][0]["findings"] if one["rule"] == "second-gui-loses"]
    assert code == 0
    assert "no_half_vae" in lost
    (both / "kohya_gui_v2" / "tabs" / "finetune_derivations.py").write_text(
        "def derive(values, arch_key):\n    return ask()\n"
    )
    _, document = as_json(capsys, "check", flat, both)
    assert "second-gui-unread" in [one["rule"] for one in document["presets"][0]["findings"]]


def test_command_prints_what_the_second_gui_runs(
    capsys: pytest.CaptureFixture[str], both: Path, preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMPT", "$P$G")  # on Windows: for cmd
    flat, out = tmp_path / "mine.toml", tmp_path / "out"
    assert as_json(capsys, "fit", preset, "--out", flat, both)[0] == 0
    project: list[str | Path] = [
        "--data",
        tmp_path,
        "--model",
        "some/model",
        "--output",
        out,
        "--python",
        sys.executable,
    ]
    assert run("command", flat, both, *project) == 0
    said = capsys.readouterr()
    words = words_of(said.out.strip().splitlines()[-1])
    assert words[:4] == ["uv", "run", "accelerate", "launch"]
    assert "sd-scripts/sdxl_train.py" in words
    assert "no_half_vae: lost" in said.out + said.err
    assert (
        run("command", flat, both, *project, "--toml", "--set", "learning_rate=0.125", "--set", "resolution=768") == 0
    )
    trained = toml.loads("\n".join(line for line in capsys.readouterr().out.splitlines() if " = " in line))
    assert (trained["learning_rate"], trained["resolution"]) == (0.125, "768")
    assert trained["train_data_dir"] == str(tmp_path.resolve())
    with pytest.raises(UsageError, match="KEY=VALUE"):
        run("command", flat, both, *project, "--set", "learning_rate")


def test_a_named_script_gets_the_file_as_it_is(
    capsys: pytest.CaptureFixture[str], both: Path, preset: Path, tmp_path: Path
) -> None:
    flat = tmp_path / "mine.toml"
    assert as_json(capsys, "fit", preset, "--out", flat, both)[0] == 0
    project: list[str | Path] = ["--data", tmp_path, "--model", "m", "--output", tmp_path, "--python", sys.executable]
    _, document = as_json(capsys, "command", flat, both, *project, "--script", "sdxl_train.py")
    assert document["training"][document["training"].index("--config_file") + 1] == str(flat.resolve())


AS_TOML = "presets/finetune/user_presets/AdaCoor-48GB.toml"


def test_presets_for_the_second_gui_are_installed_and_removed_byte_for_byte(
    capsys: pytest.CaptureFixture[str], both: Path
) -> None:
    before = trees.whole(both)
    _, planned = as_json(capsys, "install", both, "--dry-run")
    assert trees.whole(both) == before
    assert AS_TOML in planned["files"]
    assert run("install", both) == 0
    manifest = json.loads((both / ".kohya_ext" / "manifest.json").read_text())
    assert {"path": AS_TOML, "kind": "preset"}.items() <= next(
        one for one in manifest["files"] if one["path"] == AS_TOML
    ).items()
    assert {one["path"] for one in manifest["files"]} == set(planned["files"])
    assert main(["status", str(both)]) == 0
    assert main(["uninstall", "--yes", "--no-package", str(both)]) == 0
    assert trees.whole(both) == before


def test_an_edited_or_damaged_preset_as_toml_is_told_apart(capsys: pytest.CaptureFixture[str], both: Path) -> None:
    assert run("install", both) == 0
    file = both / AS_TOML
    file.write_text(f"seed = 3\n{file.read_text()}")
    capsys.readouterr()
    assert main(["status", str(both)]) == 0
    assert "edited by you; kept" in capsys.readouterr().out
    file.write_text("learning_rate = ")
    assert main(["status", str(both)]) == 1
    assert "cannot be read as a preset" in capsys.readouterr().out
    assert run("check", "--all", both) == 1
    assert "AdaCoor-48GB.toml (unreadable)" in capsys.readouterr().out


def test_what_the_script_insists_on_is_on_the_command_line(
    capsys: pytest.CaptureFixture[str], both: Path, tmp_path: Path
) -> None:
    (both / "sd-scripts" / "train_leco.py").write_text(LECO)
    flat = tmp_path / "leco.toml"
    flat.write_text("prompts_file = 'p.toml'\nseed = 3\n")
    project: list[str | Path] = ["--data", tmp_path, "--model", "m", "--output", tmp_path, "--python", sys.executable]
    _, document = as_json(capsys, "command", flat, both, *project, "--script", "train_leco.py")
    words = document["training"]
    assert words[words.index("--prompts_file") + 1] == "p.toml"
    assert "--seed" not in words
