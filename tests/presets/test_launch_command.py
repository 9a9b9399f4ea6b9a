from __future__ import annotations

import os
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import toml

from kohya_ext.core import shell
from kohya_ext.core.errors import UnsupportedError, UsageError
from kohya_ext.presets.command import as_toml, commands, run, shell_line
from kohya_ext.presets.document import Preset
from kohya_ext.presets.launch_command import LaunchCommands, Surroundings, as_sent, launch_commands
from kohya_ext.presets.project import Project
from kohya_ext.presets.release import read_release
from kohya_ext.presets.schema import Field
from kohya_ext.pysource.sources import TextSources
from tests.presets import guis

WHERE = Surroundings("/kohya", "/env/bin/python", "/env/bin/accelerate", "20260101-000000")
IMAGES = {"/data": ["a.png", "B.JPG", "a.txt"]}

STRING_ERA = """
import gradio as gr
import math
import os
import subprocess
from library.common_gui import helper, check_if_model_exist, log

PYTHON = 'python3' if os.name == 'posix' else 'python.exe'
executor = None

def open_configuration(ask_for_file, apply_preset, file_path, epoch, rate, image_folder, text):
    pass

def train_model(headless, print_only, epoch, rate, image_folder, text):
    parameters = list(locals().items())
    only_shown = print_only.get('label') == 'True'
    if check_if_model_exist('x', 'y', headless):
        return
    run_cmd = f'{PYTHON} prepare.py "{image_folder}"'
    if not only_shown:
        if os.name == 'posix':
            os.system(run_cmd)
        else:
            subprocess.run(run_cmd)
    count = len([name for name in os.listdir(image_folder) if name.lower().endswith(('.jpg', '.png'))])
    steps = int(math.ceil(float(count) / 1 * int(epoch)))
    run_cmd = f'accelerate launch "./train.py" --steps={steps}'
    run_cmd += helper(rate=rate, text=text)
    executor.execute_command(run_cmd=run_cmd)
"""
STRING_COMMON = """
def helper(**kwargs):
    run_cmd = ''
    rate = float(kwargs.get('rate', 0))
    if rate > 0:
        run_cmd += f' --rate={rate}'
    if 'text' in kwargs and kwargs['text'] != '':
        run_cmd += f' --text="{kwargs["text"]}"'
    return run_cmd

def check_if_model_exist(name, folder, headless):
    return input('overwrite?')
"""
LIST_COMMON = """
import os
scriptdir = os.path.abspath(os.path.dirname(__file__))

def get_executable_path(name):
    return which(name)

def validate_folder_path(path):
    return os.path.isdir(path) and probe(path)

def SaveConfigFile(parameters):
    raise RuntimeError
"""
LIST_ERA = """
import gradio as gr
import shlex
import subprocess
import sys
import toml
from datetime import datetime
from .common_gui import scriptdir, get_executable_path, validate_folder_path, SaveConfigFile, log

PYTHON = sys.executable
executor = None

class Launch:
    @staticmethod
    def words(words: list, **kwargs):
        if "precision" in kwargs and kwargs.get("precision"):
            words.append("--mixed_precision")
            words.append(shlex.quote(kwargs["precision"]))
        return words

def open_configuration(ask_for_file, apply_preset, file_path, epoch, create_caption, image_folder, output_dir, text):
    pass

def train_model(headless, print_only, epoch, generate_caption_database, image_folder, output_dir, text):
    parameters = list(locals().items())
    if executor.is_running():
        return
    if text == "refuse":
        log.error("text is refused")
        return
    if not validate_folder_path(output_dir):
        return
    if generate_caption_database:
        run_cmd = [PYTHON, rf"{scriptdir}/merge.py"]
        if not print_only:
            subprocess.run(run_cmd, env={})
    run_cmd = [rf"{get_executable_path('accelerate')}", "launch"]
    run_cmd = Launch.words(run_cmd, precision="fp16")
    data = {"epoch": int(epoch) if int(epoch) != 0 else None, "words": str(text).replace('"', "").split(), "off": False}
    data = {key: value for key, value in data.items() if value not in ["", False, None]}
    data["workers"] = 0
    data = dict(sorted(data.items()))
    stamp = datetime.now().strftime("%Y")
    name = rf"{output_dir}/config-{stamp}.toml"
    with open(name, "w", encoding="utf-8") as file:
        toml.dump(data, file)
    run_cmd.append("--config_file")
    run_cmd.append(name)
    SaveConfigFile(parameters=parameters)
    executor.execute_command(run_cmd=run_cmd)
"""


