"""Which files belong together, and in which order they stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from kohya_ext.core.errors import UsageError
from kohya_ext.evaluation.models import CHECKPOINT, FOLDER, LORA, columns
from kohya_ext.runtime.ema_outputs import file_of_average
from kohya_ext.spec.outputs import EMA_SUFFIX
from tests.evaluation.painter import LORA_KEYS, models
from tests.tensors.test_families import refiner


def labels(*paths: Path, averages: bool = True) -> list[str]:
    return [column.label for column in columns(list(paths), averages=averages)]


def test_epoch_by_epoch_raw_beside_average(tmp_path: Path) -> None:
    given = models(tmp_path, "femme-000010", "femme", "femme-000002", "femme-step00000200")
    models(tmp_path, "femme-ema", "femme-ema-000010", "femme-ema-000002", "other")
    expected = [
        "femme, epoch 2", "femme, epoch 2, EMA", "femme, epoch 10", "femme, epoch 10, EMA",
        "femme, step 200", "femme", "femme, EMA",
    ]  # fmt: skip
    assert labels(*given) == expected
    assert labels(*given[::-1]) == expected
    assert labels(*given, averages=False) == [label for label in expected if "EMA" not in label]
    assert labels(tmp_path) == [*expected, "other"]


@pytest.mark.parametrize("name", ["femme", "femme-000010", "femme-step00000200", "a-ema-b", "x-ema"])
def test_the_names_are_those_that_training_writes(name: str, tmp_path: Path) -> None:
    raw = models(tmp_path, name)[0]
    average = Path(file_of_average(str(raw), name.split("-0")[0].split("-step")[0]))
    models(tmp_path, average.stem)
    if name.endswith(EMA_SUFFIX):
        return  # an output that is called so itself: it counts as an average
    assert [column.path for column in columns([raw])] == [raw, average]
    assert [column.average for column in columns([raw])] == [False, True]


def test_runs_stand_as_given(tmp_path: Path) -> None:
    assert labels(*models(tmp_path, "zebra", "ape-000001", "zebra-000001")) == [
        "zebra, epoch 1",
        "zebra",
        "ape, epoch 1",
    ]


def test_kinds(tmp_path: Path) -> None:
    (tmp_path / "pipe").mkdir()
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    lora = models(tmp_path, "lora", keys=LORA_KEYS)[0]
    kinds = {column.label: column.kind for column in columns([tmp_path / "pipe", lora, *models(tmp_path, "full")])}
    assert kinds == {"pipe": FOLDER, "lora": LORA, "full": CHECKPOINT}


@pytest.mark.parametrize(
    "keys",
    [("a.oft_blocks",), ("a.on_input", "a.weight"), ("a.diff",),
     ("a.a1.weight", "a.a2.weight", "a.b1.weight", "a.b2.weight"),
     ("a.to_q_lora.down.weight", "a.to_q_lora.up.weight"), ("base_model.model.a.c3a_kernel",)],
)  # fmt: skip
def test_every_adapter_needs_a_base(tmp_path: Path, keys: tuple[str, ...]) -> None:
    assert columns(models(tmp_path, "one", keys=dict.fromkeys(keys, (2, 2))))[0].kind == LORA


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(b"PK\3\4" + bytes(9))
    (tmp_path / "b.safetensors").write_bytes(b"no")
    (tmp_path / "empty").mkdir()
    for name, text in (
        ("a.ckpt", "pickle"),
        ("b.safetensors", "not a safetensors"),
        ("empty", "no model"),
        ("c", "exist"),
    ):
        with pytest.raises(UsageError, match=text):
            columns([tmp_path / name])


@pytest.mark.parametrize("form", ["file", "folder"])
def test_the_refiner_draws_nothing(tmp_path: Path, form: str) -> None:
    path = refiner(tmp_path / "mine", form)
    if path.is_dir():
        (path / "model_index.json").write_text("{}")
    with pytest.raises(UsageError, match="refiner"):
        columns([path])
