"""What we know of kohya_ss's second GUI, `kohya_gui_v2`: the names of its parts, and nothing else.

It comes next to the old one, with a start script of its own, takes a few modules from the old one's package, and
describes every field of its tabs in a table. What it saves is a flat TOML file whose keys are the arguments of the
training scripts.
"""

from __future__ import annotations

PACKAGE = "kohya_gui_v2"
START = f"{PACKAGE}.py"
LANDMARK = f"{PACKAGE}/tab_builder.py"  # what none of the other GUIs has

# The table of a tab's fields, made once when its module is loaded, and a row of it; the function that builds a tab from
# one, what it is told of arguments that have to be on the command line, and of the values that it derives from others.
TABLE_CLASS = "FieldRegistry"
ROW_CLASS = "FieldSpec"
WIDGET_CLASS = "Widget"
BUILDER = "build_training_tab"
TITLES = "SECTION_TITLES"
TABLE = "registry"
ON_COMMAND_LINE = "required_cli_fields"
DERIVED = "derive"

# Our tab -> its name for the kind of training.
TRAINING_TYPES = {"finetune": "finetune", "lora": "lora", "dreambooth": "dreambooth", "ti": "textual_inversion"}

# Fields that every tab has: the model family, and the list of optimizers.
FAMILY = "architecture"
TRAINING_TYPE = "training_type"
OPTIMIZER = "optimizer_type"
