from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kohya_ext.cli import presets
from kohya_ext.core import shell
from kohya_ext.core.bundle import data_dir
from kohya_ext.core.errors import UnsupportedError, UsageError
from tests.presets import guis
from tests.tensors.test_families import refiner


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small GUI that passes for a checkout."""
    root = tmp_path / "kohya_ss"
    guis.write(guis.REGISTRY, root)
    for name in (
        "kohya_gui.py",
        "sd-scripts/train_network.py",
        "sd-scripts/fine_tune.py",
        "sd-scripts/library/__init__.py",
    ):
        (root / name).write_text("")
    (root / "sd-scripts" / "networks").mkdir()
    (root / ".release").write_text("v0.0.0")
    return root


def run(*words: str | Path) -> int:
    parser = argparse.ArgumentParser()
    presets.register(parser.add_subparsers())
    arguments = parser.parse_args(["presets", *map(str, words)])
    code: int = arguments.run(arguments)
    return code


def as_json(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = run(*words, "--json")
    return code, json.loads(capsys.readouterr().out)


def test_list_names_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    assert "AdaCoor-48GB" in capsys.readouterr().out
    code, document = as_json(capsys, "list")
    assert code == 0
    assert {row["vram_gb"] for row in document["presets"]} == {24, 48, 80}


def test_an_edited_copy_of_a_bundled_preset_is_judged_as_it_is(
    tmp_path: Path, checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing fits it before the GUI loads it; fitted, a number out of its field's range would have passed."""
    bundled = data_dir("presets") / "finetune" / "Lion-48GB.json"
    copy = tmp_path / "mine.json"
    copy.write_text(bundled.read_text("utf-8"), "utf-8")
    assert run("check", copy, checkout) == 0
    copy.write_text(json.dumps({**json.loads(bundled.read_text("utf-8")), "learning_rate": 3}), "utf-8")
    code, document = as_json(capsys, "check", copy, checkout)
    findings = document["presets"][0]["findings"]
    assert code == 1 and ("out-of-range", "learning_rate") in {(one["rule"], one["key"]) for one in findings}


def test_show_groups_and_explains(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "AdaCoor-48GB") == 0
    shown = capsys.readouterr().out
    assert "Optimizer and rate" in shown
    assert "memory       48 GB" in shown
    code, document = as_json(capsys, "show", "AdaCoor-48GB")
    assert (code, document["values"]["optimizer"]) == (0, "AdaCoor")


def test_show_of_an_unknown_name_lists_the_names() -> None:
    with pytest.raises(UsageError, match="Lion-48GB"):
        run("show", "nothing")


def test_diff_shows_only_what_differs(capsys: pytest.CaptureFixture[str]) -> None:
    code, document = as_json(capsys, "diff", "AdaCoor-48GB", "Lion-48GB")
    assert code == 0
    assert set(document["differences"]) == {
        "optimizer",
        "optimizer_args",
        "learning_rate",
        "learning_rate_te",
        "learning_rate_te1",
        "learning_rate_te2",
    }
    assert run("diff", "Lion-48GB", "Lion-48GB") == 0
    assert "no difference" in capsys.readouterr().out


def test_schema_as_json_is_the_fields_alone(capsys: pytest.CaptureFixture[str], checkout: Path) -> None:
    code, document = as_json(capsys, "schema", checkout, "--tab", "finetune")
    assert code == 0
    assert document["epoch"]["component"] == "Number"
    assert run("schema", checkout) == 0


def test_check_exits_1_on_errors_and_0_otherwise(
    capsys: pytest.CaptureFixture[str], checkout: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text('{"epoch": "three", "optimizer": "Lion"}')
    code, document = as_json(capsys, "check", bad, checkout)
    assert code == 1
    assert {"level": "error", "rule": "text-for-number"}.items() <= document["presets"][0]["findings"][0].items()
    assert run("check", bad, checkout) == 1
    assert run("check", "Lion-48GB", checkout) == 0


def test_check_of_everything_and_of_nothing(capsys: pytest.CaptureFixture[str], checkout: Path) -> None:
    (checkout / "presets" / "finetune" / "one.json").write_text('{"optimizer": "Lion"}')
    code, document = as_json(capsys, "check", "--all", checkout)
    assert (code, [report["preset"] for report in document["presets"]]) == (0, ["one"])
    with pytest.raises(UsageError, match="--all"):
        run("check", checkout)


def test_check_of_everything_ends_with_a_summary(capsys: pytest.CaptureFixture[str], checkout: Path) -> None:
    folder = checkout / "presets" / "finetune"
    assert run("fit", "Lion-48GB", checkout, "--out", folder / "fits.json") == 0
    (folder / "cut.json").write_text("{")
    (folder / "wrong.json").write_text('{"epoch": "three", "optimizer": "Lion"}')
    assert run("check", "--all", checkout) == 1
    last = capsys.readouterr().out.rstrip().splitlines()[-1]
    assert last == "3 presets checked against v0.0.0: 2 with errors, 1 fit"
    assert run("check", "Lion-48GB", checkout) == 0
    assert "presets checked" not in capsys.readouterr().out


def test_a_preset_of_ours_on_a_checkout_without_us_says_what_to_do(
    capsys: pytest.CaptureFixture[str], checkout: Path
) -> None:
    assert run("check", "AdaCoor-48GB", checkout) == 1
    assert "kohya-ext install" in capsys.readouterr().out


def test_fit_writes_a_preset_that_checks_clean(
    capsys: pytest.CaptureFixture[str], checkout: Path, tmp_path: Path
) -> None:
    target = tmp_path / "fitted.json"
    code, document = as_json(capsys, "fit", "Lion-48GB", checkout, "--out", target)
    assert code == 0
    written = json.loads(target.read_text())
    assert written.pop("_about")["fitted_to"] == "v0.0.0"
    assert written == document["values"]
    assert run("fit", "Lion-48GB", checkout, "--out", target) == 0
    code, document = as_json(capsys, "check", target, checkout, "--tab", "finetune")
    assert (code, document["presets"][0]["findings"]) == (0, [])


def test_a_dry_run_of_fit_reports_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], checkout: Path, tmp_path: Path
) -> None:
    target = tmp_path / "fitted.json"
    assert run("fit", "Lion-48GB", checkout, "--out", target, "--dry-run") == 0
    assert "would write" in capsys.readouterr().out
    assert not target.exists()


