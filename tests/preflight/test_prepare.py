"""A command made ready: what its outputs, prompts and missing files become."""

from __future__ import annotations

from pathlib import Path

import pytest

from kohya_ext.core.errors import UsageError
from kohya_ext.preflight.arguments import ScriptCommand
from kohya_ext.preflight.prepare import Workplace, prepare
from tests.tensors.test_families import REFINERS, refiner


def prepared(tmp_path: Path, *words: str) -> tuple[ScriptCommand, Workplace]:
    place = Workplace(tmp_path / "place")
    place.folder.mkdir(parents=True)
    command = ScriptCommand("train_network.py", list(words))
    prepare(command, place)
    return command, place


def test_one_sample_of_the_largest_size(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat --w 1024 --h 768 --s 28\n# a note\na dog --w 832 --h 1216 --l 7 --s 40\n")
    command, place = prepared(tmp_path, f"--sample_prompts={prompts}", "--sample_every_n_epochs=1")
    assert Path(str(command.value("sample_prompts"))).read_text() == "an image --w 1024 --h 1216 --s 1\n"
    assert place.notes == []


def test_samples_that_cannot_be_read(tmp_path: Path) -> None:
    for name in ("prompts.json", "gone.txt"):
        words = (f"--sample_prompts={tmp_path / name}", "--sample_every_n_steps=9", "--sample_at_first", "--seed=1")
        command, place = prepared(tmp_path / name.partition(".")[0], *words)
        assert command.words == ["--seed=1"]
        assert "sample images are not counted" in place.notes[0]


def test_prompts_that_are_empty(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n")
    command, place = prepared(tmp_path, f"--sample_prompts={prompts}", "--sample_every_n_epochs=1")
    assert (command.words, len(place.notes)) == ([], 1)
    assert place.notes[0].endswith("prompts.txt is empty: sample images are not counted")


def test_prompts_of_a_run_that_samples_nothing_stay(tmp_path: Path) -> None:
    assert prepared(tmp_path, "--sample_prompts=p.txt")[0].words == ["--sample_prompts=p.txt"]


@pytest.mark.parametrize("form", REFINERS)
def test_the_refiner_is_refused_by_its_tensors(tmp_path: Path, form: str) -> None:
    path = refiner(tmp_path / "mine", form)
    with pytest.raises(UsageError, match="refiner"):
        prepared(tmp_path, f"--pretrained_model_name_or_path={path}")
