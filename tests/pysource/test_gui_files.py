"""Lists that a GUI fills from the folders of its checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

from kohya_ext.presets.schema import read_schema
from kohya_ext.pysource import gui_files
from kohya_ext.pysource.gui_files import listings
from kohya_ext.pysource.sources import FolderSources
from kohya_ext.pysource.values import Unknown

TAB = """
import os, gradio as gr
from .common_gui import list_files, scriptdir

def open_configuration(ask_for_file, file_path, training_preset, vae{more}):
    pass

def finetune_tab(headless=False, config={{}}):
    folder = config.get("vae_dir", os.path.join(scriptdir, "models"))
    vae = gr.Dropdown(choices=[""] + list(list_files(folder, exts=[".ckpt"], all=True)), allow_custom_value=True)

    def list_presets(path):
        names = []
        names.insert(0, "none")
        for file in os.listdir(path):
            if file.endswith(".json"):
                names.append(os.path.splitext(file)[0])
        own = os.path.join(path, "user_presets")
        if os.path.isdir(own):
            for file in os.listdir(own):
                names.append(os.path.join("user_presets", os.path.splitext(file)[0]))
        return names

    training_preset = gr.Dropdown(choices=list_presets(f"{{scriptdir}}/presets/finetune"))
    rest = [{boxes}]
    training_preset.input(open_configuration, outputs=[gr.Textbox(), training_preset, vae] + rest)
"""


@pytest.fixture
def gui(tmp_path: Path) -> Path:
    """A GUI with two lists from folders and twenty boxes, without the folders."""
    root = tmp_path / "kohya"
    package = root / "kohya_gui"
    package.mkdir(parents=True)
    more = "".join(f", key{n}" for n in range(20))
    boxes = ", ".join(f"gr.Textbox(label='{n}')" for n in range(20))
    (package / "finetune_gui.py").write_text(TAB.format(more=more, boxes=boxes))
    common = "import os\nscriptdir = os.getcwd()\ndef list_files(path, exts=None, all=False):\n    yield path\n"
    (package / "common_gui.py").write_text(common)
    return root


def test_what_is_in_the_folders_is_offered(gui: Path) -> None:
    (gui / "presets/finetune/user_presets").mkdir(parents=True)
    for name in ("finetune/a.json", "finetune/a.txt", "finetune/user_presets/mine.json"):
        (gui / "presets" / name).touch()
    (gui / "models" / "sub").mkdir(parents=True)
    for name in ("x10.ckpt", "x9.ckpt", ".hidden.ckpt", "y.txt"):
        (gui / "models" / name).touch()
    schema = read_schema(FolderSources(gui), "finetune")
    assert schema is not None
    assert schema.fields["training_preset"].choices == ("none", "a", str(Path("user_presets/mine")))
    models = gui / "models"
    expected = (gui, models, models / "sub", models / "x9.ckpt", models / "x10.ckpt")  # with slashes everywhere
    assert schema.fields["vae"].choices == ("", *(path.as_posix() for path in expected))
    assert schema.fields["vae"].exact
    assert schema.fields["vae"].custom


def test_a_folder_that_is_missing_or_huge_is_not_claimed(gui: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = read_schema(FolderSources(gui), "finetune")
    assert schema is not None
    assert schema.fields["training_preset"].inexact == ("choices",)
    assert schema.fields["vae"].inexact == ("choices",)
    (gui / "models").mkdir()
    for number in range(4):
        (gui / "models" / f"{number}.ckpt").touch()
    monkeypatch.setattr(gui_files, "MAX_ENTRIES", 3)
    schema = read_schema(FolderSources(gui), "finetune")
    assert schema is not None
    assert not schema.fields["vae"].exact


def test_the_users_config_toml_decides_where_to_look(gui: Path) -> None:
    (gui / "elsewhere").mkdir()
    (gui / "elsewhere" / "z.ckpt").touch()
    (gui / "config.toml").write_text(f"vae_dir = '{gui / 'elsewhere'}'\n")
    schema = read_schema(FolderSources(gui), "finetune")
    assert schema is not None
    assert (gui / "elsewhere" / "z.ckpt").as_posix() in (schema.fields["vae"].choices or ())


def test_a_config_toml_that_is_none_is_named(gui: Path) -> None:
    (gui / "config.toml").write_text("[basic\n")
    schema = read_schema(FolderSources(gui), "finetune")
    assert schema is not None
    assert len(schema.notes) == 1
    assert "config.toml" in schema.notes[0]


def test_relative_folders_are_those_of_the_checkout(tmp_path: Path) -> None:
    (tmp_path / "logs" / "run").mkdir(parents=True)
    calls = listings(tmp_path)
    assert calls["list_dirs"](["./logs"], {}) == [".", "./logs", "./logs/run"]
    assert calls["list_dirs"]([""], {}) == []
    assert isinstance(calls["list_dirs"](["./none"], {}), Unknown)
    assert calls["list_files"](["./logs"], {"all": True}) == [".", "./logs", "./logs/run"]
