"""Validation in a script's own loop: what it measures, and that the training does not notice."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kohya_ext.validation import records
from kohya_ext.validation.measurements import measurements

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
from kohya_ext.runtime.heldout import HeldOut  # noqa: E402
from kohya_ext.runtime.loader import Pass  # noqa: E402
from kohya_ext.runtime.run import run  # noqa: E402
from kohya_ext.runtime.run_record import RunRecord  # noqa: E402
from kohya_ext.runtime.validation import Validation  # noqa: E402
from tests.runtime import little_kohya  # noqa: E402
from tests.runtime.little_kohya import SIDE, Trained, arguments  # noqa: E402

EMA = {"enable_ema": True, "ema_decay": 0.9}
Train = Callable[..., Trained]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, count in (("train", 5), ("held", 3)):
        (tmp_path / name).mkdir()
        for number in range(count):
            (tmp_path / name / f"{name}{'x' * number}.png").touch()
    return tmp_path


@pytest.fixture
def train(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Train]:
    little_kohya.install(monkeypatch)
    monkeypatch.setattr("sys.argv", ["sdxl_train.py"])

    def start(**settings: Any) -> Trained:
        little_kohya.reset()
        return little_kohya.train(folder, arguments(folder, **settings))

    yield start
    little_kohya.reset()


def rows(folder: Path) -> list[records.Row]:
    return records.validations(folder / "out" / "dog-validation.csv")


def held(folder: Path, **more: Any) -> dict[str, Any]:
    return {"kohya_ext_validate": str(folder / "held"), "kohya_ext_validation_timesteps": 2, **more}


def own(run: Trained) -> list[tuple[int, dict[str, float]]]:
    """What the script itself has logged."""
    return [(step, values) for step, values in run.seen if not any("validation" in name for name in values)]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        EMA,
        {"workers": 2, "flip": True},
        {"gradient_accumulation_steps": 2, **EMA},
        {"gradient_accumulation_steps": 2, "workers": 2},
        {"cache": True, "flip": True, **EMA},
        {"batch": 2, "repeats": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("every", [0, 2])
def test_the_training_does_not_notice(folder: Path, train: Train, settings: dict[str, Any], every: int) -> None:
    plain = train(**settings)
    watched = train(**settings, **held(folder, kohya_ext_validate_every=every))
    assert len(rows(folder)) > 2
    assert torch.equal(plain.weights, watched.weights)
    assert plain.ema is None or torch.equal(plain.ema, watched.ema)
    assert plain.seen == own(watched) and plain.average == watched.average
    assert plain.images == [names for names in watched.images if "held" not in Path(names[0]).name]
    assert plain.rng[0] == watched.rng[0] and torch.equal(plain.rng[1], watched.rng[1])
    assert plain.scheduler == watched.scheduler


def test_the_same_weights_have_the_same_loss_to_the_last_bit(folder: Path, train: Train) -> None:
    train(learning_rate=0.0, **EMA, **held(folder, kohya_ext_validate_every=1))
    found = rows(folder)
    assert [row.step for row in found if row.weights == "raw"] == list(range(11))
    assert len({row.loss for row in found if row.weights == "raw"}) == 1


def test_it_is_what_the_weights_give_by_hand(folder: Path, train: Train) -> None:
    """Noise and timestep repeated through the saved weights; in evaluation mode, so no dropout."""
    trained = train(**held(folder, kohya_ext_validation_seed=7))
    names = sorted(str(path) for path in (folder / "held").glob("*.png"))
    losses = []
    torch.manual_seed(5)
    bias = torch.nn.Linear(SIDE, SIDE)  # only for its form
    for one in measurements(names, 2, 7):
        torch.manual_seed(one.seed)
        latents = torch.full((1, SIDE), sum(map(ord, Path(names[one.number]).stem)) / 1000)
        noise, share = torch.randn_like(latents), torch.tensor([int(one.quantile * 1000)]) / 1000
        given = latents * (1 - share[:, None]) + noise * share[:, None]
        losses.append((torch.nn.functional.linear(given, trained.weights, trained.bias) - noise).square().mean().item())
    assert bias.weight.shape == trained.weights.shape
    means = [sum(losses[start : start + 2]) / 2 for start in range(0, 6, 2)]
    assert rows(folder)[-1].loss == sum(means) / 3


def test_steps_epochs_and_losses_are_the_scripts(
    folder: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(gradient_accumulation_steps=2, **EMA, **held(folder))
    found = rows(folder)
    assert [(row.step, row.epoch, row.weights) for row in found] == [
        (0, 0, "raw"), (3, 1, "raw"), (3, 1, "ema"), (6, 2, "raw"), (6, 2, "ema"),
    ]  # fmt: skip
    logged = {step: values for step, values in run.seen if any("validation" in name for name in values)}
    assert logged[3] == {f"kohya_ext/validation/{row.weights}": row.loss for row in found if row.step == 3}
    losses = records.losses(folder / "out" / "dog-losses.csv")
    assert [step for step, _ in losses] == [1, 1, 2, 2, 3, 4, 4, 5, 5, 6]
    assert [loss for _, loss in losses] == [values["loss"] for _, values in own(run)]
    assert math.isnan(found[0].train_loss) and found[1].train_loss == pytest.approx(sum(v for _, v in losses[:5]) / 5)
    said = capsys.readouterr().out
    assert "3 images held out" in said and "they may not" not in said
    assert re.search(r"validation after step 6 \(epoch 2\): raw [\d.]+ ± [\d.]+ \(to the lowest so far", said)


def test_the_length_of_the_ema_can_be_chosen_by_measurement(
    folder: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    both = {"ema_schedule": "power", "ema_sigma_rel": [0.05, 0.2]}
    plain = train(enable_ema=True, **both)
    watched = train(enable_ema=True, **both, **held(folder))
    assert torch.equal(plain.weights, watched.weights)
    assert [row.weights for row in rows(folder) if row.step == 10] == ["raw", "ema", "ema2"]
    last = {row.weights: row.loss for row in rows(folder)}
    said = capsys.readouterr().out
    assert "EMA of width 0.05 " in said and "EMA of width 0.2 " in said
    for width, name in ((0.05, "ema"), (0.2, "ema2")):
        train(enable_ema=True, ema_schedule="power", ema_sigma_rel=width, **held(folder))
        assert {row.weights: row.loss for row in rows(folder)}["ema"] == last[name]


def test_every_n_steps_and_at_the_end(folder: Path, train: Train) -> None:
    train(**held(folder, kohya_ext_validate_every=4))
    assert [row.step for row in rows(folder)] == [0, 4, 8, 10]


def test_a_run_that_ends_within_an_epoch(folder: Path, train: Train) -> None:
    """Kohya leaves its loop at max_train_steps, which is no multiple of the epoch's."""
    plain = train(max_train_epochs=3, gradient_accumulation_steps=4)
    watched = train(max_train_epochs=3, gradient_accumulation_steps=4, **held(folder))
    assert torch.equal(plain.weights, watched.weights) and rows(folder)[-1].step == 6


