"""What is said about a preset, in its own file: the GUI ignores the key, and our notes in it read it."""

from __future__ import annotations

ABOUT = "_about"
# Of a bundled preset's words, those that stay in the installed file.
KEPT = ("title", "origin", "vram", "requires", "warnings", "notes", "extract", "extract_command")
FILL_IN = "fill_in"
BASE_MODEL = "base_model"  # the one that the installed file names
MEASURED_AS = "measured_as"  # the digest of its settings in the file of measurements; as above
FITTED_TO = "fitted_to"  # the release; only an installed file has it

# The GUI's list of presets, in the tabs that have one; and its entries without a file.
PRESETS_LABEL = "Presets"
NO_PRESET = ("", "none")
USER_PRESETS = "user_presets"

# In a preset's TOML file, the table of what no training script reads; and in it what is said, and fields of the form.
TABLE = "kohya_ext"
TABLE_ABOUT = "about"
TABLE_FORM = "form"
