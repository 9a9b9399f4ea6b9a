from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_ext.core.errors import CONFLICT, DONE, WRONG_USAGE
from tests.card.test_page import LORA_KEYS, METADATA
from tests.cli.conftest import Ran
from tests.tensors.files import write

Run = Callable[..., Ran]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write(tmp_path / "femme.safetensors", LORA_KEYS, METADATA)
    return tmp_path / "femme.safetensors"


def test_printed(model: Path, run: Run) -> None:
    done = run("card", model)
    assert done.code == DONE and done.text.startswith("# femme\n")


def test_written_and_made_anew(model: Path, run: Run, tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    done = run("card", model, "--output", page, "--for", "huggingface")
    assert done.code == DONE and "to fill in   description, triggers, notes, permissions" in done.text
    page.write_text(page.read_text().replace("(Say what works well,", "(I say what works well,"))
    refused = run("card", model, "--output", page)
    assert refused.code == CONFLICT and "--overwrite" in refused.errors and "I say" in page.read_text()
    done = run("card", model, "--output", page, "--overwrite", "--description", "New.")
    assert done.code == DONE and "kept         your text: notes" in done.text
    assert "I say" in page.read_text() and "\nNew.\n" in page.read_text()
    done = run("card", model, "--output", page, "--overwrite", "--trigger", "ewpp")
    assert "kept         your text: description, notes" in done.text and "to fill in   permissions" in done.text
    assert "\nNew.\n" in page.read_text()


def test_json(model: Path, run: Run) -> None:
    document = run("card", model, "--json", "--hash", "--trigger", "ewpp").document
    assert document["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert document["kind"] == "LoRA" and document["training"]["Epochs"] == "100" and document["output"] is None
    assert document["missing"] == ["description", "notes", "permissions"] and document["page"].startswith("# femme")


BAD = {
    "empty": b"",
    "garbage": bytes(range(256)),
    "pickle": b"PK\3\4" + bytes(50),
    "page": b"<html>login</html>",
    "pointer": b"version https://git-lfs.github.com/spec/v1\n",
}


@pytest.mark.parametrize("name", [*BAD, "truncated", "absent", "folder"])
def test_files_that_are_no_models(name: str, model: Path, run: Run, tmp_path: Path) -> None:
    bad = tmp_path / ("bad.ckpt" if name == "pickle" else "bad.safetensors")
    if name == "truncated":
        bad.write_bytes(model.read_bytes()[:-1])
    elif name == "folder":
        bad.mkdir()
    elif name != "absent":
        bad.write_bytes(BAD[name])
    done = run("card", bad, "--output", tmp_path / "page.md")
    assert done.code == WRONG_USAGE and str(bad) in done.errors
    assert not [path for path in tmp_path.iterdir() if "page" in path.name]


@pytest.mark.parametrize(
    "words", [("--allow", "everything"), ("--allow", "services", "--deny", "services"), ("--changelog", "nowhere.md")]
)
def test_wrong_options(words: tuple[str, ...], model: Path, run: Run) -> None:
    assert run("card", model, *words).code == WRONG_USAGE


def test_a_change_log_without_versions(model: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "log.md").write_text("# Changes\n- none\n")
    assert run("card", model, "--changelog", tmp_path / "log.md").code == WRONG_USAGE


def test_the_model_itself_is_never_the_page(model: Path, run: Run) -> None:
    before = model.read_bytes()
    assert run("card", model, "--output", model, "--overwrite").code == WRONG_USAGE and model.read_bytes() == before


def test_the_preset_of_the_training_by_name_or_by_file(run: Run, tmp_path: Path) -> None:
    """As the `presets` verbs take it; it says what a full fine-tune does not record."""
    write(tmp_path / "tuned.safetensors", {"model.diffusion_model.input_blocks.0.0.weight": (4, 4)}, {})
    (tmp_path / "mine.json").write_text('{"optimizer": "Lion", "_about": {"title": "not a setting"}}')
    for given, optimizer in (("AdaCoor-48GB", "AdaCoor"), ("lion-48gb", "Lion"), (tmp_path / "mine.json", "Lion")):
        document = run("card", tmp_path / "tuned.safetensors", "--preset", given, "--json").document
        assert optimizer in document["training"]["Optimizer"]
    refused = run("card", tmp_path / "tuned.safetensors", "--preset", "nothing")
    assert refused.code == WRONG_USAGE and "AdaCoor-48GB" in refused.errors
