from __future__ import annotations

from collections.abc import Callable

import pytest

from kohya_ext.checkout.checkout import Checkout
from kohya_ext.checkout.scan import flags_of_fork, require, scan
from kohya_ext.checkout.sources import SourceFiles
from kohya_ext.core.errors import UnsupportedError
from kohya_ext.install import apply, patchset
from kohya_ext.install.status import status
from tests.checkout import trees

Make = Callable[..., Checkout]


def table(checkout: Checkout) -> dict[str, list[tuple[str, str, str | None]]]:
    rows: dict[str, list[tuple[str, str, str | None]]] = {}
    for row in scan(checkout):
        rows.setdefault(row.key, []).append((row.status, row.name, row.file))
    return rows


def test_old_names(make: Make) -> None:
    rows = table(make("bare"))
    file = "library/train_util.py"
    assert rows["arguments"] == [("found", "add_optimizer_arguments", file)]
    assert rows["save_during"] == [("older", "save_sd_model_on_epoch_end", file)]
    assert rows["save_at_end"] == [("older", "save_sd_model_on_train_end", file)]
    assert rows["sample"] == [("older", "sample_images", file)]
    assert rows["fused_backward"] == [("n/a", "patch_adafactor_fused", None)]
    assert "own_sampler" not in rows
    assert "optimizer_list" not in rows


def test_split(make: Make) -> None:
    rows = table(make("split"))
    assert rows["optimizer"] == [("found", "get_optimizer", "sd-scripts/library/optimizer.py")]
    assert rows["fused_backward"] == [("found", "patch_adafactor_fused", "sd-scripts/library/adafactor_fused.py")]
    assert [row[2] for row in rows["own_sampler"]] == [
        "sd-scripts/library/flux_train_utils.py",
        "sd-scripts/hunyuan_image_train_network.py",
    ]
    assert rows["optimizer_list"] == [("found", "Optimizer", "kohya_gui/class_basic_training.py")]


def test_lines_and_text(make: Make) -> None:
    row = scan(make("embedded"))[1]
    assert (row.key, row.line) == ("optimizer", 4)
    assert "library/train_util.py:4" in row.text


def test_definitions_in_strings_methods_and_nests_do_not_count(make: Make) -> None:
    checkout = make("embedded")
    path = checkout.library / "decoys.py"
    path.write_text(
        '"""\ndef get_optimizer(args):\n"""\nclass X:\n    def get_optimizer(self): ...\n'
        "def outer():\n    def get_optimizer(): ...\nget_optimizer = None\n"
    )
    require(scan(checkout), checkout)
    path.write_text("if True:\n    async def get_optimizer(args): ...\n")
    with pytest.raises(UnsupportedError, match=r"get_optimizer is defined more than once.*decoys\.py:2"):
        require(scan(checkout), checkout)


def test_fused_flag_without_its_function(make: Make) -> None:
    checkout = make("embedded")
    path = checkout.library / "train_util.py"
    path.write_text(path.read_text() + trees.FUSED_FLAG)
    with pytest.raises(UnsupportedError, match="patch_adafactor_fused is not defined"):
        require(scan(checkout), checkout)


def test_file_that_does_not_parse(make: Make) -> None:
    checkout = make("embedded")
    path = checkout.library / "train_util.py"
    path.write_text(path.read_text() + "def broken(:\n")
    with pytest.raises(UnsupportedError, match=r"train_util\.py does not parse"):
        scan(checkout)


def test_no_optimizer_list_is_no_obstacle(make: Make) -> None:
    checkout = make("embedded")
    (checkout.library / "class_basic_training.py").write_text("# AdamW8bit Dropdown\n")
    rows = scan(checkout)
    assert [(row.key, row.status) for row in rows[-2:]] == [("optimizer_list", "missing"), ("ema_section", "missing")]
    require(rows, checkout)


def test_the_advanced_settings(make: Make) -> None:
    checkout = make("split")
    file = checkout.root / "kohya_gui/class_advanced_training.py"
    file.write_text("import gradio as gr\n\n\nclass AdvancedTraining:\n    pass\n")
    assert table(checkout)["ema_section"] == [("found", "AdvancedTraining", "kohya_gui/class_advanced_training.py")]
    assert next(row.line for row in scan(checkout) if row.key == "ema_section") == 4
    assert "kohya_gui/class_advanced_training.py" in [
        target.path.relative_to(checkout.root).as_posix()
        for target in patchset.load("inline").targets(checkout, scan(checkout))
    ]


@pytest.mark.parametrize("era", ["bare", "embedded", "split"])
def test_a_fork_with_flags_of_our_names(make: Make, era: str) -> None:
    """They win at run time, and install and status say what that leaves."""
    checkout = make(era)
    assert flags_of_fork(checkout, SourceFiles()) == []
    script = checkout.training_root / "anima_train.py"
    script.write_text("def setup(parser):\n    parser.add_argument('--ema_decay', type=float, default=0.999)\n")
    (line,) = flags_of_fork(checkout, SourceFiles())
    assert "anima_train.py has a --ema_decay of its own" in line
    assert line in apply.install(checkout).plan.notes
    assert line in status(checkout).notes
    assert status(checkout).clean


def test_our_flags_in_a_comment_are_not_a_fork(make: Make) -> None:
    checkout = make("bare")
    (checkout.training_root / "notes.py").write_text("# kohya_ext takes --ema_decay\n")
    assert flags_of_fork(checkout, SourceFiles()) == []
