"""A small kohya_ss with both GUIs, written for the tests: tabs that save JSON, and tabs with a table of their fields.

The second one can be run, with any module that answers for `gradio`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kohya_ext.checkout.checkout import Checkout
from tests.checkout import trees
from tests.presets import guis
from tests.presets.guis import PADDING_COMPONENTS, PADDING_LIST, PADDING_PARAMETERS

KEYS = (
    "sdxl_checkbox, pretrained_model_name_or_path, image_folder, train_dir, output_dir, output_name, learning_rate, "
    "learning_rate_te, epoch, max_train_epochs, max_train_steps, lr_warmup, optimizer, optimizer_args, max_resolution, "
    "xformers, sdxl_no_half_vae, mixed_precision, caption_extension, create_caption, seed, additional_parameters"
)
TAB = f"""
import gradio as gr
import os
import subprocess
import toml

executor = None

def open_configuration(ask_for_file, apply_preset, file_path, {KEYS},
{PADDING_PARAMETERS}    training_preset):
    return None

def train_model(headless, print_only, {KEYS},
{PADDING_PARAMETERS}):
    if create_caption:
        subprocess.run(['python', 'merge_captions_to_metadata.py', image_folder])
    script = 'sdxl_train.py' if sdxl_checkbox else 'fine_tune.py'
    steps = int(max_train_steps)
    if steps == 0:
        steps = int(epoch) * len(os.listdir(image_folder))
    data = {{
        'learning_rate': float(learning_rate),
        'learning_rate_te': float(learning_rate_te) if not sdxl_checkbox else None,
        'max_train_epochs': int(max_train_epochs) if int(max_train_epochs) != 0 else None,
        'max_train_steps': steps,
        'lr_warmup_steps': round(float(lr_warmup) * steps / 100),
        'optimizer_type': optimizer,
        'optimizer_args': str(optimizer_args).replace('"', '').split(),
        'resolution': max_resolution,
        'xformers': True if xformers == 'xformers' else None,
        'sdpa': True if xformers == 'sdpa' else None,
        'no_half_vae': True if sdxl_checkbox and sdxl_no_half_vae else None,
        'mixed_precision': mixed_precision,
        'caption_extension': caption_extension,
        'seed': int(seed) if int(seed) != 0 else None,
        'train_data_dir': image_folder,
        'in_json': train_dir + '/meta.json',
        'output_dir': output_dir,
        'output_name': output_name,
        'pretrained_model_name_or_path': pretrained_model_name_or_path,
    }}
    data = {{key: value for key, value in data.items() if value not in ['', False, None]}}
    name = output_dir + '/config.toml'
    with open(name, 'w') as file:
        toml.dump(data, file)
    words = ['accelerate', 'launch', 'sd-scripts/' + script, '--config_file', name]
    for word in additional_parameters.split():
        words.append(word)
    executor.execute_command(run_cmd=words)

def finetune_tab(headless=False, config=None):
    sdxl_checkbox = gr.Checkbox(value=False)
    pretrained_model_name_or_path = gr.Textbox()
    image_folder = gr.Textbox()
    train_dir = gr.Textbox()
    output_dir = gr.Textbox()
    output_name = gr.Textbox()
    learning_rate = gr.Number(value=1e-5, minimum=0, maximum=1)
    learning_rate_te = gr.Number(value=0.0)
    epoch = gr.Number(value=1, precision=0)
    max_train_epochs = gr.Number(value=0, precision=0)
    max_train_steps = gr.Number(value=1600, precision=0)
    lr_warmup = gr.Slider(0, 100, value=10)
    optimizer = gr.Dropdown(label='Optimizer', choices=['AdamW', 'AdamW8bit', 'Lion'], value='AdamW8bit')
    optimizer_args = gr.Textbox()
    max_resolution = gr.Textbox(value='512,512')
    xformers = gr.Dropdown(choices=['none', 'sdpa', 'xformers'], value='xformers')
    sdxl_no_half_vae = gr.Checkbox(value=False)
    mixed_precision = gr.Dropdown(choices=['no', 'fp16', 'bf16'], value='fp16')
    caption_extension = gr.Textbox(value='.caption')
    create_caption = gr.Checkbox(value=True)
    seed = gr.Number(value=0, precision=0)
    additional_parameters = gr.Textbox()
    training_preset = gr.Dropdown(choices=[])
{PADDING_COMPONENTS}
    settings = [{KEYS}, {PADDING_LIST}]
    training_preset.input(open_configuration, inputs=settings, outputs=[gr.Textbox()] + settings + [training_preset])
