"""`--ema_snapshot_every`: when snapshots are written, what they hold, and what becomes of those of an earlier run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import safetensors.torch  # noqa: E402

from kohya_ext.ema.posthoc import ema_profile  # noqa: E402
from kohya_ext.ema.schedules import Power  # noqa: E402
from kohya_ext.ema.snapshot import StoredEma  # noqa: E402
from kohya_ext.posthoc.reconstruction import plan, target_of, write  # noqa: E402
from kohya_ext.posthoc.snapshots import read_run  # noqa: E402
from kohya_ext.runtime import averaging, checkpoints, optimizers, snapshots  # noqa: E402
from kohya_ext.runtime import run as run_module  # noqa: E402
from kohya_ext.runtime.ema_outputs import Twins  # noqa: E402
from tests.runtime.conftest import Run, same  # noqa: E402
from tests.runtime.test_saving import save_on_epoch_end_or_stepwise_common  # noqa: E402
from tests.runtime.test_state import watched  # noqa: E402

Begin = Callable[..., Run]
WIDTHS = [0.05, 0.2]
POWER = {"ema_schedule": "power", "ema_sigma_rel": WIDTHS}


def save(run: Run, step: int) -> None:
    def saver(file: str, *_: Any) -> None:
        safetensors.torch.save_file(run.weights(), file, {"format": "pt"})

    checkpoints.save_during_training(
        save_on_epoch_end_or_stepwise_common, run.args, False, [], True, True, 0, 1, step, saver, saver
    )


def save_last(run: Run) -> None:
    """As a network saves itself at the end."""

    def write(path: str, average: Any) -> None:
        safetensors.torch.save_file(run.weights(), path, average.metadata() if average else None)

    Twins(run.args, averaging.kept()[0].options).save(str(Path(run.args.output_dir, "dog.safetensors")), write)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "dog-ema-snapshots").glob("*"))


def steps(folder: Path, name: str = "ema") -> list[int]:
    return [int(one[-20:-12]) for one in names(folder) if one.startswith(f"{name}-step")]


def truth(run: Run, width: float, step: int) -> dict[str, Any]:
    profile = ema_profile(Power(width), step, step)[1:]
    return {
        name: sum(share * weights[name].double() for share, weights in zip(profile, run.history, strict=False))
        for name in run.history[0]
    }


def off(made: dict[str, Any], run: Run, width: float, step: int) -> float:
    expected = truth(run, width, step)
    return max(float((made[name].double() - expected[name]).abs().max()) for name in expected)


def test_every_so_many_steps_and_at_the_end(begin: Begin, tmp_path: Path) -> None:
    run = begin(**POWER, ema_snapshot_every=3)
    run.step(7)
    assert steps(tmp_path) == [3, 6] == steps(tmp_path, "ema2")
    save(run, 7)
    assert steps(tmp_path) == [3, 6]
    run.step(3)
    save_last(run)
    assert steps(tmp_path) == [3, 6, 9, 10] == steps(tmp_path, "ema2")
    for name, width in (("ema", 0.05), ("ema2", 0.2)):
        for step in (3, 6, 9, 10):
            path = tmp_path / "dog-ema-snapshots" / f"{name}-step{step:08d}.safetensors"
            stored = StoredEma(path, path)
            made = {key: stored.part(f"0.{key}", slice(None)).view(value.shape) for key, value in run.weights().items()}
            assert off(made, run, width, step) < 1e-6


def test_with_each_save(begin: Begin, tmp_path: Path) -> None:
    run = begin(**POWER, ema_snapshot_every="save")
    run.step(2)
    assert not (tmp_path / "dog-ema-snapshots").exists()
    save(run, 2)
    run.step(3)
    save(run, 5)
    assert steps(tmp_path) == [2, 5] == steps(tmp_path, "ema2")


def test_in_a_fused_backward_pass(begin: Begin, tmp_path: Path) -> None:
    """There the optimizer's `step` is never called: a step is over when a parameter comes round again."""
    run = begin(**POWER, ema_snapshot_every=2)
    fused = argparse.Namespace(optimizer=run.optimizer)

    def step_param(parameter: Any, group: dict[str, Any]) -> None:
        with torch.no_grad():
            parameter -= group["lr"] * parameter.grad

    optimizers.patch_fused_backward(lambda optimizer: setattr(optimizer, "step_param", step_param), fused)
    for _ in range(5):
        run.model(torch.randn(4, 3)).pow(2).mean().backward()
        for parameter in run.model.parameters():
            fused.step_param(parameter, run.optimizer.param_groups[0])
            parameter.grad = None
        run.history.append(run.weights())
    assert steps(tmp_path) == [2, 4]
    for step in (2, 4):
        path = tmp_path / "dog-ema-snapshots" / f"ema2-step{step:08d}.safetensors"
        stored = StoredEma(path, path)
        made = {key: stored.part(f"0.{key}", slice(None)).view(value.shape) for key, value in run.weights().items()}
        assert off(made, run, 0.2, step) < 1e-6


