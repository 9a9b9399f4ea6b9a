"""A save that is cut short, by an exception or by SIGTERM: raw weights in memory, no half file, no folder left."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import safetensors.torch

from kohya_ext.runtime import accelerators, averaging, checkpoints, options, safe_save
from kohya_ext.runtime import run as run_module
from kohya_ext.runtime.ema_outputs import Twins
from kohya_ext.spec.outputs import SAVING_PREFIX
from tests.runtime.conftest import Run, close, same

Begin = Callable[..., Run]
Event = Callable[[], None]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def save_on_epoch_end_or_stepwise_common(
    args: Any, on_epoch_end: bool, epoch: int, sd_saver: Callable[..., None], diffusers_saver: object
) -> None:
    sd_saver(str(Path(args.output_dir, f"{args.output_name}.safetensors")), epoch, 1)


def full(run: Run, event: Event) -> None:
    """A checkpoint; the event comes when half of the EMA's file is there."""

    def sd_saver(file: str, epoch: int, step: int) -> None:
        safetensors.torch.save_file(run.weights(), file)
        if "dog-ema" in file:
            Path(file).write_bytes(Path(file).read_bytes()[:50])
            event()

    checkpoints.save_during_training(save_on_epoch_end_or_stepwise_common, run.args, True, 0, sd_saver, None)


def old_full(run: Run, event: Event) -> None:
    """The same in sd-scripts 0.6, whose saver gets no functions and writes the file where it belongs."""
    library = types.ModuleType("library.model_util")

    def save_file(tensors: Any, filename: str, metadata: Any = None) -> None:
        safetensors.torch.serialize_file({}, filename)
        if "dog-ema" in filename:
            event()
        safetensors.torch.save_file(tensors, filename, metadata)

    library.save_file = save_file  # type: ignore[attr-defined]

    def save_sd_model_on_train_end(args: Any, src_path: str, text_encoder: Any, unet: Any, vae: Any) -> None:
        library.save_file(run.weights(), str(Path(args.output_dir, f"{args.output_name}.safetensors")))

    sys.modules["library.model_util"] = library
    try:
        checkpoints.save_at_end(save_sd_model_on_train_end, run.args, "", None, None, None)
    finally:
        del sys.modules["library.model_util"]


def old_folder(run: Run, event: Event) -> None:
    """sd-scripts 0.6 in diffusers form."""
    library = types.ModuleType("library.model_util")

    def save_diffusers_checkpoint(v2: bool, output_dir: str, text_encoder: Any, unet: Any) -> None:
        for part in ("text_encoder", "unet"):
            Path(output_dir, part).mkdir(parents=True)
            safetensors.torch.save_file(run.weights(), str(Path(output_dir, part, "model.safetensors")))
            if "dog-ema" in output_dir:
                event()

    library.save_diffusers_checkpoint = save_diffusers_checkpoint  # type: ignore[attr-defined]

    def save_sd_model_on_train_end(args: Any, src_path: str, text_encoder: Any, unet: Any, vae: Any) -> None:
        folder = Path(args.output_dir, args.output_name)
        folder.mkdir()
        library.save_diffusers_checkpoint(False, str(folder), text_encoder, unet)

    sys.modules["library.model_util"] = library
    try:
        checkpoints.save_at_end(save_sd_model_on_train_end, run.args, "", None, None, None)
    finally:
        del sys.modules["library.model_util"]


def lora(run: Run, event: Event) -> None:
    def write(file: str, average: Any) -> None:
        safetensors.torch.save_file(run.weights(), file)
        if average is not None:
            event()

    settings = options.read(run.args)
    assert settings is not None
    Twins(run.args, settings).save(str(Path(run.args.output_dir, "dog.safetensors")), write)


def state(run: Run, event: Event) -> None:
    """The resume state; the event comes while the EMA's file is being written."""

    class Accelerator:
        def prepare(self, *models: Any) -> Any:
            return models

        def save_state(self, output_dir: str) -> None:
            Path(output_dir).mkdir()

        def load_state(self, input_dir: str) -> None: ...

    accelerator = accelerators.prepare_accelerator(lambda args: Accelerator(), run.args)
    averaging.follow(run.optimizer)
    run.step(2)
    fsync = os.fsync

    def interrupted(fd: Any) -> None:
        event()
        fsync(fd)

    os.fsync = interrupted
    try:
        accelerator.save_state(str(Path(run.args.output_dir, "state")))
    finally:
        os.fsync = fsync


