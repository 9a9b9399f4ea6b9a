"""Validation on the real scripts: what it says is right, and the training does not notice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kohya_ext.validation import records
from tests.upstream import rig
from tests.upstream.rig_bench import (
    EMA,
    EVERY_STEP,
    MAIN,
    NEWEST,
    OLD,
    STEPS,
    TWO_PROCESSES,
    Bench,
    assert_identical,
    remove,
)

pytestmark = pytest.mark.upstream

BY_HAND = Path(__file__).with_name("validation_by_hand.py")
ADAMW = ("--optimizer_type=AdamW", "--optimizer_args", "weight_decay=0.01", "--learning_rate=1e-4")
FUSED = ("--fused_backward_pass", "--max_grad_norm=0")
TWO_EPOCHS = ("--max_train_epochs=2", "--save_every_n_epochs=1", "--save_state")
WORKERS = ("--max_data_loader_n_workers=2",)
SETTINGS = {
    "plain": ("full", ADAMW),
    "accumulation": ("full", ("--gradient_accumulation_steps=2", "--shuffle_caption", *WORKERS)),
    "fused": ("full", FUSED),
    "lora": ("lora", (*ADAMW, "--scale_weight_norms=0.1", *WORKERS)),
    "fine_tune": ("fine_tune", ADAMW),
}
RUNS = [(tree, name) for tree in (MAIN, NEWEST, OLD) for name in SETTINGS if (tree, name) != (OLD, "fused")]
FLUX = ("--network_module=networks.lora_flux", "--network_dim=4", "--network_train_unet_only",
        "--cache_text_encoder_outputs", "--optimizer_type=AdamW", "--learning_rate=1e-3")  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    yield Bench(tmp_path_factory.mktemp("patched"))


@pytest.fixture
def held(tmp_path: Path) -> Path:
    """Two images of the training set's, mirrored: 256 x 256, so that nothing is resized."""
    from PIL import Image, ImageOps

    folder = tmp_path / "held"
    folder.mkdir()
    for number in (0, 1):
        source = rig.work() / "assets" / "data" / "1_rig" / f"img{number}.png"
        with Image.open(source) as image:
            ImageOps.mirror(image).save(folder / source.name)
        shutil.copy(source.with_suffix(".txt"), folder)
    return folder


def watched(held: Path, timesteps: int = 1) -> tuple[str, str]:
    return f"--kohya_ext_validate={held}", f"--kohya_ext_validation_timesteps={timesteps}"


def rows(run: rig.Run) -> list[records.Row]:
    return records.validations(run.folder / f"{run.name}{records.VALIDATIONS}")


def assert_same_run(one: rig.Run, other: rig.Run) -> None:
    """Weights and states: the same files with the same contents."""

    def files(run: rig.Run) -> dict[str, Path]:
        found = [path for path in run.folder.rglob("*") if path.suffix in (".safetensors", ".bin", ".pkl", ".json")]
        names = {str(path.relative_to(run.folder)).replace(run.name, ""): path for path in found}
        return {name: path for name, path in names.items() if not name.endswith(records.SETTINGS)}

    ours, theirs = files(one), files(other)
    assert ours.keys() == theirs.keys() and ours
    for name, path in ours.items():
        if name.endswith(".safetensors"):
            from safetensors.torch import load_file

            assert_identical(load_file(path), load_file(theirs[name]))
        elif name.endswith(".json"):
            assert path.read_text() == theirs[name].read_text()
        else:
            assert_same(torch.load(path, weights_only=False), torch.load(theirs[name], weights_only=False))


def assert_same(one: object, other: object) -> None:
    if isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor) and torch.equal(one, other)
    elif isinstance(one, dict):
        assert isinstance(other, dict) and one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert isinstance(other, (list, tuple)) and len(one) == len(other)
        for first, second in zip(one, other, strict=True):
            assert_same(first, second)
    else:
        assert repr(one) == repr(other)


@pytest.mark.parametrize(("tree", "name"), RUNS)
def test_the_training_does_not_notice(bench: Bench, held: Path, tree: str, name: str) -> None:
    kind, flags = SETTINGS[name]
    plain = bench.train(tree, kind, f"unwatched-{name}", *flags, *EMA, *TWO_EPOCHS)
    run = bench.train(tree, kind, f"watched-{name}", *flags, *EMA, *TWO_EPOCHS, *watched(held))
    found = rows(run)
    assert [row.epoch for row in found if row.weights == "raw"] == [0, 1, 2]
    assert [row.epoch for row in found if row.weights == "ema"] == [1, 2]
    assert_same_run(plain, run)
    remove(plain)
    remove(run)