def test_a_split_takes_images_out_of_the_training(folder: Path, train: Train) -> None:
    settings = {"kohya_ext_validation_split": 0.4, "kohya_ext_validation_timesteps": 1, "repeats": 2}
    run = train(**settings)
    last = rows(folder)[-1]
    assert last.images == 2
    trained, validated = set(), set()
    for names in run.images:
        trained.update(names)
    every = {str(path) for path in (folder / "train").glob("*.png")}
    counts = {name: sum(name in names for names in run.images) for name in every}
    validated = {name for name, count in counts.items() if count == len({row.step for row in rows(folder)})}
    assert len(validated) == 2 and {counts[name] for name in every - validated} == {4}
    assert train(**settings).images == run.images
    assert trained == every, "each image is seen, either in training or in validation"


def test_a_longer_run_goes_on_with_its_record(folder: Path, train: Train) -> None:
    train(**held(folder))
    record = folder / "out" / "dog-validation.csv"
    before = record.read_text().splitlines()
    assert [row.step for row in rows(folder)] == [0, 5, 10]
    train(resume="state", **held(folder))
    assert record.read_text().splitlines()[: len(before)] == before
    assert [row.step for row in rows(folder)] == [0, 5, 10, 5, 10], "as Kohya counts: from 0 again"
    train(**held(folder))
    assert [row.step for row in rows(folder)] == [0, 5, 10]


