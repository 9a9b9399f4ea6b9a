"""Words that argparse refuses are told apart as argparse itself does it."""

from __future__ import annotations

import argparse

import pytest

from kohya_ext.presets.argument_faults import value_faults
from kohya_ext.presets.launch_command import LaunchCommands
from kohya_ext.presets.release import Release
from kohya_ext.presets.schema import Schema
from kohya_ext.presets.script_run import ScriptRun, script_run
from kohya_ext.pysource.sources import TextSources

SCRIPT = """
def setup_parser():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--kind", choices=["a", "b"])
    parser.add_argument("--length", type=int, choices=[None, 150, 225])
    parser.add_argument("--words", type=str, nargs="*")
    parser.add_argument("--name")
    parser.add_argument("--on", action="store_true")
    return parser
"""
WORDS = (
    "--seed=5", "--seed 5", "--seed=5.0", "--seed=x", "--seed", "--rate=1e-4", "--rate=1", "--rate=x", "--rate=",
    "--kind=a", "--kind=c", "--length=150", "--length=100", "--words", "--words a b", "--name=", "--name x", "--name",
    "--on", "--on=true", "--on=", "--seed=-5", "--name=a=b",
)  # fmt: skip


@pytest.mark.parametrize("words", WORDS)
def test_what_argparse_refuses_is_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, object] = {"argparse": argparse}
    exec(SCRIPT, scope)
    setup = scope["setup_parser"]
    assert callable(setup)
    try:
        setup().parse_args(words.split())
        accepted = True
    except SystemExit:
        accepted = False
        capsys.readouterr()
    release = Release("v0", Schema("lora", "", {}, presets_list=False), training=TextSources({"train.py": SCRIPT}))
    run = script_run(LaunchCommands([], f"python train.py {words}", {}), release)
    assert run is not None
    assert (not run.refused and not run.strays) == accepted, run.refused


@pytest.mark.parametrize(("seed", "stops"), [(0, False), (42, False), (2**32 - 1, False), (2**32, True), (-1, True)])
def test_seeds_that_no_random_numbers_start_from(seed: int, stops: bool) -> None:
    numpy = pytest.importorskip("numpy")
    try:
        numpy.random.seed(seed)
        refused = False
    except ValueError:
        refused = True
    found = [(one.rule, one.names) for one in value_faults(ScriptRun("train_db.py", {"seed": seed}))]
    assert found == ([("training-stops", ("seed",))] if stops else [])
    assert refused == stops
