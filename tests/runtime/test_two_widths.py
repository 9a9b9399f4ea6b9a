"""Two EMAs of one run, by `--ema_sigma_rel A B`: each is, bit for bit, what a run with its width alone keeps."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import safetensors.torch  # noqa: E402

from kohya_ext.ema.blend import Blender  # noqa: E402
from kohya_ext.evaluation.models import columns  # noqa: E402
from kohya_ext.posthoc.snapshots import read_run  # noqa: E402
from kohya_ext.runtime import averaging, checkpoints, optimizers, stopwatch  # noqa: E402
from kohya_ext.runtime.ema_outputs import Twins  # noqa: E402
from kohya_ext.spec.flags import SIGMA_REL  # noqa: E402
from tests.runtime.conftest import Run, same  # noqa: E402
from tests.runtime.test_saving import save_on_epoch_end_or_stepwise_common  # noqa: E402
from tests.runtime.test_state import watched  # noqa: E402

Begin = Callable[..., Run]
WIDTHS = (0.05, 0.2)


def of_all() -> list[dict[str, Any]]:
    """The weights of every EMA of the run in progress."""
    found = []
    for average in averaging.kept():
        with average.in_place():
            found.append({name: p.detach().clone() for name, p in average.models[0].named_parameters()})
    return found


def trained(begin: Begin, width: Any, steps: int = 7) -> Run:
    run = begin(ema_schedule="power", ema_sigma_rel=width)
    run.step(steps)
    return run


def test_each_is_what_a_run_of_its_own_keeps(begin: Begin) -> None:
    alone = []
    for width in WIDTHS:
        trained(begin, width)
        alone += of_all()
    run = trained(begin, list(WIDTHS))
    raw = run.weights()
    both = of_all()
    assert [same(one, other) for one, other in zip(both, alone, strict=True)] == [True, True]
    assert not same(*both)
    assert same(run.weights(), raw)


def test_in_a_fused_backward_pass_as_well(begin: Begin) -> None:
    run = trained(begin, list(WIDTHS))
    plain = of_all()
    run = begin(ema_schedule="power", ema_sigma_rel=list(WIDTHS))
    fused = argparse.Namespace(optimizer=run.optimizer)

    def step_param(parameter: Any, group: dict[str, Any]) -> None:
        with torch.no_grad():
            parameter -= group["lr"] * parameter.grad

    optimizers.patch_fused_backward(lambda optimizer: setattr(optimizer, "step_param", step_param), fused)
    for _ in range(7):
        run.model(torch.randn(4, 3)).pow(2).mean().backward()
        for parameter in run.model.parameters():
            fused.step_param(parameter, run.optimizer.param_groups[0])
            parameter.grad = None
    assert [same(one, other) for one, other in zip(of_all(), plain, strict=True)] == [True, True]


def save(run: Run, step: int) -> None:
    def saver(file: str, *_: Any) -> None:
        safetensors.torch.save_file(run.weights(), file, {"format": "pt"})

    checkpoints.save_during_training(
        save_on_epoch_end_or_stepwise_common, run.args, False, [], True, True, 0, 1, step, saver, saver
    )


@pytest.mark.parametrize("only", [False, True])
def test_checkpoints_are_saved_from_each(begin: Begin, tmp_path: Path, only: bool) -> None:
    run = begin(ema_schedule="power", ema_sigma_rel=list(WIDTHS), **({"ema_save": "only"} if only else {}))
    run.step(7)
    save(run, 7)
    names = ["dog-step00000007", "dog-ema2-step00000007"] if only else ["dog-ema-step00000007", "dog-ema2-step00000007"]
    for name, expected in zip(names, of_all(), strict=True):
        assert same(safetensors.torch.load_file(tmp_path / f"{name}.safetensors"), expected)
    assert len(list(tmp_path.iterdir())) == 3 - only


def test_what_saves_itself_is_saved_from_each_and_rotated(begin: Begin, tmp_path: Path) -> None:
    run = begin(ema_schedule="power", ema_sigma_rel=list(WIDTHS), save_every_n_epochs=1, save_last_n_epochs=1)
    twins = Twins(run.args, averaging.kept()[0].options)
    for epoch in (1, 2):
        run.step(3)

        def write(path: str, average: Any) -> None:
            safetensors.torch.save_file(run.weights(), path, average.metadata() if average else None)

        twins.save(str(tmp_path / f"dog-{epoch:06d}.safetensors"), write)
    for suffix, expected in zip(("-ema", "-ema2"), of_all(), strict=True):
        assert same(safetensors.torch.load_file(tmp_path / f"dog{suffix}-000002.safetensors"), expected)
        assert not (tmp_path / f"dog{suffix}-000001.safetensors").exists()
    snapshots = read_run([tmp_path]).snapshots
    assert {one.kind for one in snapshots} == {"raw weights", "EMA, power 0.05", "EMA, power 0.2"}
    shown = [column.label for column in columns([tmp_path / "dog-000002.safetensors"])]
    assert shown == ["dog, epoch 2", "dog, epoch 2, EMA", "dog, epoch 2, EMA 2"]


def test_a_resumed_run_is_the_uninterrupted_one(begin: Begin, tmp_path: Path) -> None:
    run = begin(ema_schedule="power", ema_sigma_rel=list(WIDTHS))
    accelerator = watched(run)
    run.step(4)
    accelerator.save_state(str(tmp_path / "state"))
    generator = torch.get_rng_state()
    run.step(4)
    expected = of_all()
    resumed = begin(ema_schedule="power", ema_sigma_rel=list(WIDTHS))
    watched(resumed).load_state(str(tmp_path / "state"))
    torch.set_rng_state(generator)
    resumed.step(4)
    assert [same(one, other) for one, other in zip(of_all(), expected, strict=True)] == [True, True]


def test_a_state_of_one_width_begins_the_second_anew(
    begin: Begin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accelerator = watched(run := begin(ema_schedule="power", ema_sigma_rel=WIDTHS[0]))
    run.step(3)
    accelerator.save_state(str(tmp_path / "state"))
    watched(begin(ema_schedule="power", ema_sigma_rel=list(WIDTHS))).load_state(str(tmp_path / "state"))
    assert "contains no EMA of width 0.2: this run starts a new one" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("0.05", (0.05,)),
        ("0.05 0.1", (0.05, 0.1)),
        ("0.05,0.1", (0.05, 0.1)),
        ([0.05, "0.1"], (0.05, 0.1)),
        (0.1, (0.1,)),
    ],
)
def test_one_width_or_two_however_they_come(given: Any, taken: tuple[float, ...]) -> None:
    assert SIGMA_REL.read({SIGMA_REL.key: given}) == taken


@pytest.mark.parametrize("given", ["", [], "0.05 0.1 0.2", "0.1 0.1", "0.05 wide", [0.05, None], {"a": 1}])
def test_other_values_are_refused(given: Any) -> None:
    assert "expected a number above 0" in str(SIGMA_REL.fault({SIGMA_REL.key: given}))


def test_both_take_one_pass_over_the_weights(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    blend = Blender.blend

    def counted(self: Blender, averaged: Any, updates: Any) -> None:
        passes.append(len(updates))
        blend(self, averaged, updates)

    monkeypatch.setattr(Blender, "blend", counted)
    trained(begin, list(WIDTHS), steps=5)
    of_all()
    assert passes == [2] * 5


def test_their_cost_is_said_once(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = iter(n * 3e-3 for n in range(10_000))
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    monkeypatch.setattr(stopwatch, "SETTLED", 4)
    trained(begin, list(WIDTHS), steps=40)
    said = [line for line in capsys.readouterr().out.splitlines() if "ms a step" in line]
    assert said == ["kohya_ext: both EMAs take 3 ms a step"]
