"""EMAs made of saved files against those of every step's weights in float64."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kohya_ext.core.errors import ConflictError, UsageError
from kohya_ext.ema.posthoc import ema_profile
from kohya_ext.ema.schedules import Constant, Debiased, Power, Schedule, Warmup
from kohya_ext.posthoc import reconstruction
from kohya_ext.posthoc.reconstruction import plan, target_of, write
from kohya_ext.posthoc.snapshots import read_run
from tests.posthoc.runs import STEPS, saved_run, snapshots_of


@pytest.mark.parametrize(
    "schedule", [Power(0.1), Debiased(0.95), Constant(0.95), Warmup(0.95)], ids=lambda schedule: schedule.name
)
@pytest.mark.parametrize("sigma_rel", [0.07, 0.15])
def test_it_is_the_ema_of_that_width_to_the_error_that_is_told(
    tmp_path: Path, schedule: Schedule, sigma_rel: float
) -> None:
    saved = saved_run(tmp_path, {"run": schedule}, raw=schedule.name == "power")
    run = read_run([tmp_path])
    made = plan(run, target_of(run, sigma_rel=sigma_rel))
    write(made, tmp_path / "new.safetensors")
    error = saved.distance(load_file(tmp_path / "new.safetensors"), ema_profile(Power(sigma_rel), STEPS, STEPS))
    assert error <= made.mixture.bound
    assert made.mixture.error < 0.1


def test_two_widths_in_one_pass_and_an_earlier_step(tmp_path: Path) -> None:
    saved = saved_run(tmp_path, {"run": Power(0.05), "wide": Power(0.10)}, raw=False)
    for path in tmp_path.glob("wide*"):  # as one run's files: told apart by what they say, not by their names
        path.rename(tmp_path / path.name.replace("wide-ema", "run-ema-ema"))
    paths = sorted(tmp_path.glob("*.safetensors"))
    run = read_run([path for path in paths if "ema-ema" not in path.name])
    assert {one.step for one in run.snapshots} == set(range(10, STEPS + 1, 10))
    made = plan(run, target_of(run, sigma_rel=0.1, step=80))
    assert all(one.step <= 80 for one in made.sources)
    write(made, tmp_path / "new.safetensors")
    profile = ema_profile(Power(0.1), 80, STEPS)
    assert saved.distance(load_file(tmp_path / "new.safetensors"), profile, step=80) <= made.mixture.bound


def test_snapshots_of_a_model_whose_saver_transposes_and_joins(tmp_path: Path) -> None:
    def convert(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        turned = weights["a.weight"].t().contiguous().half()
        joined = torch.cat([weights["b.bias"], weights["a.weight"].flatten()])
        return {"vae": torch.ones(5), "turned": turned, "joined": joined}

    saved = saved_run(tmp_path, {"run": Power(0.1)}, every=STEPS)
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    snapshots_of(saved, "run", Power(0.05), Power(0.1), convert=convert)
    run = read_run([tmp_path])
    made = plan(run, target_of(run, sigma_rel=0.15))
    write(made, tmp_path / "new.safetensors")
    new = load_file(tmp_path / "new.safetensors")
    assert new["turned"].dtype == torch.float16 and torch.equal(new["vae"], torch.ones(5))
    weights = {"a.weight": new["joined"][5:].view(12, 8), "b.bias": new["joined"][:5]}
    assert saved.distance(weights, ema_profile(Power(0.15), STEPS, STEPS)) <= made.mixture.worst
    assert torch.equal(new["turned"], weights["a.weight"].t().half())


def test_what_the_new_file_says_of_itself(tmp_path: Path) -> None:
    saved_run(tmp_path, {"run": Power(0.1)})
    run = read_run([tmp_path])
    write(plan(run, target_of(run, decay=0.98)), tmp_path / "new.safetensors")
    with safe_open(str(tmp_path / "new.safetensors"), framework="pt") as file:
        metadata = file.metadata()
    assert metadata["kohya_ext_ema_schedule"] == "debiased" and metadata["kohya_ext_ema_decay"] == "0.98"
    assert metadata["kohya_ext_ema_reconstructed_from"] == "32" and metadata["format"] == "pt"
    assert "kohya_ext_ema_sigma_rel" not in metadata
    # it is no snapshot of the run: a second reconstruction does not take it for one
    assert len(read_run([tmp_path]).snapshots) == 32
    with pytest.raises(UsageError, match="nothing but EMAs"):
        read_run([tmp_path / "new.safetensors"])


def test_what_is_no_weight_stays_and_types_are_kept(tmp_path: Path) -> None:
    saved_run(tmp_path, {"run": Power(0.1)}, dtype=torch.bfloat16)
    run = read_run([tmp_path])
    write(plan(run, target_of(run, sigma_rel=0.12)), tmp_path / "new.safetensors")
    made = load_file(tmp_path / "new.safetensors")
    assert torch.equal(made["position_ids"], torch.arange(3))
    assert made["a.weight"].dtype == torch.bfloat16


def test_the_rounding_of_16_bit_files_is_told(tmp_path: Path) -> None:
    (tmp_path / "fine").mkdir()
    (tmp_path / "coarse").mkdir()
    saved_run(tmp_path / "fine", {"run": Power(0.1)}, raw=False)
    coarse = saved_run(tmp_path / "coarse", {"run": Power(0.1)}, raw=False, dtype=torch.bfloat16)
    plans = []
    for folder in ("fine", "coarse"):
        run = read_run([tmp_path / folder])
        plans.append(plan(run, target_of(run, sigma_rel=0.12)))
    assert plans[0].mixture.rounding < 1e-3 and plans[1].mixture.rounding > 0.1
    write(plans[1], tmp_path / "new.safetensors")
    error = coarse.distance(load_file(tmp_path / "new.safetensors"), ema_profile(Power(0.12), STEPS, STEPS))
    assert error <= plans[1].mixture.bound + 2 * plans[1].mixture.rounding


def test_raw_epochs_without_a_word_about_steps(tmp_path: Path) -> None:
    saved = saved_run(tmp_path, {"run": Power(0.1)}, every=16)
    for path in tmp_path.glob("run-ema*"):
        path.unlink()
    for path in sorted(tmp_path.glob("run-step*")):
        epoch = int(re.findall(r"\d{8}", path.name)[0]) // 16
        from safetensors.torch import save_file

        save_file(load_file(path), str(tmp_path / f"run-{epoch:06d}.safetensors"), {"format": "pt"})
        path.unlink()
    last = tmp_path / "run.safetensors"
    save_file(load_file(last), str(last), {"format": "pt"})
    run = read_run([tmp_path])
    assert run.in_epochs and len(run.snapshots) == 10
    with pytest.raises(UsageError, match="use --sigma-rel"):
        target_of(run, decay=0.99)
    made = plan(run, target_of(run, sigma_rel=0.25))
    write(made, tmp_path / "new.safetensors")
    error = saved.distance(load_file(tmp_path / "new.safetensors"), ema_profile(Power(0.25), STEPS, STEPS))
    assert 0 < error <= made.mixture.bound


def test_nothing_is_written_where_weights_are_not_finite(tmp_path: Path) -> None:
    saved_run(tmp_path, {"run": Power(0.1)}, raw=False)
    from safetensors.torch import save_file

    with safe_open(str(tmp_path / "run-ema.safetensors"), framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(tmp_path / "run-ema.safetensors")
    tensors["a.weight"][3, 3] = torch.nan
    save_file(tensors, str(tmp_path / "run-ema.safetensors"), metadata)
    run = read_run([tmp_path])
    with pytest.raises(UsageError, match="NaN"):
        plan(run, target_of(run, sigma_rel=0.12))


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved_run(tmp_path, {"run": Power(0.1)}, raw=False)
    run = read_run([tmp_path])
    made = plan(run, target_of(run, sigma_rel=0.12))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reconstruction, "write_tensors", full)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ConflictError, match="no space left"):
        write(made, tmp_path / "new.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


MEGABYTES, FILES, TENSORS = 48, 8, 12
MEASURED = """
import resource, sys
from pathlib import Path
from kohya_ext.posthoc.reconstruction import plan, target_of, write
from kohya_ext.posthoc.snapshots import read_run

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
folder = Path(sys.argv[1])
run = read_run([folder])
before = peak()
write(plan(run, target_of(run, sigma_rel=0.15)), folder / "new.safetensors")
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the system has to say what a process has taken, in kilobytes")
def test_the_files_are_never_in_memory_whole(tmp_path: Path) -> None:
    size = MEGABYTES * (1 << 20) // 4 // TENSORS
    for number in range(1, FILES + 1):
        about = {"schedule": "power", "sigma_rel": "0.1", "update_every": "1", "start_step": "0", "dtype": "float32",
                 "steps": str(100 * number), "updates": str(100 * number)}  # fmt: skip
        weights = {f"weight{place}": torch.full((size,), float(number + place)) for place in range(TENSORS)}
        metadata = {f"kohya_ext_ema_{key}": value for key, value in about.items()}
        save_file(weights, tmp_path / f"mine-ema-step{100 * number:08d}.safetensors", metadata)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path)], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < MEGABYTES * FILES / 3  # a tensor of each file is there at a time, and scratch
