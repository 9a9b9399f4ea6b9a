from __future__ import annotations

from kohya_ext.pysource.arguments import arguments_of, flags_of
from kohya_ext.pysource.sources import TextSources
from tests.presets import guis

TRAINING = {name.removeprefix("sd-scripts/"): text for name, text in guis.REGISTRY.items() if "sd-scripts/" in name}


def test_own_and_called_arguments_are_found_and_no_others() -> None:
    found = arguments_of(TextSources(TRAINING), "sdxl_train.py")
    assert set(found) == {"optimizer_type", "learning_rate", "train_text_encoder", "fused_backward_pass", "loss_type"}


def test_what_argparse_is_told_is_kept() -> None:
    found = arguments_of(TextSources(TRAINING), "sdxl_train.py")
    assert (found["learning_rate"].type, found["learning_rate"].default) == ("float", 2.0e-6)
    assert found["train_text_encoder"].type == "bool"
    assert found["loss_type"].choices == ("l2", "huber")
    assert found["fused_backward_pass"].flag == "--fused_backward_pass"


def test_functions_are_followed_through_modules_that_only_pass_them_on() -> None:
    shim = {**TRAINING, "library/train_util.py": "from library.args import (\n    add_optimizer_arguments,\n)\n"}
    shim["library/args.py"] = guis.TRAIN_UTIL
    assert "--optimizer_type" in flags_of(TextSources(shim), "sdxl_train.py")


def test_a_script_that_extends_another_has_its_arguments() -> None:
    child = (
        "import train_network\n\ndef setup_parser():\n    parser = train_network.setup_parser()\n    return parser\n"
    )
    texts = {**TRAINING, "train_network.py": guis.TRAINING_SCRIPT, "child.py": child}
    assert flags_of(TextSources(texts), "child.py") == flags_of(TextSources(texts), "sdxl_train.py")


def test_no_script_no_arguments() -> None:
    assert arguments_of(TextSources({}), "sdxl_train.py") == {}