SAVES = [full, old_full, old_folder, lora, state]


def left_over(folder: Path) -> list[str]:
    """All files and folders there are, but for the raw ones."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return sorted(found - {"dog.safetensors", "state", "dog", "outcome"} - {p for p in found if p.startswith("dog/")})


@pytest.mark.parametrize("save", SAVES, ids=lambda save: save.__name__)
def test_a_whole_save(begin: Begin, tmp_path: Path, save: Callable[[Run, Event], None]) -> None:
    """What the tests below interrupt does work: else they would show nothing."""
    run = begin()
    run.step(3)
    save(run, lambda: None)
    if save is full:
        return  # its file is cut short on purpose
    (file,) = [path for path in tmp_path.rglob("*ema*.safetensors") if path.parent.name != "text_encoder"] or [
        tmp_path / "dog-ema" / "unet" / "model.safetensors"
    ]
    found = safetensors.torch.load_file(file)
    assert len(found) == 2
    if save is not state:
        assert close(found, run.expected())


@pytest.mark.parametrize("save", SAVES, ids=lambda save: save.__name__)
def test_a_fault_of_the_disk_or_of_ours_leaves_training_alone(
    begin: Begin, tmp_path: Path, capsys: pytest.CaptureFixture[str], save: Callable[[Run, Event], None]
) -> None:
    """The raw file is whole by then; the EMA's is not there, and that is said now and again at the end."""
    run = begin()
    run.step(3)

    def fail() -> None:
        raise OSError(28, "No space left on device")

    save(run, fail)
    assert same(run.weights(), run.history[-1])
    assert left_over(tmp_path) == []
    assert "No space left on device" in capsys.readouterr().err
    run_module._remind()
    assert "REMINDER" in capsys.readouterr().err


@pytest.mark.parametrize("save", SAVES, ids=lambda save: save.__name__)
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_exception(
    begin: Begin, tmp_path: Path, save: Callable[[Run, Event], None], error: type[BaseException]
) -> None:
    run = begin()
    run.step(3)

    def fail() -> None:
        raise error

    before = run.weights()
    with pytest.raises(error):
        save(run, fail)
    assert same(run.weights(), before) or save is state  # which has made two steps of its own
    assert same(run.weights(), run.history[-1])
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("save", SAVES, ids=lambda save: save.__name__)
def test_sigterm_ends_the_process_and_leaves_nothing(
    begin: Begin, tmp_path: Path, save: Callable[[Run, Event], None]
) -> None:
    run = begin()
    run.step(3)
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            save(run, lambda: os.kill(os.getpid(), signal.SIGTERM))
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("save", SAVES, ids=lambda save: save.__name__)
def test_weights_are_raw_again_for_who_handles_sigterm(
    begin: Begin, tmp_path: Path, save: Callable[[Run, Event], None]
) -> None:
    """A run with a handler of its own, which saves what it has on the way out."""
    run = begin()
    run.step(3)

    def handler(number: int, frame: Any) -> None:
        raise SystemExit(7)

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(SystemExit, match="7"):
            save(run, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)
    assert same(run.weights(), run.history[-1])
    assert left_over(tmp_path) == []


def test_after_a_save_sigterm_is_what_it_was(begin: Begin) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        run = begin()
        run.step(3)
        lora(run, lambda: None)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def full_disk(message: str = "No space left on device") -> Event:
    def fail() -> None:
        raise OSError(28, message)

    return fail