@pytest.mark.parametrize("name", ["raw", "ema"])
def test_the_best_checkpoint_needs_saves(folder: Path, train: Train, name: str) -> None:
    more = {"ema_save": "only", **EMA} if name == "ema" else {}
    with pytest.raises(SystemExit):
        train(save_best=True, **more, **held(folder))
    with pytest.raises(SystemExit):
        train(save_best=True, save_every_n_steps=3, **more, **held(folder, kohya_ext_validate_every=2))


def test_without_images_or_data_sets(folder: Path, train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(SystemExit):
        train(kohya_ext_validate=str(folder / "empty"))
    assert "there are no images to hold out" in capsys.readouterr().err


def test_a_release_without_a_recorder_is_refused(
    folder: Path, train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.delattr(sys.modules["library.train_util"], "LossRecorder")
    with pytest.raises(SystemExit):
        train(**held(folder))
    assert "validation needs sd-scripts" in capsys.readouterr().err


@pytest.mark.parametrize("nothing_left", [True, False])
@pytest.mark.parametrize("within", [True, False])
@pytest.mark.parametrize(("every", "recorded", "expected"), [(0, False, 1), (2, False, 1), (3, False, 0), (0, True, 0)])
def test_a_stop_between_a_state_and_its_validation(
    folder: Path, monkeypatch: pytest.MonkeyPatch, every: int, recorded: bool, expected: int, within: bool,
    nothing_left: bool,
) -> None:  # fmt: skip
    """A state is saved before the validation of its step: the run that is resumed from it makes up for that.

    After the last step it always does.
    """
    expected = expected or int(nothing_left and not recorded)
    one = resumed(folder, every=every, within=within)
    (folder / "out").mkdir()
    if recorded:
        row = records.Row(4, 2, "raw", 1.0, 0.5, 1.5, 1.0, 3, 2, 0.1, 1.0, 0)
        records.write(folder / "out" / "dog-validation.csv", records.COLUMNS, [records.cells(row)])
    monkeypatch.setattr(run, "resume", SimpleNamespace(nothing_left=nothing_left, asked_to_stop=False))
    made = []

    def validate(_: Any) -> Iterator[Any]:
        made.append((one.step, one.epoch))
        one._measured_at = one.standstill.steps
        yield from ()

    monkeypatch.setattr(one, "_validate", validate)
    assert list(one.around(iter(()), Pass(None, None))) == []  # type: ignore[arg-type]
    assert [step for step, _ in made] == [4] * expected
    if every == 0 and not (nothing_left and within):
        assert [epoch for _, epoch in made] == [2] * expected


def resumed(folder: Path, *, every: int, within: bool) -> Validation:
    """The validation of a run that is resumed after step 4, in the second epoch or after it."""
    one = Validation.__new__(Validation)
    one.args = arguments(folder, resume="dog-step00000004-state")
    one.options, one.standstill, one.best = SimpleNamespace(every=every), SimpleNamespace(steps=0), None  # type: ignore[assignment]
    one._measured_at, one.record = None, RunRecord(one.args)
    one.continue_from(4, 1, {}, within=within)
    return one


@pytest.mark.parametrize(
    ("fresh", "every", "within", "steps", "nothing_left", "left"),
    [
        (True, 0, False, 0, False, True),
        (False, 0, False, 0, False, True),
        (False, 2, True, 0, False, True),
        (False, 0, False, 3, False, False),  # what has been trained must be saved
        (False, 0, False, 0, True, False),  # the model must be saved
        (False, 0, True, 0, False, False),  # what is owed here is validated behind the epoch, from another state
    ],
)
def test_a_signal_in_the_first_validation_leaves_it_to_the_next_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fresh: bool, every: int, within: bool, steps: int,
    nothing_left: bool, left: bool,
) -> None:  # fmt: skip
    class LeftError(Exception):
        pass

    def leave() -> None:
        raise LeftError

    one = resumed(folder, every=every, within=within)
    one.standstill.steps = steps
    if fresh:
        one.args.resume = None
    ends = SimpleNamespace(nothing_left=nothing_left, asked_to_stop=True, leave_untrained=leave)
    monkeypatch.setattr(run, "resume", ends)
    monkeypatch.setattr(one, "_validate", lambda _: iter(()))
    with pytest.raises(LeftError) if left else nullcontext():
        list(one.around(iter(()), Pass(None, None)))  # type: ignore[arg-type]


@pytest.mark.parametrize("fresh", [False, True])
def test_a_signal_in_the_last_measurement_of_the_first_validation_costs_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fresh: bool
) -> None:
    """It is complete and recorded, so the run goes on to the step after which the signal asks for a state."""
    one = resumed(folder, every=0, within=False)
    if fresh:
        one.args.resume = None
    ends = SimpleNamespace(nothing_left=False, asked_to_stop=True, leave_untrained=lambda: pytest.fail("left"))
    monkeypatch.setattr(run, "resume", ends)

    def validate(_: Any) -> Iterator[Any]:
        one._measured_at = one.standstill.steps
        yield from ()

    monkeypatch.setattr(one, "_validate", validate)
    assert list(one.around(iter(["batch"]), Pass(None, None))) == ["batch"]  # type: ignore[arg-type]


