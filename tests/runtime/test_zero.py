"""The EMA of what DeepSpeed has divided: what a saver, a sampler and a state find, on a stand-in for its engine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

from kohya_ext.runtime import accelerators, averaging, options
from kohya_ext.runtime.average import Average
from kohya_ext.runtime.run import run
from kohya_ext.runtime.zero import is_engine
from tests.runtime.stand_in_engine import StandInEngine

STAGES = pytest.mark.parametrize("stage", [2, 3])


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()
    run.averages, run.joint_states = [], None


class Accelerator:
    """What of accelerate's we wrap."""

    def __init__(self) -> None:
        self.state = SimpleNamespace(destroy_process_group=distributed.destroy_process_group)
        self.saved: list[str | None] = []

    def end_training(self) -> None:
        self.state.destroy_process_group()

    def save_state(self, output_dir: str | None = None) -> None:
        self.saved.append(output_dir)

    def wait_for_everyone(self) -> None:
        pass


def start(stage: int, dtype: torch.dtype = torch.float32, **given: Any) -> tuple[nn.Module, StandInEngine, Average]:
    """A module of which one layer is frozen, its engine and its EMA."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(2, 2)).to(dtype)
    module[1].requires_grad_(False)
    values = {"enable_ema": True, "ema_decay": 0.5, "max_train_steps": 100, "deepspeed": True, **given}
    args = argparse.Namespace(output_dir=".", output_name="a", **values)
    settings = options.read(args)
    assert settings is not None
    averaging.begin(args, settings)
    averaging.meet(module)
    averaging.follow(torch.optim.SGD(module[0].parameters(), lr=1.0))
    engine = StandInEngine(module, stage)
    assert is_engine(engine) and not is_engine(module)
    averaging.attach(engine, Accelerator())
    return module, engine, averaging.kept()[0]


def by_hand(first: Tensor, moves: list[int]) -> tuple[Tensor, Tensor]:
    """(weights, EMA of decay .5) after steps that have subtracted `moves`."""
    weights, ema, total = first.double(), torch.zeros_like(first, dtype=torch.float64), 0.0
    for move in moves:
        weights = weights - move
        ema, total = 0.5 * ema + 0.5 * weights, 0.5 * total + 0.5
    return weights, ema / total


def copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@STAGES
def test_only_real_steps_count_and_files_get_whole_tensors(stage: int) -> None:
    torch.manual_seed(0)  # as in `start`
    first = copied(nn.Sequential(nn.Linear(3, 4), nn.Linear(2, 2)))
    module, engine, average = start(stage, save_precision="float")
    for boundary, overflow in ((True, False), (False, False), (True, True), (True, False)):
        engine.boundary, engine.overflow = boundary, overflow
        engine.step()
    before = copied(module)
    assert average.ready()
    with average.saving():
        saved = copied(module)
    with averaging.raw_for_saving():
        raw = copied(module)
    weights, ema = by_hand(first["0.weight"], [1, 3])
    torch.testing.assert_close(saved["0.weight"].double(), ema)
    torch.testing.assert_close(raw["0.weight"].double(), weights)
    for found in (saved, raw):
        assert torch.equal(found["1.weight"], first["1.weight"])
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not average.swapped


@STAGES
def test_a_model_computes_with_the_ema_and_then_with_what_it_had(stage: int) -> None:
    module, engine, average = start(stage, torch.bfloat16)
    for _ in range(3):
        engine.step()
    weight: Any = module[0].weight

    def working() -> Tensor:
        return (weight.ds_tensor if stage == 3 else weight.data.view(-1)).clone()

    before = working()
    shadow = average.tracks[0].made().average_of("0.0.weight").reshape(-1)
    with pytest.raises(KeyboardInterrupt), average.in_place():
        assert torch.equal(working(), shadow.bfloat16())
        assert average.swapped
        raise KeyboardInterrupt
    assert torch.equal(working(), before) and not average.swapped
    assert engine.released == (2 if stage == 3 else 0)


@STAGES
def test_without_a_precision_for_files_the_ema_has_that_of_the_model(stage: int) -> None:
    module, engine, average = start(stage, torch.bfloat16)
    engine.step()
    with average.saving():
        assert {value.dtype for value in module.state_dict().values()} == {torch.bfloat16}


@STAGES
def test_a_state_goes_on(stage: int, tmp_path: Path) -> None:
    _, engine, average = start(stage)
    for _ in range(2):
        engine.step()
    averaging.save_state(str(tmp_path))
    before = average.tracks[0].made().average_of("0.0.weight").clone()
    health = average.health()
    _, _, again = start(stage)
    averaging.load_state(str(tmp_path))
    shadow = again.tracks[0].made()
    assert shadow.updates == 2 and torch.equal(shadow.average_of("0.0.weight"), before)
    assert health["ema_distance"] > 0


def test_samples_for_snapshots_are_of_the_ema(tmp_path: Path) -> None:
    _, engine, average = start(2)
    for _ in range(2):
        engine.step()
    names = [name for name, _, _ in average._entries()]
    raw, ema = {name: (weights, value) for name, weights, value in average._entries()}["0.0.weight"]
    assert names == ["0.0.weight", "0.0.bias"] and not torch.equal(raw, ema)
    with average.saving():
        (weights, value) = {name: pair for name, *pair in average._entries()}["0.0.weight"]
        assert torch.equal(weights, value) and torch.equal(weights, ema)


def test_the_first_rank_has_the_others_save_their_parts() -> None:
    start(2)
    states = run.joint_states
    told: list[dict[str, Any]] = []
    states._peers = SimpleNamespace(tell=told.append, tables=[[], []])
    wait = states._meeting(lambda: None)
    wait()
    states._save_mine = lambda *given, **named: None
    states._save_together(None)
    states.go_on()
    states.go_on()
    states._save_together(None)  # a script in which all ranks call it: nobody listens
    assert told == [{"save": None}, {"go on": True}]


def test_the_groups_of_processes_outlast_the_training() -> None:
    module = nn.Linear(2, 2)
    start(2)
    accelerator = Accelerator()
    averaging.attach(StandInEngine(module, 2), accelerator)
    accelerator.end_training()
    assert distributed.is_initialized()


def test_models_are_made_whole_and_any_optimizer_may_be_offloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten: list[bool] = []
    module = SimpleNamespace(unset_hf_deepspeed_config=lambda: forgotten.append(True))
    monkeypatch.setitem(sys.modules, "transformers.integrations.deepspeed", module)
    accelerators._leave_models_whole(argparse.Namespace(zero3_init_flag=True))
    assert not forgotten
    accelerators._leave_models_whole(argparse.Namespace(zero3_init_flag=False))
    assert forgotten
    settings: dict[str, Any] = {}
    plugin = SimpleNamespace(deepspeed_config=settings)
    accelerators._let_any_optimizer_be_offloaded(SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin)))
    accelerators._let_any_optimizer_be_offloaded(SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=None)))
    assert settings == {"zero_force_ds_cpu_optimizer": False}


def test_fsdp_is_refused_before_a_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    args = argparse.Namespace(output_dir=".", output_name="a", enable_ema=True, max_train_steps=100)
    with pytest.raises(SystemExit):
        accelerators.prepare_accelerator(lambda _: SimpleNamespace(distributed_type="DistributedType.FSDP"), args)
    assert "--deepspeed --zero_stage 3" in capsys.readouterr().err
