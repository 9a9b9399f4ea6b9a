"""Every bundled preset in an environment that lacks xformers: chosen as it is installed, it trains on the real scripts.

What a CPU with tiny models and images cannot take from a preset for a large card is made smaller; the attention stays
as it was fitted.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kohya_ext.checkout.checkout import describe
from kohya_ext.presets.collection import collect_all
from kohya_ext.presets.command import as_toml
from kohya_ext.presets.document import Preset, bundled, dump_values
from kohya_ext.presets.machine import SDPA, XFORMERS
from kohya_ext.presets.schema import Tab
from kohya_ext.spec.preset_files import USER_PRESETS
from tests.upstream import real_gui
from tests.upstream.gui_workshop import Workshop
from tests.upstream.real_gui import ERAS, Era
from tests.upstream.test_every_release import kohya_ext

pytestmark = pytest.mark.upstream

# the GUI, and the training code in the place of its own
LAUNCHER = Path(__file__).with_name("rig_launch.py")
GUIS = {"v22.3.1": "", "v26.0.0": "", "v26.0.0-main": "sd-scripts-main"}
TABS = Counter(preset.tab for preset in bundled())
PRESETS = {preset.name: preset for preset in bundled()}
# a CPU has no fp16, and no 8-bit optimizer without a GPU
ON_A_CPU = {"mixed_precision": {"fp16": "no"}, "optimizer": {"AdamW8bit": "AdamW"}}


def era_of(gui: str) -> Era:
    return ERAS[gui.removesuffix("-main")]


def refitted(workshop: Workshop, python: Path) -> None:
    """The installed presets, fitted to an environment as the GUI's start does it."""
    done = kohya_ext("presets", "refit", str(workshop.tree), "--python", str(python))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("tab", ["finetune", "lora"])
@pytest.mark.parametrize("gui", GUIS)
def test_every_preset_trains_without_xformers(gui: str, tab: Tab, tmp_path: Path) -> None:
    """Those of a tab that compute alike in one process, which saves most of the time."""
    era = era_of(gui)
    real_gui.require(era, browser=False)
    if GUIS[gui] and tab == "finetune":
        pytest.skip("sd-scripts 0.10 itself fails on the metadata of this GUI where latents are not cached")
    workshop = Workshop(era, tmp_path, tab)
    training_root = describe(workshop.tree).training_root
    if GUIS[gui]:
        shutil.rmtree(training_root)
        shutil.copytree(real_gui.rig_folder() / "trees" / GUIS[gui], training_root, symlinks=True)
        real_gui.install_into(workshop.tree, real_gui.python_of(era))
    refitted(workshop, real_gui.python_of(era))
    refused = collect_all(describe(workshop.tree)).refused
    runs: dict[str, list[str]] = {}
    kinds: dict[str, tuple[str, bool]] = {}
    for preset in bundled():
        if preset.tab != tab or preset.name in refused:
            assert preset.tab != tab or preset.requires, refused[preset.name]
            continue
        file = tmp_path / tab / f"{preset.name}.json"
        command = commands(workshop, preset, file)
        kinds[preset.name] = json.loads(file.read_text("ascii"))["mixed_precision"], "EMA" in preset.requires
        for words in command["preparation"] if not runs else ():  # the images and their sizes are the same for all
            prepared = subprocess.run(
                words, cwd=workshop.tree, env=environ(workshop, training_root), capture_output=True, text=True
            )
            assert prepared.returncode == 0, prepared.stderr[-3000:]
        for path, settings in command["toml"].items():
            Path(path).write_text(as_toml(settings), "utf-8")
        words = command["training"]
        at = next(number for number, word in enumerate(words) if word.endswith(".py"))
        script, runs[preset.name] = Path(words[at]).name, words[at + 1 :]
    assert len(runs) + sum(preset.name in refused for preset in bundled() if preset.tab == tab) == TABS[tab]
    log = ""
    for kind in sorted(set(kinds.values())):  # one process cannot change its precision, nor does a user's have two runs
        alike = {name: words for name, words in runs.items() if kinds[name] == kind}
        log += trained(workshop, training_root, script, alike)
    for name in runs:
        assert (workshop.output / f"{name}.safetensors").stat().st_size > 10_000, log[-3000:]
        assert (workshop.output / f"{name}-ema.safetensors").exists() == ("EMA" in PRESETS[name].requires)