def launched(tab: str, settings: dict[str, Any], common: str = LIST_COMMON) -> LaunchCommands:
    texts = {"library/finetune_gui.py": tab, "library/common_gui.py": common}
    return launch_commands(TextSources(texts), "finetune", settings, IMAGES, WHERE)


def test_a_command_built_as_a_string() -> None:
    settings = {"epoch": 3, "rate": "0.5", "image_folder": "/data", "text": "a b"}
    result = launched(STRING_ERA, settings, STRING_COMMON)
    assert result.preparation == ['python3 prepare.py "/data"']
    assert result.training == 'accelerate launch "./train.py" --steps=6 --rate=0.5 --text="a b"'
    assert result.toml == {}


def test_preparation_that_takes_the_way_of_training_is_told_apart() -> None:
    text = STRING_ERA.replace("os.system(run_cmd)", "executor.execute_command(run_cmd)")
    result = launched(text, {"epoch": 3, "rate": "0.5", "image_folder": "/data", "text": ""}, STRING_COMMON)
    assert (len(result.preparation), "accelerate launch" in str(result.training)) == (1, True)


def test_a_command_built_as_a_list_with_a_toml_file() -> None:
    settings = {"epoch": 3, "create_caption": True, "image_folder": "/data", "output_dir": "/out", "text": 'x="1" y'}
    result = launched(LIST_ERA, settings)
    name = "/out/config-20260101-000000.toml"
    assert result.preparation == [["/env/bin/python", "/kohya/merge.py"]]
    assert result.training == [
        "/env/bin/accelerate", "launch", "--mixed_precision", "fp16", "--config_file", name
    ]  # fmt: skip
    assert result.toml == {name: {"epoch": 3, "words": ["x=1", "y"], "workers": 0}}
    assert list(result.toml[name]) == ["epoch", "words", "workers"]


def test_settings_decide_as_in_the_gui() -> None:
    settings = {"epoch": 0, "create_caption": False, "image_folder": "/data", "output_dir": "/out", "text": ""}
    result = launched(LIST_ERA, settings)
    assert result.preparation == []
    assert list(result.toml.values()) == [{"words": [], "workers": 0}]


def test_what_the_gui_refuses_is_refused_with_its_reason() -> None:
    settings = {"epoch": 1, "create_caption": False, "image_folder": "/data", "output_dir": "/out", "text": "refuse"}
    with pytest.raises(UnsupportedError, match="text is refused"):
        launched(LIST_ERA, settings)


def test_a_condition_that_cannot_be_known_is_never_guessed() -> None:
    text = LIST_ERA.replace('if text == "refuse":', "if some_device_is_there():")
    with pytest.raises(UnsupportedError, match="only the running GUI knows"):
        launched(text, {"epoch": 1, "text": ""})


def test_a_command_with_an_unknown_word_is_never_given() -> None:
    text = LIST_ERA.replace('run_cmd.append("--config_file")', "run_cmd.append(ask_the_machine())")
    settings = {"epoch": 1, "create_caption": False, "image_folder": "/data", "output_dir": "/out", "text": ""}
    with pytest.raises(UnsupportedError):
        launched(text, settings)


LOOP_ERA = """
import os
from library.common_gui import output_message, verify_image_folder_pattern

executor = None

def open_configuration(ask_for_file, apply_preset, file_path, folder, steps):
    pass

def train_model(headless, print_only, folder, number_of_steps):
    if not verify_image_folder_pattern(folder):
        return
    if number_of_steps > 99:
        output_message(msg='too many steps', headless=headless)
        return
    total = 0
    for name in os.listdir(folder):
        if not os.path.isdir(os.path.join(folder, name)):
            continue
        total += int(name.split('_')[0])
        if total >= number_of_steps:
            break
    words = sorted(set(['a', 'b']) | {'c'})
    executor.execute_command(run_cmd=['x', 'launch', str(total)] + words)
"""


LOOP_COMMON = """
def output_message(msg='', headless=False):
    show(msg)

def verify_image_folder_pattern(folder):
    return ask_the_machine(folder)
"""