def test_a_gui_without_its_training_code_is_read_with_a_warning(
    capsys: pytest.CaptureFixture[str], checkout: Path, tmp_path: Path
) -> None:
    shutil.rmtree(checkout / "sd-scripts")
    assert run("schema", checkout) == 0
    assert "submodule update --init" in capsys.readouterr().err
    code, document = as_json(capsys, "check", "Lion-48GB", checkout)
    assert (code, len(document["warnings"])) == (0, 1)
    assert run("fit", "Lion-48GB", checkout, "--out", tmp_path / "fitted.json") == 0
    with pytest.raises(UnsupportedError, match="submodule update --init"):
        run("install", "Lion-48GB", checkout)


LIMITED = """
import os, sys
if os.name == "posix":  # Windows limits no process by itself
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (256 << 20, 256 << 20))
from kohya_ext.cli.main import main
sys.exit(main(["presets", "check", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("giant", ["hole", "lists", "keys"])
def test_giants_are_refused_within_little_memory(giant: str, checkout: Path, tmp_path: Path) -> None:
    file = tmp_path / "giant.json"
    if giant == "hole":
        if os.name == "nt":
            pytest.skip("a hole takes its size on the disk there")
        with file.open("wb") as opened:
            opened.truncate(20 << 30)
    elif giant == "lists":
        file.write_text('{"a":' + "[" * 1_000_000)
    else:
        file.write_text("{" + ",".join(f'"k{n}":{n}' for n in range(70_000)) + "}")
    command = [sys.executable, "-c", LIMITED, str(file), str(checkout)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "giant.json" in done.stderr


def test_fit_into_nowhere_is_a_usage_error(checkout: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        run("fit", "Lion-48GB", checkout, "--out", tmp_path / "no" / "such" / "folder.json")


def test_fit_repairs_what_check_locates(capsys: pytest.CaptureFixture[str], checkout: Path, tmp_path: Path) -> None:
    slip, target = tmp_path / "slip.json", tmp_path / "fitted.json"
    slip.write_text('{\n "optimizer": "AdamW", // mine\n "learning_rate": 1e-6,\n}\n')
    with pytest.raises(UsageError, match="line 2, column 24: JSON has no comments"):
        run("check", slip, checkout, "--tab", "finetune")
    code, document = as_json(capsys, "fit", slip, checkout, "--out", target, "--tab", "finetune")
    assert (code, document["repairs"]) == (0, ["line 2: a comment", "line 3: a comma with nothing behind it"])
    assert json.loads(target.read_text())["learning_rate"] == 1e-6


@pytest.mark.parametrize("verb", ["check", "show"])
def test_a_file_that_is_not_a_preset_is_named(verb: str, checkout: Path, tmp_path: Path) -> None:
    path = tmp_path / "meta.json"
    path.write_text('{"img/a.png": {"caption": "a", "train_resolution": [64, 64]}}')
    with pytest.raises(UsageError, match="none of its keys is a setting"):
        run(verb, path, *([checkout] if verb == "check" else []))


def test_an_unreadable_preset_among_all_is_a_finding(capsys: pytest.CaptureFixture[str], checkout: Path) -> None:
    (checkout / "presets" / "finetune" / "cut.json").write_text("{")
    code, document = as_json(capsys, "check", "--all", checkout)
    assert code == 1
    assert document["presets"][0]["findings"][0]["rule"] == "unreadable"


def test_install_by_name_keeps_what_is_there_and_patches_nothing(
    capsys: pytest.CaptureFixture[str], checkout: Path
) -> None:
    folder = checkout / "presets" / "finetune" / "user_presets"
    assert run("install", "Lion-48GB", checkout, "--yes", "--dry-run") == 0
    assert not folder.exists()
    assert "+++ b/" not in capsys.readouterr().out
    assert run("install", "Lion-48GB", checkout, "--dry-run", "--verbose") == 0
    assert "+++ b/presets/finetune/user_presets/Lion-48GB.json" in capsys.readouterr().out
    assert run("install", "Lion-48GB", checkout, "--yes") == 0
    assert {path.name for path in folder.iterdir()} == {"Lion-48GB.json"}
    assert run("install", "AdaCoor-48GB", checkout, "--yes") == 0
    assert {path.name for path in folder.iterdir()} == {"Lion-48GB.json", "AdaCoor-48GB.json"}
    code, document = as_json(capsys, "install", "AdaCoor-48GB", checkout)
    assert (code, document["changed"]) == (0, False)
    assert (checkout / "sd-scripts" / "library" / "__init__.py").read_text() == ""


def test_install_of_what_the_release_cannot_take_is_refused(checkout: Path) -> None:
    texts = guis.REGISTRY_TAB.replace("fused_backward_pass", "something_else")
    (checkout / "kohya_gui" / "finetune_gui.py").write_text(texts)
    (checkout / "sd-scripts" / "library" / "extra.py").write_text("def add_extra(parser):\n    pass\n")
    with pytest.raises(UnsupportedError, match="fused_backward_pass"):
        run("install", "AdaCoor-24GB", checkout)
    with pytest.raises(UsageError, match="Lion-48GB"):
        run("install", "nothing", checkout)


def test_command_refuses_the_refiner(checkout: Path, tmp_path: Path) -> None:
    model = refiner(tmp_path / "mine", "file")
    with pytest.raises(UsageError, match="SDXL's refiner"):
        run("command", "Lion-48GB", "--data", tmp_path, "--model", model, "--output", tmp_path, checkout)


def test_command_prints_what_the_gui_would_run(
    capsys: pytest.CaptureFixture[str], checkout: Path, tmp_path: Path
) -> None:
    gui = checkout / "kohya_gui" / "finetune_gui.py"
    gui.write_text(gui.read_text() + TRAIN)
    data = tmp_path / "images"
    data.mkdir()
    (data / "a.png").touch()
    words: tuple[str | Path, ...] = (
        "command",
        "Lion-48GB",
        "--data",
        data,
        "--model",
        "m",
        "--output",
        tmp_path / "out",
        "--python",
        sys.executable,
    )
    assert run(*words, checkout) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == shell.line(sys.executable, "-c", "raise SystemExit(7)", "launch", "Lion")
    with pytest.raises(UsageError, match="no TOML file"):
        run(*words, "--toml", checkout)
    assert run(*words, "--run", checkout) == 7
    absent = [*words, "--model", tmp_path / "absent.safetensors", checkout]
    assert run(*absent) == 0
    assert f"{tmp_path / 'absent.safetensors'}: there is no such file" in capsys.readouterr().err
    with pytest.raises(UsageError, match="there is no such file"):
        run(*absent, "--run")
    source = checkout / "kohya_gui" / "finetune_gui.py"
    source.write_text(source.read_text().replace(repr(sys.executable), repr("no-such-launcher")))
    output = tmp_path / "never made"
    with pytest.raises(UsageError, match=r"no-such-launcher is neither in .* nor on PATH"):
        run(*words, "--output", output, "--run", checkout)
    assert not output.exists()


TRAIN = """
executor = None