def test_several_optimizers(begin: Begin, tmp_path: Path) -> None:
    run = begin(**POWER, ema_snapshot_every=2)
    other = torch.nn.Linear(3, 2)
    second = torch.optim.SGD(other.parameters(), lr=0.5)
    averaging.follow(second)
    after = []
    for _ in range(3):
        other(torch.randn(4, 3)).sum().backward()
        run.step()
        second.step()
        after.append(other.bias.detach().clone())
    path = tmp_path / "dog-ema-snapshots" / "ema-step00000002.safetensors"
    stored = StoredEma(path, path)
    assert list(stored.shapes) == [
        "optimizer0.0.weight", "optimizer0.0.bias", "optimizer1.parameter.0", "optimizer1.parameter.1"
    ]  # fmt: skip
    profile = ema_profile(Power(0.05), 2, 2)[1:]
    expected = sum(share * weights.double() for share, weights in zip(profile, after, strict=False))
    assert float((stored.part("optimizer1.parameter.1", slice(None)) - expected).abs().max()) < 1e-6


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-6), ("float16", 5e-4), ("bfloat16", 5e-3)])
@pytest.mark.parametrize("only", [False, True])
def test_an_ema_of_another_length_is_made_of_them(
    begin: Begin, tmp_path: Path, dtype: str, most: float, only: bool
) -> None:
    run = begin(**POWER, ema_snapshot_every=1, ema_snapshot_dtype=dtype, **({"ema_save": "only"} if only else {}))
    run.step(10)
    save_last(run)
    assert ("reference.safetensors" in names(tmp_path)) == (dtype != "float32")
    found = read_run([tmp_path])
    assert len(found.snapshots) == 20 and all(one.stored for one in found.snapshots)
    made = plan(found, target_of(found, sigma_rel=0.1))
    write(made, tmp_path / "new.safetensors")
    assert off(safetensors.torch.load_file(tmp_path / "new.safetensors"), run, 0.1, 10) < most
    assert made.mixture.error < 1e-4 and (made.mixture.rounding > 1e-5) == (dtype != "float32")


def test_only_the_newest_are_kept(begin: Begin, tmp_path: Path) -> None:
    run = begin(**POWER, ema_snapshot_every=1, ema_snapshot_keep=3, ema_snapshot_dtype="float16")
    run.step(6)
    assert steps(tmp_path) == [3, 4, 5] == steps(tmp_path, "ema2")
    assert "reference.safetensors" in names(tmp_path)


def test_a_resumed_run_goes_on_and_drops_what_the_interrupted_one_had_later(begin: Begin, tmp_path: Path) -> None:
    settings = {**POWER, "ema_snapshot_every": 2, "ema_snapshot_dtype": "float16"}
    accelerator = watched(run := begin(**settings))
    run.step(4)
    accelerator.save_state(str(tmp_path / "state"))
    generator = torch.get_rng_state()
    run.step(3)
    assert steps(tmp_path) == [2, 4, 6]
    resumed = begin(**settings, resume=str(tmp_path / "state"))
    watched(resumed).load_state(str(tmp_path / "state"))
    assert steps(tmp_path) == [2, 4] == steps(tmp_path, "ema2")
    torch.set_rng_state(generator)
    resumed.step(5)
    assert steps(tmp_path) == [2, 4, 6, 8] == steps(tmp_path, "ema2")
    assert same(resumed.history[2], run.history[-1])


def test_a_state_saved_before_its_snapshot_was_due_to_be_written(begin: Begin, tmp_path: Path) -> None:
    """The snapshot of a step is written when the next one begins: a run that is resumed in between writes it."""
    settings = {**POWER, "ema_snapshot_every": 4}
    accelerator = watched(run := begin(**settings))
    run.step(4)
    assert not (tmp_path / "dog-ema-snapshots").exists()
    accelerator.save_state(str(tmp_path / "state"))
    resumed = begin(**settings, resume=str(tmp_path / "state"))
    watched(resumed).load_state(str(tmp_path / "state"))
    resumed.step(1)
    assert steps(tmp_path) == [4] == steps(tmp_path, "ema2")


def test_those_of_another_run_stop_this_one(begin: Begin, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = begin(**POWER, ema_snapshot_every=2)
    accelerator = watched(run)
    run.step(3)
    with pytest.raises(SystemExit):
        begin(**POWER, ema_snapshot_every=2)
    assert "dog-ema-snapshots contains snapshots of another run" in capsys.readouterr().err
    begin(**POWER)  # writes none
    accelerator.save_state(str(tmp_path / "state"))
    for path in (tmp_path / "state").glob("kohya_ext*"):
        path.unlink()
    with pytest.raises(SystemExit):
        watched(begin(**POWER, ema_snapshot_every=2, resume="state")).load_state(str(tmp_path / "state"))
    assert "that this run does not continue" in capsys.readouterr().err
    assert steps(tmp_path) == [2]


def test_a_full_disk_stops_nothing_and_leaves_nothing(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, *_: Any) -> None:
        raise OSError(28, "No space left on device")

    run = begin(**POWER, ema_snapshot_every=2)
    run.step(3)
    with monkeypatch.context() as patched:
        patched.setattr(snapshots, "write_snapshot", full)
        run.step(2)
    assert "the snapshot of step 4 could not be written" in capsys.readouterr().err
    assert run_module.run.reminders
    run.step(2)
    assert steps(tmp_path) == [2, 6]


def test_only_the_main_process_writes(begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    run = begin(**POWER, ema_snapshot_every=2)
    run.step(5)
    assert not (tmp_path / "dog-ema-snapshots").exists()


def test_the_start_says_how_many_bytes(begin: Begin, capsys: pytest.CaptureFixture[str]) -> None:
    begin(**POWER, ema_snapshot_every=2, ema_snapshot_dtype="float16").step()
    said = capsys.readouterr().out
    assert said.count("every 2 steps a snapshot of 1.6e-05 MB (float16)") == 2