@pytest.mark.parametrize("save", [full, old_full, old_folder, lora], ids=lambda save: save.__name__)
def test_weights_that_cannot_be_put_back_end_the_run(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, save: Callable[[Run, Event], None]
) -> None:
    """Training must not go on from the EMA, whatever else could be saved."""
    from kohya_ext.ema.swap import Swap

    run = begin()
    run.step(3)

    def fail(swap: Swap) -> None:
        raise RuntimeError("the device is lost")

    monkeypatch.setattr(Swap, "bring_back", fail)
    with pytest.raises(RuntimeError, match="the device is lost"):
        save(run, full_disk())


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_only_the_ema_is_wanted_and_the_disk_is_full(
    begin: Begin, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, last: bool
) -> None:
    """In mid-run training goes on, as a later save may succeed; at the end nothing may be lost without an error."""
    run = begin(ema_save="only")
    run.step(3)
    older = tmp_path / "dog-000001.safetensors"
    older.write_bytes(b"an older EMA")

    def save_on_epoch_end(args, on_epoch_end, epoch, sd_saver, diffusers_saver):  # type: ignore[no-untyped-def]
        sd_saver(str(tmp_path / "dog-000002.safetensors"), epoch, 1)
        older.unlink()  # upstream's rotation

    def save_on_train_end(args, sd_saver, diffusers_saver):  # type: ignore[no-untyped-def]
        sd_saver(str(tmp_path / "dog.safetensors"), 1, 1)

    def sd_saver(file: str, *_: object) -> None:
        Path(file).write_bytes(b"half")
        full_disk()()

    def save() -> None:
        if kind == "lora":
            settings = options.read(run.args)
            assert settings is not None
            name = "dog.safetensors" if last else "dog-step00000002.safetensors"
            Twins(run.args, settings).save(str(tmp_path / name), sd_saver)
        elif last:
            checkpoints.save_at_end(save_on_train_end, run.args, sd_saver, None)
        else:
            checkpoints.save_during_training(save_on_epoch_end, run.args, True, 2, sd_saver, None)

    if last:
        with pytest.raises(OSError, match="No space left on device"):
            save()
    else:
        save()
        assert "NOTHING" in capsys.readouterr().err
    assert same(run.weights(), run.history[-1])
    assert [path.name for path in tmp_path.iterdir()] == [older.name]


def test_who_clears_up_cannot_take_a_folder_that_is_being_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between making a folder and locking it another run may take it for a leftover: then another is made."""
    fcntl = pytest.importorskip("fcntl")
    flock, taken = fcntl.flock, list[Path]()

    def another_run_was_quicker(descriptor: int, operation: int) -> None:
        if not taken:
            (folder,) = tmp_path.glob(f"{SAVING_PREFIX}*")
            folder.rmdir()
            taken.append(folder)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", another_run_was_quicker)
    with safe_save.moved_into_place(str(tmp_path / "dog.safetensors")) as file:
        assert taken and Path(file).parent != taken[0]
        Path(file).write_bytes(b"whole")
    assert (tmp_path / "dog.safetensors").read_bytes() == b"whole"


def test_leftovers_are_locked_while_they_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{SAVING_PREFIX}left").mkdir()
    rmtree, seen = shutil.rmtree, list[Path]()

    def removing(folder: Path, **options: Any) -> None:
        if not seen:
            with pytest.raises(BlockingIOError):
                safe_save._lock(folder)
        seen.append(folder)
        rmtree(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", removing)
    with safe_save.moved_into_place(str(tmp_path / "dog.safetensors")):
        assert seen == [tmp_path / f"{SAVING_PREFIX}left"] and not seen[0].exists()


def test_what_a_killed_save_left_goes_with_the_next(begin: Begin, tmp_path: Path) -> None:
    """And what another run, here or in another container, is writing just then stays."""
    run = begin()
    run.step(3)

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    for number in range(2):
        child = os.fork()
        if child == 0:
            full(run, kill)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        (left,) = tmp_path.glob(".kohya_ext-*")
        assert safe_save.abandoned(tmp_path) == [left], number  # the second has cleared up after the first
    with safe_save.moved_into_place(str(tmp_path / "other.safetensors")) as file:
        Path(file).write_bytes(b"being written")
        assert not left.exists()
        assert safe_save.abandoned(tmp_path) == []
        lora(run, lambda: None)
        assert Path(file).exists()
    assert left_over(tmp_path) == ["dog-ema.safetensors", "other.safetensors"]
