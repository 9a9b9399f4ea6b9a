"""Two trainings in one process, as a notebook or a queue makes them: the second sees nothing of the first."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from kohya_ext.core.about import MANIFEST  # noqa: E402
from kohya_ext.optim import AdaCoor  # noqa: E402
from kohya_ext.runtime import accelerators, averaging, optimizers, telemetry  # noqa: E402
from kohya_ext.runtime.interruption import SIGNALS, Interruption  # noqa: E402
from kohya_ext.runtime.run import run  # noqa: E402
from kohya_ext.spec.measurements import FILE_NAME  # noqa: E402
from tests.runtime.test_state import Accelerator  # noqa: E402


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    run.begin()


def started(folder: Path, *, ema: bool, accelerator: Any = None, **settings: Any) -> Any:
    """The accelerator of a training that begins now."""
    args = argparse.Namespace(
        enable_ema=ema, max_train_steps=4, output_dir=str(folder), output_name="dog", save_state=False, **settings
    )
    return accelerators.prepare_accelerator(lambda _: accelerator or Accelerator(), args)


def stepped() -> Any:
    """A model that the running training has stepped once."""
    model = torch.nn.Linear(3, 2)
    averaging.meet(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    averaging.follow(optimizer)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model


class Network:
    """A network that saves itself, as Kohya's do."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def save_weights(self, file: str, dtype: Any, metadata: Any) -> None:
        Path(file).write_text(str(self.model.weight.tolist()))


@pytest.mark.parametrize(("first", "second"), [(True, False), (False, True), (True, True)])
def test_a_run_writes_what_it_asks_for(first: bool, second: bool, tmp_path: Path) -> None:
    for number, ema in enumerate((first, second)):
        folder = tmp_path / str(number)
        folder.mkdir()
        accelerator = started(folder, ema=ema)
        network = Network(stepped())
        accelerator.prepare(network)
        network.save_weights(str(folder / "dog.safetensors"), None, None)
        expected = ["dog-ema.safetensors", "dog.safetensors"] if ema else ["dog.safetensors"]
        assert sorted(path.name for path in folder.iterdir()) == expected


def test_the_second_run_averages_its_own_weights_alone(tmp_path: Path) -> None:
    started(tmp_path, ema=True)
    stepped()
    started(tmp_path, ema=True)
    model = stepped()
    average = averaging.current()
    assert average is not None
    assert {id(one) for one in average.parameters()} == {id(one) for one in model.parameters()}


def saver_of_embeddings(script: types.ModuleType) -> Callable[..., None]:
    def save_weights(file: str, updated_embs: Any, save_dtype: Any) -> None:
        Path(file).write_text(str(updated_embs.tolist()))

    save_weights.__module__ = script.__name__
    return save_weights


def test_what_a_script_saves_by_itself_is_saved_once_by_each_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modules of the scripts stay loaded, so one run's saver must not save for the next."""
    script = types.ModuleType("train_textual_inversion")
    original = script.save_weights = saver_of_embeddings(script)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, script.__name__, script)
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        started(folder, ema=True)
        embeddings = torch.nn.Embedding(4, 3)
        averaging.meet(embeddings)
        optimizer = torch.optim.SGD(embeddings.parameters(), lr=0.5)
        averaging.follow(optimizer)
        embeddings(torch.tensor([3])).sum().backward()
        optimizer.step()
        script.save_weights(str(folder / "dog.pt"), embeddings.weight.detach()[-1:].clone(), None)
        assert sorted(path.name for path in folder.iterdir()) == ["dog-ema.pt", "dog.pt"]
    started(tmp_path, ema=False)
    assert script.save_weights is original


def test_what_validates_measures_one_run_only(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from accelerate.data_loader import DataLoaderShard

    iterate = DataLoaderShard.__iter__
    started(tmp_path, ema=False)
    run.validation, run.loader_layers["validation"] = object(), lambda batches, _: batches
    run.replace(DataLoaderShard, "__iter__", lambda _: iter(()))
    started(tmp_path, ema=False)
    assert (run.validation, run.loader_layers) == (None, {})
    assert DataLoaderShard.__iter__ is iterate


def test_held_out_images_are_of_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from kohya_ext.runtime import heldout

    monkeypatch.setattr(run, "held_out", object())
    heldout.notice(argparse.Namespace())
    assert run.held_out is None


def test_signals_ask_one_run_only(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    started(tmp_path, ema=False)
    Interruption().listen()
    assert [signal.getsignal(number) for number in SIGNALS] != before
    started(tmp_path, ema=False)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_skipped_elements_are_counted_for_each_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def skipping(elements: int) -> None:
        started(tmp_path, ema=False, optimizer_type="AdaCoor")
        weights = torch.nn.Parameter(torch.ones(50))
        args = argparse.Namespace(optimizer_type="AdaCoor")
        optimizer = optimizers.get_optimizer(lambda *_: ("", "", AdaCoor([weights], lr=1.0)), args, [])[-1]
        weights.grad = torch.ones(50)
        weights.grad[:elements] = torch.nan
        optimizer.step()

    skipping(7)
    skipping(3)
    assert "skipped 7 gradient elements" in capsys.readouterr().out
    telemetry.report_skips()
    assert "skipped 3 gradient elements" in capsys.readouterr().out


class Backward(Accelerator):
    def backward(self, loss: Any) -> None:
        pass


def test_each_run_leaves_its_own_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told apart by the script, which `sys.argv` names only while it runs."""
    (tmp_path / MANIFEST).parent.mkdir()
    (tmp_path / MANIFEST).touch()
    registered: list[Any] = []
    monkeypatch.setattr("kohya_ext.runtime.measuring.atexit.register", registered.append)
    monkeypatch.setattr("kohya_ext.runtime.measuring.atexit.unregister", registered.remove)
    for script in ("sdxl_train.py", "train_network.py"):
        monkeypatch.setattr(sys, "argv", [str(tmp_path / script)])
        started(tmp_path, ema=False, accelerator=Backward()).backward(None)
    written = (tmp_path / MANIFEST).with_name(FILE_NAME)
    assert [json.loads(line)["script"] for line in written.read_text().splitlines()] == ["sdxl_train.py"]
    for each in registered:
        each()
    lines = [json.loads(line)["script"] for line in written.read_text().splitlines()]
    assert lines == ["sdxl_train.py", "train_network.py"]