"""

ARGUMENTS = """
def setup_parser():
    parser = argparse.ArgumentParser()
    train_util.add_optimizer_arguments(parser)
    parser.add_argument("--config_file", type=str, default=None)
    parser.add_argument("--output_dir", type=str, default=None)
    parser.add_argument("--output_name", type=str, default=None)
    parser.add_argument("--train_data_dir", type=str, default=None)
    parser.add_argument("--in_json", type=str, default=None)
    parser.add_argument("--pretrained_model_name_or_path", type=str, default=None)
    parser.add_argument("--optimizer_args", type=str, default=None, nargs="*")
    parser.add_argument("--resolution", type=str, default=None)
    parser.add_argument("--xformers", action="store_true")
    parser.add_argument("--sdpa", action="store_true")
    parser.add_argument("--mixed_precision", type=str, default="no", choices=["no", "fp16", "bf16"])
    parser.add_argument("--max_train_steps", type=int, default=1600)
    parser.add_argument("--max_train_epochs", type=int, default=None)
    parser.add_argument("--lr_warmup_steps", type=int_or_float, default=0)
    parser.add_argument("--caption_extension", type=str, default=".caption")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--max_grad_norm", type=float, default=1.0)
    parser.add_argument("--fused_backward_pass", action="store_true")
    return parser
"""
SDXL = ARGUMENTS.replace(
    "    return parser", '    parser.add_argument("--no_half_vae", action="store_true")\n    return parser'
)
SD15 = ARGUMENTS.replace(
    "    return parser", '    parser.add_argument("--learning_rate_te", type=float, default=0.0)\n    return parser'
)
IMPORT = "import argparse\nimport library.train_util as train_util\n"

FIELDS = """
from dataclasses import dataclass
from enum import Enum
from typing import Any

class Widget(Enum):
    TEXTBOX = 1
    NUMBER = 2
    CHECKBOX = 3
    DROPDOWN = 4

@dataclass(frozen=True)
class FieldSpec:
    name: str
    widget: Widget
    default: Any = None
    label: Any = None
    info: Any = None
    choices: Any = None
    group: str = "general"
    archs: Any = None
    gui_only: bool = False
    keep_if_falsy: bool = False
    to_toml: Any = None
    from_toml: Any = None

class FieldRegistry:
    def __init__(self, specs):
        self.specs = list(specs)

    def __iter__(self):
        return iter(self.specs)

    def names(self):
        return [spec.name for spec in self.specs]
"""
GENERATED = """
from ..fields import FieldSpec, Widget

def _words(value):
    text = str(value).strip()
    return text.split() if text else None

def _text(value):
    return " ".join(value) if isinstance(value, (list, tuple)) else (value or "")

ROWS = [
    FieldSpec(name="learning_rate", widget=Widget.NUMBER, default=2e-6),
    FieldSpec(name="learning_rate_te", widget=Widget.NUMBER, default=0.0, archs=frozenset(["base"])),
    FieldSpec(name="max_train_epochs", widget=Widget.NUMBER, default=0),
    FieldSpec(name="max_train_steps", widget=Widget.NUMBER, default=1600),
    FieldSpec(name="optimizer_type", widget=Widget.DROPDOWN, default="", choices=["", "AdamW", "AdamW8bit", "Lion"]),
    FieldSpec(name="optimizer_args", widget=Widget.TEXTBOX, default="", to_toml=_words, from_toml=_text),
    FieldSpec(name="resolution", widget=Widget.TEXTBOX, default="512,512"),
    FieldSpec(name="xformers", widget=Widget.CHECKBOX, default=False),
    FieldSpec(name="sdpa", widget=Widget.CHECKBOX, default=False),
    FieldSpec(name="no_half_vae", widget=Widget.CHECKBOX, default=False),
    FieldSpec(name="mixed_precision", widget=Widget.DROPDOWN, default="no", choices=["no", "fp16", "bf16"]),
    FieldSpec(name="output_dir", widget=Widget.TEXTBOX, default=""),
    FieldSpec(name="pretrained_model_name_or_path", widget=Widget.TEXTBOX, default=""),
    FieldSpec(name="train_data_dir", widget=Widget.TEXTBOX, default=""),
    FieldSpec(name="seed", widget=Widget.NUMBER, default=0),
]
"""
TABLE = """
from ..accelerate_launch_fields import launch_rows
from ..fields import FieldRegistry, FieldSpec, Widget
from .finetune_fields_generated import ROWS

FAMILIES = ["base", "sdxl"]
OWN = [
    FieldSpec(name="architecture", widget=Widget.DROPDOWN, default="base", choices=FAMILIES, gui_only=True),
    FieldSpec(name="training_type", widget=Widget.TEXTBOX, default="finetune", gui_only=True),
]
FINETUNE_REGISTRY = FieldRegistry(OWN + launch_rows() + ROWS)
"""
LAUNCH_ROWS = """
from .fields import FieldSpec, Widget