def commands(workshop: Workshop, preset: Preset, file: Path) -> dict[str, Any]:
    """What `presets command` prints for the installed file of a preset, made small."""
    values = json.loads(installed(workshop, preset).read_text("ascii"))
    wanted = preset.values[XFORMERS]
    assert values[XFORMERS] == (SDPA if wanted == XFORMERS else wanted)
    small = workshop.small(str(values["additional_parameters"]))
    del small[XFORMERS]
    small |= {key: instead.get(values[key], values[key]) for key, instead in ON_A_CPU.items()}
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(dump_values(values | small))
    done = workshop.command(str(file), "--name", preset.name, "--json")
    assert done.returncode == 0, done.stderr
    command: dict[str, Any] = json.loads(done.stdout)
    command["preparation"] = [words_of(one) for one in command["preparation"]]
    command["training"] = words_of(command["training"])
    settings = [*command["training"], *next(iter(command["toml"].values()), {})]
    assert not any(XFORMERS in word for word in settings)
    assert any(SDPA in word for word in settings) == (wanted == XFORMERS)
    return command


def words_of(command: str | list[str]) -> list[str]:
    """A command's words; up to v22 the GUI gives a text to the shell."""
    return shlex.split(command) if isinstance(command, str) else command


def environ(workshop: Workshop, training_root: Path) -> dict[str, str]:
    """As the GUI starts its commands: with the training code importable."""
    found = real_gui.environ_of(workshop.era, workshop.tree)
    return {**found, "PYTHONPATH": f"{training_root}{os.pathsep}{found['PYTHONPATH']}"}


def trained(workshop: Workshop, training_root: Path, script: str, runs: dict[str, list[str]]) -> str:
    """Runs a script once for each of `runs` and gives what it printed."""
    done = subprocess.run(
        [str(real_gui.python_of(workshop.era)), str(LAUNCHER), "nothing", script],
        cwd=training_root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=3000,
        env={**environ(workshop, training_root), "RIG_VARIANTS": json.dumps(runs), "ACCELERATE_USE_CPU": "true"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


def installed(workshop: Workshop, preset: Preset) -> Path:
    return workshop.tree / "presets" / preset.tab / USER_PRESETS / f"{preset.name}.json"


@pytest.mark.parametrize("gui", ["v22.3.1", "v26.0.0"])
def test_where_the_environment_has_it_xformers_stays(gui: str, tmp_path: Path) -> None:
    """The environment is the GUI's own with a module of that name in it."""
    era = era_of(gui)
    real_gui.require(era, browser=False)
    workshop = Workshop(era, tmp_path)
    site = subprocess.run(
        [str(real_gui.python_of(era)), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "with")], check=True)
    packages = next((tmp_path / "with").glob("lib/python*/site-packages"))
    (packages / "gui.pth").write_text(site)
    python = tmp_path / "with" / "bin" / "python"
    refitted(workshop, python)
    assert attentions(workshop) == {XFORMERS: SDPA, "none": "none"}
    (packages / "xformers.py").touch()
    refitted(workshop, python)
    assert attentions(workshop) == {XFORMERS: XFORMERS, "none": "none"}


def attentions(workshop: Workshop) -> dict[str, str]:
    """What the presets ask for -> what the installed files have."""
    found: dict[str, str] = {}
    for preset in PRESETS.values():
        if installed(workshop, preset).exists():
            value = json.loads(installed(workshop, preset).read_text("ascii"))[XFORMERS]
            assert found.setdefault(preset.values[XFORMERS], value) == value, preset.name
    return found
