"""`presets show` says what runs with the settings have measured in the checkout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kohya_ext.checkout.checkout import Checkout
from kohya_ext.core.about import MANIFEST
from kohya_ext.preflight.arguments import ScriptCommand
from kohya_ext.preflight.commands import digest_of
from kohya_ext.presets.collection import collect_all
from kohya_ext.presets.release import read_training
from kohya_ext.spec.measurements import FILE_NAME
from kohya_ext.spec.preset_files import ABOUT, MEASURED_AS
from tests.cli.test_presets import as_json, run
from tests.presets import second_guis

PRESET = "AdaCoor-48GB"


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return second_guis.write(tmp_path / "kohya_ss", second_guis.FIRST, second_guis.TRAINING)


def measured(checkout: Checkout, settings: str) -> None:
    """A run with these settings has been measured."""
    file = (checkout.root / MANIFEST).with_name(FILE_NAME)
    file.parent.mkdir(exist_ok=True)
    line = {"settings": settings, "device": "NVIDIA A100", "peak_reserved_bytes": 17 << 30, "seconds_per_step": 1.9,
            "out_of_memory": False, "date": "2026-11-27"}  # fmt: skip
    file.write_text(json.dumps(line) + "\n")


def installed(checkout: Checkout) -> str:
    """The digest that the installed file of the preset holds."""
    files = collect_all(checkout).files
    (file,) = (data for path, data in files.items() if path.endswith(f"/{PRESET}.json"))
    digest: str = json.loads(file)[ABOUT][MEASURED_AS]
    return digest


def test_a_preset(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = as_json(capsys, "show", PRESET, checkout.root)
    assert (code, document["measured"]) == (0, None)
    measured(checkout, installed(checkout))
    assert run("show", PRESET, checkout.root) == 0
    assert "17.0 GiB reserved, 1.9 s a step on NVIDIA A100, 2026-11-27" in " ".join(capsys.readouterr().out.split())
    _, document = as_json(capsys, "show", PRESET, checkout.root)
    assert document["measured"]["peak_reserved_bytes"] == 17 << 30
    _, document = as_json(capsys, "show", "AdaCoor-24GB", checkout.root)
    assert document["measured"] is None


def test_where_no_checkout_is_named(
    checkout: Checkout, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the current folder, and no other is searched for."""
    measured(checkout, installed(checkout))
    monkeypatch.chdir(checkout.root.parent)
    _, document = as_json(capsys, "show", PRESET)
    assert document["measured"] is None
    monkeypatch.chdir(checkout.training_root)
    _, document = as_json(capsys, "show", PRESET)
    assert document["measured"]["device"] == "NVIDIA A100"


def test_a_file_of_settings(checkout: Checkout, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same settings on a command line have left a measurement; rates do not count, batches do."""
    words = ["--network_module=networks.lora", "--train_batch_size", "3", "--learning_rate=2e-5"]
    measured(checkout, digest_of(ScriptCommand("train_network.py", words), read_training(checkout)))
    file = tmp_path / "mine.toml"
    for batch, device in ((3, "NVIDIA A100"), (2, None)):
        file.write_text(f'network_module = "networks.lora"\ntrain_batch_size = {batch}\nlearning_rate = 1e-5\n')
        code, document = as_json(capsys, "show", file, checkout.root)
        assert code == 0
        assert (document["measured"] or {}).get("device") == device