def launch_rows():
    return [FieldSpec(name="num_processes", widget=Widget.NUMBER, default=1, gui_only=True)]
"""
DERIVATIONS = """
import os

def _none_for_zero(value):
    if isinstance(value, bool):
        return value
    return None if isinstance(value, (int, float)) and value == 0 else value

def derive(values, arch_key):
    out = {"seed": _none_for_zero(values.get("seed"))}
    out["no_half_vae"] = True if arch_key == "sdxl" and values.get("sdxl_no_half_vae") else None
    return out
"""
BUILDER = """
import shlex

import gradio as gr
from .fields import FieldRegistry, Widget

SECTION_TITLES = {"general": "General"}
KINDS = {Widget.TEXTBOX: gr.Textbox, Widget.NUMBER: gr.Number, Widget.CHECKBOX: gr.Checkbox,
         Widget.DROPDOWN: gr.Dropdown}

def _accelerate_launch_flags(values):
    flags = []
    if values.get("mixed_precision"):
        flags += ["--mixed_precision", shlex.quote(values.get("mixed_precision"))]
    processes = int(values.get("num_processes") or 0)
    if processes > 0:
        flags += ["--num_processes", str(processes)]
    return flags

def build_training_tab(registry, derive, training_type, arch_scripts, required_cli_fields=None):
    made = {}
    for spec in registry:
        words = {"value": spec.default, "label": SECTION_TITLES.get(spec.group, spec.group)}
        if spec.choices is not None:
            words["choices"] = spec.choices
        made[spec.name] = KINDS[spec.widget](**words)
    return made, derive, required_cli_fields
"""
FINETUNE = """
from .finetune_derivations import derive
from .finetune_fields import FINETUNE_REGISTRY
from ..tab_builder import build_training_tab

ARCHITECTURE_SCRIPTS = {"base": "fine_tune.py", "sdxl": "sdxl_train.py"}

def finetune_tab():
    return build_training_tab(registry=FINETUNE_REGISTRY, derive=derive, training_type="finetune",
                              arch_scripts=ARCHITECTURE_SCRIPTS)
"""
REGISTRY = """
class BackendSpec:
    def __init__(self, **words):
        self.words = words

BACKEND = BackendSpec(key="sd_scripts", launcher=["uv", "run", "accelerate", "launch"], script_root="sd-scripts")
"""

SECOND = {
    "kohya_gui_v2.py": "",
    "kohya_gui_v2/__init__.py": "",
    "kohya_gui_v2/fields.py": FIELDS,
    "kohya_gui_v2/layout_map.py": "CURATED_ALLOW_CUSTOM = frozenset({'optimizer_type'})\n",
    "kohya_gui_v2/accelerate_launch_fields.py": LAUNCH_ROWS,
    "kohya_gui_v2/tab_builder.py": BUILDER,
    "kohya_gui_v2/registry.py": REGISTRY,
    "kohya_gui_v2/tabs/__init__.py": "",
    "kohya_gui_v2/tabs/finetune_tab.py": FINETUNE,
    "kohya_gui_v2/tabs/finetune_fields.py": TABLE,
    "kohya_gui_v2/tabs/finetune_fields_generated.py": GENERATED,
    "kohya_gui_v2/tabs/finetune_derivations.py": DERIVATIONS,
}
FIRST = {
    "kohya_gui.py": "",
    "kohya_gui/__init__.py": '"""nothing here"""\n',
    "kohya_gui/finetune_gui.py": TAB,
    "presets/finetune/theirs.json": "{}\n",
}
TRAINING = {
    "sd-scripts/sdxl_train.py": IMPORT + SDXL,
    "sd-scripts/fine_tune.py": IMPORT + SD15,
    "sd-scripts/train_network.py": IMPORT + ARGUMENTS,
    "sd-scripts/networks/lora.py": "",
    "sd-scripts/library/__init__.py": "",
    "sd-scripts/library/train_util.py": guis.TRAIN_UTIL,
    "sd-scripts/library/hooked.py": trees.define(*trees.COMMON[1:], "patch_adafactor_fused"),
}


def write(root: Path, *parts: dict[str, str]) -> Checkout:
    """A kohya_ss on disk, all of its parts without further words."""
    texts = {name: text for part in parts or (FIRST, SECOND, TRAINING) for name, text in part.items()}
    checkout = guis.write(texts, root)
    return replace(checkout, second_gui=any(name.startswith("kohya_gui_v2/") for name in texts))
