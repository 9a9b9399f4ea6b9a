"""The `presets` commands on TOML files of sd-scripts, next to bare sd-scripts: no GUI is needed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import toml

from kohya_ext.core.errors import KohyaExtError, UsageError
from tests.cli.conftest import words_of
from tests.cli.test_presets import as_json, run
from tests.presets.toml_release import TEXTS

SETTINGS = """network_module = "networks.lora"
learning_rate = "1e-4"
max_train_epochs = 3
caption_extension = ".txt"
cache_text_encoder_outputs = true
nonsense = 5
"""
DATA = """[[datasets]]
batch_size = "2"
[[datasets.subsets]]
image_dir = "/a"
"""


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """Bare sd-scripts."""
    root = tmp_path / "sd-scripts"
    for name, text in {**TEXTS, "library/__init__.py": "", "networks/lora.py": "", "fine_tune.py": ""}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "train.toml"
    path.write_text(SETTINGS)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.toml"
    path.write_text(DATA)
    return path


def test_check(capsys: pytest.CaptureFixture[str], scripts: Path, settings: Path, data: Path) -> None:
    code, document = as_json(capsys, "check", settings, data, scripts)
    assert code == 1
    first, second = document["presets"]
    assert (first["preset"], first["tab"]) == ("train.toml", "sdxl_train_network.py")
    assert [one["rule"] for one in first["findings"]] == ["text-for-number", "unknown-key"]
    assert (second["tab"], second["findings"][0]["key"]) == ("--dataset_config", "datasets[0].batch_size")
    assert run("check", settings, scripts, "--script", "train_network") == 1
    assert "train.toml (train_network.py): 1 error, 2 warnings" in capsys.readouterr().out


@pytest.mark.parametrize("which", ["settings", "data"])
def test_fit(
    which: str, capsys: pytest.CaptureFixture[str], scripts: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path, target = request.getfixturevalue(which), tmp_path / "fixed.toml"
    code, document = as_json(capsys, "fit", path, scripts, "--out", target, "--dry-run")
    assert (code, target.exists()) == (0, False)
    assert run("fit", path, scripts, "--out", target) == 0
    assert toml.loads(target.read_text()) == document["values"]
    assert run("check", target, scripts) == 0
    assert run("fit", target, scripts, "--out", tmp_path / "again.toml") == 0
    assert (tmp_path / "again.toml").read_text() == target.read_text()
    with pytest.raises(KohyaExtError, match="without a GUI" if which == "settings" else r"ends in \.toml$"):
        run("fit", path, scripts, "--out", tmp_path / "fixed.json")


def test_fit_mends_slips(capsys: pytest.CaptureFixture[str], scripts: Path, settings: Path, tmp_path: Path) -> None:
    settings.write_text('vae = "C:\\models\\v.pt"\nlowram = True\n')
    with pytest.raises(UsageError, match="line 1"):
        run("check", settings, scripts)
    code, document = as_json(capsys, "fit", settings, scripts, "--out", tmp_path / "fixed.toml")
    assert (code, len(document["repairs"])) == (0, 2)
    assert document["values"] == {"vae": "C:\\models\\v.pt", "lowram": True}


def test_command(
    capsys: pytest.CaptureFixture[str],
    scripts: Path,
    settings: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PROMPT", "$P$G")  # on Windows: for cmd
    words: list[str | Path] = [
        "--data",
        tmp_path,
        "--model",
        "base",
        "--output",
        tmp_path / "out",
        "--python",
        sys.executable,
    ]
    assert run("command", settings, scripts, *words) == 0
    said = capsys.readouterr()
    assert "learning_rate: a text where a number belongs" in said.err + said.out
    line = next(one for one in said.out.splitlines() if "--config_file" in one)
    given = words_of(line)
    assert given[given.index("--config_file") + 1] == str(settings.resolve())
    assert f"{scripts.resolve()}/sdxl_train_network.py" in given
    assert given[given.index("--train_data_dir") + 1] == str(tmp_path.resolve())
    settings.write_text(f"{SETTINGS}dataset_config = '{data}'\n")
    assert run("command", settings, scripts, *words) == 0
    assert "--train_data_dir" not in capsys.readouterr().out
    with pytest.raises(UsageError, match="starts no training"):
        run("command", data, scripts, *words)
    with pytest.raises(UsageError, match="read as it is"):
        run("command", settings, scripts, *words, "--set", "epoch=3")


def test_show_and_diff(capsys: pytest.CaptureFixture[str], settings: Path, data: Path, tmp_path: Path) -> None:
    code, document = as_json(capsys, "show", settings)
    assert (code, document["values"]["max_train_epochs"]) == (0, 3)
    assert run("show", data) == 0
    assert "datasets[0].subsets[0].image_dir" in capsys.readouterr().out
    other = tmp_path / "other.toml"
    other.write_text(SETTINGS.replace("= 3", "= 4"))
    code, document = as_json(capsys, "diff", settings, other)
    assert (code, document["differences"]) == (0, {"max_train_epochs": [3, 4]})