def looped(steps: int) -> LaunchCommands:
    folders = {"/data": ["note.txt", "3_cat", "4_dog", "9_x"], "/data/3_cat": [], "/data/4_dog": [], "/data/9_x": []}
    sources = TextSources({"library/finetune_gui.py": LOOP_ERA, "library/common_gui.py": LOOP_COMMON})
    return launch_commands(sources, "finetune", {"folder": "/data", "steps": steps}, folders, WHERE)


def test_loops_end_and_skip_as_they_would_and_parameters_of_another_name_go_by_place() -> None:
    assert looped(5).training == ["x", "launch", "7", "a", "b", "c"]
    assert looped(50).training == ["x", "launch", "16", "a", "b", "c"]
    with pytest.raises(UnsupportedError, match="too many steps"):
        looped(100)


def test_the_other_tabs_want_folders_called_repeats_and_name(tmp_path: Path) -> None:
    project = Project(tmp_path / "data", "m", tmp_path, "x")
    project.data.mkdir()
    with pytest.raises(UsageError, match="REPEATS_NAME"):
        project.images("lora")
    (project.data / "10_cat").mkdir()
    with pytest.raises(UsageError, match="no image"):
        project.images("lora")
    (project.data / "10_cat" / "a.PNG").touch()
    below = Project(project.data / "10_cat", "m", tmp_path, "x")
    with pytest.raises(UsageError, match=r"no folder called REPEATS_NAME.*did you mean the folder above, .*data"):
        below.images("lora")
    assert project.images("lora")[str(project.data / "10_cat")] == ["a.PNG"]
    (project.data / "cats").mkdir()
    with pytest.raises(UsageError, match="cats is not called"):
        project.images("dreambooth")


def test_other_fields_are_given_as_text_and_take_their_type(tmp_path: Path) -> None:
    texts = {**guis.REGISTRY}
    texts["kohya_gui/finetune_gui.py"] = texts["kohya_gui/finetune_gui.py"] + TRAIN_FOR_REGISTRY
    checkout = guis.write(texts, tmp_path / "kohya_ss")
    release = read_release(checkout, "finetune", patched=True)
    (tmp_path / "a.png").touch()
    preset = Preset("p", "finetune", {"optimizer": "AdaCoor", "create_caption": False})
    for fields, word in (({"epoch": "9"}, "9"), ({"optimizer": "Lion"}, "Lion")):
        project = Project(tmp_path, "m", tmp_path, "x", fields)
        assert word in (commands(preset, release, checkout, project, WHERE).training or [])
    for fields, problem in (
        ({"nonsense": "1"}, "no such field"),
        ({"epoch": "many"}, "epoch"),
        ({"optimizer": "x"}, "optimizer"),
    ):
        with pytest.raises(UsageError, match=problem):
            commands(preset, release, checkout, Project(tmp_path, "m", tmp_path, "x", fields), WHERE)


def test_a_length_that_the_number_of_epochs_overrules_is_said(tmp_path: Path) -> None:
    texts = {**guis.REGISTRY}
    tab = texts["kohya_gui/finetune_gui.py"] + TRAIN_FOR_REGISTRY
    tab = tab.replace("pad_1 = gr.Checkbox(value=False)", "pad_1 = gr.Number(value=0)")
    texts["kohya_gui/finetune_gui.py"] = re.sub(r"\bpad_1\b", "max_train_epochs", tab)
    checkout = guis.write(texts, tmp_path / "kohya_ss")
    release = read_release(checkout, "finetune", patched=True)
    (tmp_path / "a.png").touch()
    preset = Preset("p", "finetune", {"max_train_epochs": 7, "create_caption": False})
    said = {}
    for number, fields in enumerate(({"epoch": "9"}, {"epoch": "9", "max_train_epochs": "9"}, {})):
        project = Project(tmp_path, "m", tmp_path, "x", fields)
        complaints = commands(preset, release, checkout, project, WHERE).complaints
        said[number] = [one for one in complaints if "epoch" in one]
    assert said == {0: ["epoch has no effect while max_train_epochs is 7: give --set max_train_epochs=N"], 1: [], 2: []}


def test_a_gui_without_the_function() -> None:
    with pytest.raises(UnsupportedError, match="train_model"):
        launched("def open_configuration(a):\n    pass\n", {})


