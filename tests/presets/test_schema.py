from __future__ import annotations

from kohya_ext.presets.schema import Schema, read_schema
from kohya_ext.pysource.sources import TextSources
from tests.presets import guis


def schema_of(texts: dict[str, str], *, patched: bool = False) -> Schema:
    schema = read_schema(TextSources(texts), "finetune", patched=patched)
    assert schema is not None
    return schema


def test_every_key_of_a_positional_tab_gets_its_component() -> None:
    fields = schema_of(guis.EMBEDDED).fields
    kinds = {key: one.component for key, one in fields.items() if not key.startswith("pad_")}
    assert kinds == {
        "train_dir": "Textbox",
        "learning_rate": "Number",
        "epoch": "Number",
        "threads": "Slider",
        "seed": "Textbox",
        "optimizer": "Dropdown",
        "max_token_length": "Dropdown",
        "additional_parameters": "Textbox",
        "training_preset": "Dropdown",
    }


def test_arguments_travel_through_constructors_and_conditions() -> None:
    fields = schema_of(guis.EMBEDDED).fields
    rate = fields["learning_rate"]
    assert (rate.default, rate.minimum, rate.maximum, rate.exact) == (1e-5, 0, 1, True)
    assert fields["max_token_length"].choices == ("75", "150", "225")
    assert fields["epoch"].precision == 0
    other = schema_of(guis.REGISTRY).fields
    assert other["learning_rate"].component == "Number"


def test_a_setting_of_config_toml_is_named() -> None:
    one = schema_of(guis.EMBEDDED).fields["epoch"]
    assert one.default == 1
    assert one.settings == {"default": "basic.epoch"}


def test_what_only_the_running_gui_knows_is_not_claimed() -> None:
    fields = schema_of(guis.EMBEDDED).fields
    assert fields["training_preset"].inexact == ("choices",)
    assert not fields["training_preset"].exact


def test_a_registry_tab_is_read_with_its_aliases() -> None:
    fields = schema_of(guis.REGISTRY).fields
    assert fields["create_caption"].component == "Checkbox"
    assert fields["create_caption"].wired_to is None


def test_crossed_wires_are_found_and_families_are_not_mistaken_for_them() -> None:
    fields = schema_of(guis.REGISTRY).fields
    assert fields["swapped_one"].wired_to == "swapped_two"
    assert fields["swapped_two"].wired_to == "swapped_one"
    assert fields["family_clip"].wired_to is None
    assert fields["clip"].wired_to is None
    positional = guis.EMBEDDED_TAB.replace("basic.seed, basic.optimizer,", "basic.optimizer, basic.seed,")
    crossed = schema_of({**guis.EMBEDDED, "finetune_gui.py": positional}).fields
    assert crossed["seed"].wired_to == "optimizer"


def test_the_hooks_add_adacoor_to_the_optimizer_list_only() -> None:
    plain, patched = schema_of(guis.EMBEDDED), schema_of(guis.EMBEDDED, patched=True)
    assert "AdaCoor" not in (plain.fields["optimizer"].choices or ())
    assert "AdaCoor" in (patched.fields["optimizer"].choices or ())
    assert [key for key in plain.fields if plain.fields[key] != patched.fields[key]] == ["optimizer"]


def test_components_made_under_an_undecidable_condition_are_not_exact() -> None:
    doubtful = guis.BASIC_CLASS.replace("if self.finetuning:", "if os.path.exists('x'):")
    field = schema_of({**guis.EMBEDDED, "library/class_basic_training.py": doubtful}).fields["seed"]
    assert field.component is not None
    assert not field.exact


def test_a_wiring_that_cannot_be_followed_leaves_the_keys_and_says_so() -> None:
    text = guis.EMBEDDED_TAB.split("def finetune_tab")[0]
    schema = schema_of({"finetune_gui.py": text})
    assert "learning_rate" in schema.fields
    assert {one.component for one in schema.fields.values()} == {None}
    assert "keys only" in schema.notes[0]


def test_no_tab_no_schema() -> None:
    assert read_schema(TextSources({}), "finetune") is None
    assert read_schema(TextSources({"finetune_gui.py": "def open_configuration(:"}), "finetune") is None


def test_endless_sources_end() -> None:
    text = guis.EMBEDDED_TAB.replace(
        "def list_presets(path):",
        "def again(self):\n            again(self)\n        again(1)\n        def list_presets(path):",
    )
    assert schema_of({**guis.EMBEDDED, "finetune_gui.py": text}).fields["seed"].component == "Textbox"


def test_json_form_has_the_documented_keys() -> None:
    one = schema_of(guis.EMBEDDED).as_json()["learning_rate"]
    assert {"component", "choices", "minimum", "maximum", "step", "precision", "custom", "default", "exact"} <= set(one)