def test_a_split_of_one_image_is_refused(folder: Path, train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    for path in sorted((folder / "train").iterdir())[1:]:
        path.unlink()
    with pytest.raises(SystemExit):
        train(kohya_ext_validation_split=0.5)
    assert "fewer than two training images" in capsys.readouterr().err


def test_held_out_images_that_are_trained_on_are_told(
    folder: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    train(**held(folder))
    assert "trained on as well" not in capsys.readouterr().err
    (folder / "alias").symlink_to(folder / "train")
    train(kohya_ext_validate=str(folder / "alias"), kohya_ext_validation_timesteps=1)
    assert "5 of the 5 held-out images are trained on as well" in capsys.readouterr().err


@pytest.mark.parametrize("after", [0, 3, 7])
def test_a_signal_does_not_wait_for_a_validation(
    folder: Path, train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], after: int
) -> None:
    """The first one makes 6 measurements of raw weights, the others 12: raw weights and EMA."""
    plain = train(**EMA)
    asked = iter([False] * after + [True] * 1000)
    monkeypatch.setattr(Validation, "_asked_to_stop", property(lambda _: next(asked)))
    watched = train(**EMA, **held(folder))
    assert torch.equal(plain.weights, watched.weights)
    record = folder / "out" / "dog-validation.csv"
    assert [row.step for row in records.validations(record)] == [0] if after > 6 else not record.exists()
    assert "is skipped: a signal has asked" in capsys.readouterr().out


@pytest.mark.parametrize("readable", [4, 8])
def test_a_held_out_image_that_cannot_be_read(
    folder: Path, train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], readable: int
) -> None:
    """Before the first step it stops the run, later it does not."""
    plain = train()
    real, calls = HeldOut.batch, iter(range(1000))

    def batch(held_out: HeldOut, number: int) -> Any:
        if next(calls) >= readable:
            raise OSError("image file is truncated")
        return real(held_out, number)

    monkeypatch.setattr(HeldOut, "batch", batch)
    if readable == 4:
        with pytest.raises(SystemExit):
            train(**held(folder))
    else:
        assert torch.equal(plain.weights, train(**held(folder)).weights)
        assert [row.step for row in rows(folder)] == [0]
    said = capsys.readouterr().err
    assert ".png cannot be read (OSError: image file is truncated)" in said
    assert ("is skipped" in said) == (readable == 8)