def train_model(headless, print_only, optimizer):
    executor.execute_command(run_cmd=[PYTHON, "-c", "raise SystemExit(7)", "launch", optimizer])
""".replace("PYTHON", repr(sys.executable))


def test_rate_answers_with_a_number_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("rate", "--like", "ADAMW", "1e-4", "--steps", "2000") == 0
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first == "22"
    assert "2,000 steps" in second and "AdamW at 0.0001" in second
    code, document = as_json(capsys, "rate", "--like", "lion", "3e-5", "--steps", "500", "--eps", "1e-10")
    assert code == 0
    assert document["learning_rate"] == pytest.approx(3e-5 * 500**0.5 / 2e-5)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--like", "prodigy", "1", "--steps", "10"), "no formula for prodigy"),
        (("--like", "adamw", "fast", "--steps", "10"), "fast is not a learning rate"),
        (("--like", "adamw", "0", "--steps", "10"), "0 is not a learning rate"),
        (("--like", "adamw", "nan", "--steps", "10"), "nan is not a learning rate"),
        (("--like", "adamw", "1e-4", "--steps", "0"), "--steps 0"),
        (("--like", "adamw", "1e-4", "--steps", "10", "--eps", "0"), "--eps 0"),
        (("--like", "adamw", "1e-4", "--steps", "10", "--eps", "nan"), "--eps nan"),
        (("--like", "adamw", "1e-4", "--steps", "10", "--eps", "1e-300"), "--eps 1e-300"),
    ],
)
def test_rate_refuses_what_it_has_no_formula_for(words: tuple[str, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        run("rate", *words)