def test_toml_is_what_toml_readers_read() -> None:
    settings = {"a": 'q"\\\n é', "b": True, "c": 1e-06, "d": 0, "e": ["x=1", "y"], "f": 1.0}
    assert toml.loads(as_toml(settings)) == settings


def test_shell_lines_survive_spaces() -> None:
    assert shell_line(["a b", "c"]) == shell.line("a b", "c")
    assert shell_line('as "it" is') == 'as "it" is'


def test_commands_of_a_preset_for_a_project(tmp_path: Path) -> None:
    texts = {**guis.REGISTRY}
    texts["kohya_gui/finetune_gui.py"] = texts["kohya_gui/finetune_gui.py"] + TRAIN_FOR_REGISTRY
    checkout = guis.write(texts, tmp_path / "kohya_ss")
    release = read_release(checkout, "finetune", patched=True)
    data = tmp_path / "images"
    data.mkdir()
    project = Project(data, "some/model", tmp_path / "out", "mine")
    preset = Preset("p", "finetune", {"optimizer": "AdaCoor", "learning_rate": 1, "epoch": 7})
    with pytest.raises(UsageError, match="no image"):
        commands(preset, release, checkout, project, WHERE)
    (data / "a.png").touch()
    result = commands(preset, release, checkout, project, WHERE)
    assert result.training == [
        "train",
        "launch",
        "7",
        "AdaCoor",
        "some/model",
        str(data),
        "mine",
        str(tmp_path / "out"),
    ]
    assert "merge_captions_to_metadata.py" in result.complaints[0]
    silent = Preset("p", "finetune", {"optimizer": "AdaCoor", "learning_rate": 1, "create_caption": False})
    assert commands(silent, release, checkout, project, WHERE).complaints == []
    with pytest.raises(UsageError, match="cannot be listed"):
        commands(preset, release, checkout, Project(tmp_path / "no", "m", tmp_path, "x"), WHERE)


def test_numbers_are_as_the_browser_sends_them() -> None:
    number, slider = Field("a", "Number"), Field("a", "Slider")
    for value, one, gradio, sent in (
        (1.0, slider, 3, "1"),
        (1, number, 3, "1.0"),
        (1.0, number, 4, "1"),
        (0.5, number, 6, "0.5"),
        (1, Field("a", "Number", precision=0), 3, "1"),
        (True, Field("a", "Checkbox"), 3, "True"),
        (1.0, Field("a", "Dropdown"), 5, "1.0"),
    ):
        assert str(as_sent(value, one, gradio)) == sent


def test_settings_that_a_shell_would_read_are_refused_too(tmp_path: Path) -> None:
    gui = f"{guis.REGISTRY_TAB}\nexecutor = None\n\ndef train_model(headless, print_only, additional_parameters):\n"
    text = f"{gui}    executor.execute_command('train launch ' + additional_parameters.strip('x'))\n"
    checkout = guis.write({**guis.REGISTRY, "kohya_gui/finetune_gui.py": text}, tmp_path / "kohya_ss")
    (tmp_path / "a.png").touch()
    release = read_release(checkout, "finetune", patched=True)
    project = Project(tmp_path, "m", tmp_path / "out", "mine")
    for words, problem in (("--a=1", None), ("--a=1; rm here", "additional_parameters"), ("xx", None)):
        preset = Preset("p", "finetune", {"optimizer": "Lion", "additional_parameters": words})
        with pytest.raises(UsageError, match=problem) if problem else nullcontext():
            commands(preset, release, checkout, project, WHERE)


def test_what_belongs_to_the_machine_is_used_and_secrets_are_not(tmp_path: Path) -> None:
    gui = f"{guis.REGISTRY_TAB}\nexecutor = None\n\ndef train_model(headless, print_only, additional_parameters):\n"
    text = f"{gui}    executor.execute_command(['train', 'launch', additional_parameters])\n"
    checkout = guis.write({**guis.REGISTRY, "kohya_gui/finetune_gui.py": text}, tmp_path / "kohya_ss")
    (tmp_path / "a.png").touch()
    release = read_release(checkout, "finetune", patched=True)
    words = "--cache_dir=/my/folder --wandb_api_key=hidden --no"
    preset = Preset("p", "finetune", {"optimizer": "Lion", "additional_parameters": words, "wandb_api_key": "hidden"})
    result = commands(preset, release, checkout, Project(tmp_path, "m", tmp_path / "out", "mine"), WHERE)
    assert result.training == ["train", "launch", "--cache_dir=/my/folder --no"]
    assert "wandb_api_key skipped" in result.complaints[0]