@pytest.mark.parametrize(("tree", "kind"), [(MAIN, "full"), (OLD, "lora")])
def test_two_lengths_of_the_ema_are_measured(bench: Bench, held: Path, tree: str, kind: str) -> None:
    power = ("--enable_ema", "--ema_schedule=power", "--ema_sigma_rel")
    found = {}
    for widths in (("0.05", "0.2"), ("0.05",), ("0.2",)):
        name = f"widths-{'-'.join(widths)}"
        run = bench.train(tree, kind, name, *ADAMW, *power, *widths, *TWO_EPOCHS, *watched(held))
        found[widths] = {(row.epoch, row.weights): row.loss for row in rows(run)}
        remove(run)
    both, first, second = found.values()
    assert {name for _, name in both} == {"raw", "ema", "ema2"} and both[2, "ema"] != both[2, "ema2"]
    assert both[2, "ema"] == first[2, "ema"] and both[2, "ema2"] == second[2, "ema"]
    assert both[2, "raw"] == first[2, "raw"] == second[2, "raw"]


@pytest.mark.parametrize("tree", [MAIN, NEWEST])
def test_flux_does_not_notice_either(bench: Bench, held: Path, tree: str) -> None:
    def train(name: str, *flags: str) -> rig.Run:
        run = rig.train_family(bench.tree(tree), rig.environment(tree), name, "flux_train_network.py",
                               *FLUX, *EMA, *TWO_EPOCHS, *flags)  # fmt: skip
        assert run.returncode == 0, run.output[-4000:]
        return run

    plain, run = train(f"{tree}-flux-unwatched"), train(f"{tree}-flux-watched", *watched(held))
    assert len(rows(run)) == 5
    assert_same_run(plain, run)
    remove(plain)
    remove(run)


@pytest.mark.parametrize("tree", rig.TREES)
def test_it_is_what_the_saved_files_give_by_hand(bench: Bench, held: Path, tree: str) -> None:
    run = bench.train(tree, "full", "by-hand", *ADAMW, "--max_train_steps=2", *EMA, *watched(held, 2))
    last = {row.weights: row.loss for row in rows(run)}
    for weights, suffix in (("raw", ""), ("ema", "-ema")):
        words = [str(BY_HAND), str(run.folder / f"{run.name}{suffix}.safetensors"), str(held), "2"]
        line = 'rig=$1 tree=$2 python=$3; shift 3; . "$rig/env.sh"; cd "$tree"; exec "$python" "$@"'
        python = str(rig.work() / "venv" / rig.environment(tree) / "bin" / "python")
        done = subprocess.run(
            ["bash", "-c", line, "bash", os.environ["KOHYA_RIG"], str(bench.tree(tree)), python, *words,
             str(rig.work() / "assets" / "tokenizers")],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx(last[weights], rel=2e-6)
    remove(run)


@pytest.mark.parametrize("tree", [MAIN, OLD])
def test_the_same_weights_have_the_same_loss(bench: Bench, held: Path, tree: str) -> None:
    still = ("--optimizer_type=SGD", "--optimizer_args", "momentum=0", "--learning_rate=1e-30")
    run = bench.train(tree, "full", "still", *still, "--kohya_ext_validate_every=1", *watched(held))
    assert [row.step for row in rows(run)] == list(range(STEPS + 1))
    assert len({row.loss for row in rows(run)}) == 1
    remove(run)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_best_is_kept(bench: Bench, held: Path, kind: str) -> None:
    flags = (*EVERY_STEP, "--save_best", "--kohya_ext_validate_every=1", "--learning_rate=1e-4")
    run = bench.train(MAIN, kind, "best", *ADAMW, *EMA, *flags, *watched(held))
    lowest = records.lowest(row for row in rows(run) if row.step)
    assert lowest is not None
    suffix = "-ema" if lowest.weights == "ema" else ""
    assert_identical(run.tensors("-best"), run.tensors(f"{suffix}-step{lowest.step:08d}"))
    assert run.metadata("-best")["kohya_ext_best_loss"] == repr(lowest.loss)
    remove(run)


def test_a_split_trains_on_the_rest(bench: Bench) -> None:
    run = bench.train(MAIN, "full", "split", *ADAMW, "--max_train_epochs=2", "--kohya_ext_validation_split=0.34",
                      "--kohya_ext_validation_timesteps=1")  # fmt: skip
    found = rows(run)
    assert [row.step for row in found] == [0, 4, 8] and {row.images for row in found} == {2}
    remove(run)


def test_two_processes(bench: Bench, held: Path) -> None:
    launch = TWO_PROCESSES.format(port=29541)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    try:
        flags = (*ADAMW, *EMA, "--max_train_epochs=2")
        plain = bench.train(MAIN, "full", "two", *flags, launch=launch)
        run = bench.train(MAIN, "full", "two-watched", *flags, *watched(held), launch=launch)
    finally:
        del os.environ["ACCELERATE_USE_CPU"]
    assert [row.step for row in rows(run) if row.weights == "raw"] == [0, 3, 6]
    for suffix in ("", "-ema"):
        assert_identical(plain.tensors(suffix), run.tensors(suffix))
    remove(plain)
    remove(run)
