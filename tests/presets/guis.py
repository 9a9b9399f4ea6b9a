"""Small GUIs in the style of three eras of Kohya's, written for the tests: they are read as text and never run."""

from __future__ import annotations

from pathlib import Path

from kohya_ext.checkout.checkout import Checkout

PADDING = 20  # a wiring counts from this many outputs on, as every real tab has

_PADDING_KEYS = [f"pad_{index}" for index in range(PADDING)]
PADDING_PARAMETERS = "".join(f"    {key},\n" for key in _PADDING_KEYS)
PADDING_COMPONENTS = "".join(f"    {key} = gr.Checkbox(value=False)\n" for key in _PADDING_KEYS)
PADDING_LIST = ", ".join(_PADDING_KEYS)

BASIC_CLASS = """
import gradio as gr
import os

class BasicTraining:
    def __init__(self, learning_rate_value='1e-6', finetuning: bool = False, config: dict = {}):
        self.config = config
        self.finetuning = finetuning
        with gr.Row():
            self.learning_rate = gr.Number(label='Learning rate', value=learning_rate_value, minimum=0, maximum=1)
            self.epoch = gr.Number(label='Epoch', value=self.config.get('basic.epoch', 1), precision=0)
            self.threads = gr.Slider(1, os.cpu_count(), value=2, step=1)
        self.more()

    def more(self):
        if self.finetuning:
            self.seed = gr.Textbox(label='Seed', value='')
        else:
            self.seed = gr.Number(label='Seed', value=0)
        self.optimizer = gr.Dropdown(label='Optimizer', choices=['AdamW', 'AdamW8bit', 'Lion'], value='AdamW8bit')
        self.max_token_length = gr.Dropdown(choices=['75', '150', '225'], value='75')
"""

EMBEDDED_TAB = f"""
import gradio as gr
from library.class_basic_training import BasicTraining

def open_configuration(
    ask_for_file,
    apply_preset,
    file_path,
    train_dir,
    learning_rate,
    epoch,
    threads,
    seed,
    optimizer,
    max_token_length,
    additional_parameters,
{PADDING_PARAMETERS}    training_preset,
):
    return None

def finetune_tab(headless=False):
    with gr.Tab('Training'):
        def list_presets(path):
            return os.listdir(path)
        train_dir = gr.Textbox(label='Folder')
        basic = BasicTraining(learning_rate_value=1e-5, finetuning=True)
        additional_parameters = gr.Textbox()
        training_preset = gr.Dropdown(choices=['none'] + list_presets('./presets/finetune'))
{PADDING_COMPONENTS.replace("    pad", "        pad")}
    settings = [train_dir, basic.learning_rate, basic.epoch, basic.threads, basic.seed, basic.optimizer,
                basic.max_token_length, additional_parameters, {PADDING_LIST}]
    button_load_config = gr.Button('load')
    button_load_config.click(open_configuration, inputs=settings, outputs=[gr.Textbox()] + settings + [training_preset])
    training_preset.input(open_configuration, inputs=settings, outputs=[gr.Textbox()] + settings + [training_preset])
"""

REGISTRY_TAB = f"""
import gradio as gr
from .class_basic_training import BasicTraining

def open_configuration(
    ask_for_file, apply_preset, file_path, learning_rate, epoch, create_caption, swapped_one, swapped_two,
    fused_backward_pass, family_clip, clip, optimizer, additional_parameters,
{PADDING_PARAMETERS}    training_preset,
):
    return None

class familyTraining:
    def __init__(self):
        self.clip = gr.Textbox()

def finetune_tab(headless=False, config=None, use_shell_flag: bool = False):
    basic = BasicTraining(learning_rate_value=1e-5, finetuning=False, config=config)
    create_caption = gr.Checkbox(value=True)
    swapped_one = gr.Checkbox(value=True)
    swapped_two = gr.Textbox(value='x')
    clip = gr.Textbox()
    family = familyTraining()
    fused_backward_pass = gr.Checkbox(value=config.get('sdxl.fused_backward_pass', False))
    additional_parameters = gr.Textbox()
    training_preset = gr.Dropdown(choices=[])
{PADDING_COMPONENTS}
    FIELD_REGISTRY = [
        ('learning_rate', basic.learning_rate),
        ('epoch', basic.epoch),
        ('generate_caption_database', create_caption),
        ('swapped_two', swapped_two),
        ('swapped_one', swapped_one),
        ('fused_backward_pass', fused_backward_pass),
        ('family_clip', family.clip),
        ('clip', clip),
        ('optimizer', basic.optimizer),
        ('additional_parameters', additional_parameters),
{"".join(f"        ('{key}', {key}),{chr(10)}" for key in _PADDING_KEYS)}    ]
    settings_list = [component for _, component in FIELD_REGISTRY]
    _TRAIN_TO_CONFIG_ALIASES = {{'generate_caption_database': 'create_caption'}}
    def entry(data):
        return open_configuration(**data)
    training_preset.input(entry, inputs={{*settings_list}}, outputs={{gr.Textbox(), *settings_list, training_preset}})
"""

TRAINING_SCRIPT = """
import argparse
import library.train_util as train_util
from library.extra import add_extra

def setup_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    train_util.add_optimizer_arguments(parser)
    add_extra(parser)
    parser.add_argument("--train_text_encoder", action="store_true", help="x")
    return parser
"""
TRAIN_UTIL = """
HELP = 1

def add_optimizer_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--optimizer_type", type=str, default="", help="x")
    parser.add_argument("--learning_rate", type=float, default=2.0e-6)

def unrelated(parser):
    parser.add_argument("--unrelated")
"""
EXTRA = """
def add_extra(parser):
    parser.add_argument("-f", "--fused_backward_pass", action="store_true")
    parser.add_argument("--loss_type", choices=["l2", "huber"], default="l2")
"""

EMBEDDED = {
    "finetune_gui.py": EMBEDDED_TAB,
    "library/class_basic_training.py": BASIC_CLASS,
    "sdxl_train.py": TRAINING_SCRIPT,
    "library/train_util.py": TRAIN_UTIL,
    "library/extra.py": "def add_extra(parser):\n    pass\n",
}
REGISTRY = {
    "kohya_gui/finetune_gui.py": REGISTRY_TAB,
    "kohya_gui/class_basic_training.py": BASIC_CLASS,
    "sd-scripts/sdxl_train.py": TRAINING_SCRIPT,
    "sd-scripts/library/train_util.py": TRAIN_UTIL,
    "sd-scripts/library/extra.py": EXTRA,
}


def write(texts: dict[str, str], root: Path) -> Checkout:
    """A GUI on disk, and what the presets need to know of its checkout."""
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    submodule = (root / "kohya_gui").is_dir()
    (root / "presets" / "finetune").mkdir(parents=True, exist_ok=True)
    return Checkout(
        root=root,
        kind="kohya_ss",
        release="v0.0.0",
        gui_root=root / "kohya_gui" if submodule else root,
        gui_package="kohya_gui" if submodule else "library",
        training_root=root / "sd-scripts" if submodule else root,
        layout="submodule" if submodule else "embedded",
        presets_dir=root / "presets",
    )