def test_what_will_stop_the_training_is_said_before_it_is_run(tmp_path: Path) -> None:
    gui = f"{guis.REGISTRY_TAB}\nexecutor = None\n\ndef train_model(headless, print_only, optimizer):\n"
    text = f"{gui}    executor.execute_command(['train', 'launch', optimizer])\n"
    checkout = guis.write({**guis.REGISTRY, "kohya_gui/finetune_gui.py": text}, tmp_path / "kohya_ss")
    (tmp_path / "a.png").touch()
    project = Project(tmp_path, "m", tmp_path / "out", "mine")
    complaints = []
    for optimizer, rate in (("AdaCoor", 1), ("Lion", 1e-7)):
        preset = Preset("p", "finetune", {"optimizer": optimizer, "learning_rate": rate, "create_caption": False})
        release = read_release(checkout, "finetune", patched=False)
        complaints.append(commands(preset, release, checkout, project, WHERE).complaints)
    assert [len(one) for one in complaints] == [1, 0]
    assert "kohya-ext install" in complaints[0][0]


def test_names_that_a_shell_would_read_are_refused_where_the_gui_builds_a_shell_line(tmp_path: Path) -> None:
    for command, refused in (('f"train launch {output_name}"', True), ('["train", "launch", output_name]', False)):
        gui = f"{guis.REGISTRY_TAB}\nexecutor = None\n\ndef train_model(headless, print_only, output_name):\n"
        texts = {**guis.REGISTRY, "kohya_gui/finetune_gui.py": f"{gui}    executor.execute_command({command})\n"}
        checkout = guis.write(texts, tmp_path / str(refused))
        (tmp_path / "a.png").touch()
        project = Project(tmp_path, "m", tmp_path / "out", "$(touch here)")
        release = read_release(checkout, "finetune", patched=True)
        with pytest.raises(UsageError, match="shell line") if refused else nullcontext():
            commands(Preset("p", "finetune", {}), release, checkout, project, WHERE)


TRAIN_FOR_REGISTRY = """
executor = None

def train_model(
    headless, print_only, epoch, optimizer, pretrained_model_name_or_path, image_folder, output_name, output_dir
):
    words = ["train", "launch", str(epoch), optimizer, pretrained_model_name_or_path]
    executor.execute_command(run_cmd=words + [image_folder, output_name, output_dir])
"""


def test_running_passes_the_first_failure_on_and_writes_the_toml(tmp_path: Path) -> None:
    checkout = guis.write(guis.REGISTRY, tmp_path / "kohya_ss")
    python = tmp_path / "env" / "bin" / "python"
    file = tmp_path / "out" / "c.toml"
    log = tmp_path / "log"
    program = tmp_path / "note.py"  # a line for a shell has to fit that of each system
    program.write_text(
        f"import os, sys\nwith open({str(log)!r}, 'a') as log:\n"
        f"    print(os.environ['PYTHONPATH'], os.getcwd(), open({str(file)!r}).read(), sep='\\n', file=log)\n"
        "sys.exit(int(sys.argv[1]))\n"
    )
    steps = LaunchCommands(
        preparation=[f'"{sys.executable}" "{program}" 0'],
        training=[sys.executable, str(program), "7"],
        toml={str(file): {"epoch": 1}},
    )
    prompts = tmp_path / "out" / "sample" / "prompt.txt"
    steps.prompts = {str(prompts): "a cat --w 64\n"}
    assert run(steps, checkout, python, tmp_path / "out") == 7
    assert prompts.read_text() == "a cat --w 64\n"
    first, folder, content, _, *second = log.read_text().splitlines()
    assert second == [first, folder, content, ""]
    assert first.split(os.pathsep)[:2] == [str(checkout.root), str(checkout.training_root)]
    assert (folder, content) == (str(checkout.root), "epoch = 1")
    steps.preparation = ["exit 3"]
    assert run(steps, checkout, python, tmp_path / "out") == 3
