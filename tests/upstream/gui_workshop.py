"""A real GUI with our bundle and a project to train: started, filled in, and asked for its command."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kohya_ext.presets.project import Project
from kohya_ext.presets.schema import Tab
from tests.upstream import real_gui
from tests.upstream.gui_page import TabPage
from tests.upstream.real_gui import BUNDLE, Era

PRINT = "Print training command"
UPSTREAMS_OWN = {"finetune": "adafactor", "lora": "SDXL - LoRA aitrepreneur clothing v1.0"}

# What a run on a CPU with a tiny model and images of 256 pixels cannot take from a preset for a 48 GB card.
SMALL = {
    "max_resolution": "256,256",
    "min_bucket_reso": "128",
    "max_bucket_reso": "512",
    "max_train_epochs": 1,
    "save_every_n_epochs": 1,
    "mixed_precision": "no",
    "save_precision": "float",
    "xformers": "sdpa",
}


class Workshop:
    """A checkout with our bundle, a project, and the fields of the GUI that name it."""

    def __init__(self, era: Era, folder: Path, tab: Tab = "finetune", *, plain: bool = False) -> None:
        self.era = era
        self.tab = tab
        self.tree = (real_gui.plain_copy if plain else real_gui.installed_copy)(era, folder / "kohya_ss")
        assets = real_gui.rig_folder() / "assets"
        self.model = (assets / "tiny_sdxl.safetensors").resolve()
        self.data, self.output = folder / "images", folder / "out"
        images = self.data if tab == "finetune" else self.data / "1_cat"
        shutil.copytree(next(assets.glob("data/*")), images, ignore=shutil.ignore_patterns("*.npz"))
        self.output.mkdir()
        self.programs = folder / "programs"
        self.programs.mkdir()

    def fields(self) -> dict[str, str]:
        return Project(self.data, str(self.model), self.output, "mine").settings(self.tab)

    def small(self, additional: str) -> dict[str, Any]:
        """SMALL, and where the tokenizers lie: there is no network."""
        tokenizers = real_gui.rig_folder().resolve() / "assets" / "tokenizers"
        return {**SMALL, "additional_parameters": f"{additional} --tokenizer_cache_dir={tokenizers}".strip()}

    def command(self, preset: str, *more: str) -> subprocess.CompletedProcess[str]:
        """`kohya-ext presets command` for the same project."""
        words = ["--data", str(self.data), "--model", str(self.model), "--output", str(self.output), "--name", "mine"]
        return subprocess.run(
            [sys.executable, "-m", "kohya_ext", "presets", "command", preset, *words, "--python",
             str(real_gui.python_of(self.era)), *more, str(self.tree)],
            capture_output=True, text=True, timeout=600,
            env={**real_gui.environ_of(self.era, self.tree), "RIG_TINY": "1"}, cwd=BUNDLE,
        )  # fmt: skip

    def witness(self) -> Path:
        """Puts a program before `accelerate` that runs it and notes its exit code; gives the file of the note."""
        note = self.programs / "exit-code"
        program = self.programs / "accelerate"
        real = real_gui.python_of(self.era).parent / "accelerate"
        program.write_text(f'#!/bin/sh\n"{real}" "$@"\ncode=$?\necho $code >"{note}"\nexit $code\n')
        program.chmod(0o755)
        return note


@contextmanager
def opened(workshop: Workshop, folder: Path) -> Iterator[TabPage]:
    """The Finetune tab of the running GUI, the project's folders filled in."""
    from playwright.sync_api import sync_playwright

    server = real_gui.start(workshop.era, workshop.tree, folder / "gui.log", programs=workshop.programs)
    flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=real_gui.browser_program(), args=flags)
            page = browser.new_page(viewport={"width": 1500, "height": 1800})
            page.set_default_timeout(120_000)
            tab = TabPage(page, server, workshop.tab)
            fill_in(tab, workshop)
            yield tab
            browser.close()
    finally:
        server.stop()


def fill_in(tab: TabPage, workshop: Workshop) -> None:
    """The project's fields; a preset of ours that is chosen names a base model of its own."""
    if workshop.era.gradio == 3:  # the field of the base model's path is hidden until then
        tab.pick("model_list", "custom")
    for key, value in workshop.fields().items():
        tab.fill(key, value)


def print_command(tab: TabPage, workshop: Workshop) -> str:
    """What clicking "Print training command" prints as the training command."""
    record = workshop.tree / "logs" / "print_command.txt"
    before = record.read_text().count("\n") if record.exists() else 0
    tab.press(PRINT)
    tab.until(lambda: record.exists() and record.read_text().count("\n") > before, "no command was printed")
    tab.settle()
    return record.read_text().splitlines()[-1]
