"""Each run leaves a line about its memory and its speed."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from kohya_ext.core.about import MANIFEST  # noqa: E402
from kohya_ext.runtime import measuring  # noqa: E402
from kohya_ext.runtime.measuring import SETTLED, MeasuredRun, begin  # noqa: E402
from kohya_ext.runtime.run import run  # noqa: E402
from kohya_ext.spec.measurements import FILE_NAME, OF_THE_EMA, SETTINGS, digest  # noqa: E402


class LittleAccelerator:
    def __init__(self) -> None:
        self.losses: list[Any] = []

    def backward(self, loss: Any, **named: Any) -> str:
        self.losses.append((loss, named))
        return "done"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GUI's tree with our record, whose training script is running; nothing is registered for the exit."""
    script = tmp_path / "kohya_ss" / "sd-scripts" / "sdxl_train.py"
    script.parent.mkdir(parents=True)
    script.touch()
    record = tmp_path / "kohya_ss" / MANIFEST
    record.parent.mkdir()
    record.touch()
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setattr("kohya_ext.runtime.measuring.atexit.register", lambda *_: None)
    return tmp_path / "kohya_ss"


def lines(checkout: Path) -> list[dict[str, Any]]:
    file = (checkout / MANIFEST).with_name(FILE_NAME)
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def trained(batches: int, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> MeasuredRun:
    """A run of so many batches, two seconds each."""
    accelerator, clock = LittleAccelerator(), iter(range(0, 1000, 2))
    monkeypatch.setattr("kohya_ext.runtime.measuring.time.monotonic", lambda: float(next(clock)))
    measurement = begin(argparse.Namespace(**settings), accelerator)
    assert measurement is not None
    for number in range(batches):
        assert accelerator.backward(number, retain_graph=True) == "done"
    assert accelerator.losses == [(number, {"retain_graph": True}) for number in range(batches)]
    return measurement


def test_a_run_leaves_a_line(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(SETTLED + 4, monkeypatch, train_batch_size=2, gradient_accumulation_steps=3).write()
    (line,) = lines(checkout)
    assert line["settings"] == digest("sdxl_train.py", {"train_batch_size": 2, "gradient_accumulation_steps": 3})
    assert (line["seconds_per_step"], line["batches"], line["out_of_memory"]) == (6, SETTLED + 4, False)
    assert (line["device"], line["peak_reserved_bytes"]) == ("cpu", None)
    trained(SETTLED, monkeypatch).write()
    assert [one["seconds_per_step"] for one in lines(checkout)] == [6, None]


def test_the_settings_are_those_that_were_given(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts change some of them as they go, by what they find; a preset tells only what it gives."""
    given = {"train_batch_size": 2, "cache_latents_to_disk": True, "resolution": "1024,1024"}
    monkeypatch.setattr(run, "given", given)
    trained(1, monkeypatch, **{**given, "cache_latents": True, "resolution": (1024, 1024)}).write()
    assert lines(checkout)[0]["settings"] == digest("sdxl_train.py", given)


def test_peaks_of_a_card(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(
        is_available=lambda: True, is_initialized=lambda: True, get_device_name=lambda: "NVIDIA A100",
        max_memory_allocated=lambda: 10, max_memory_reserved=lambda: 20,
    )  # fmt: skip
    monkeypatch.setattr(torch, "cuda", card)
    monkeypatch.setattr(sys, "last_type", type("OutOfMemoryError", (RuntimeError,), {}), raising=False)
    trained(1, monkeypatch).write()
    (line,) = lines(checkout)
    assert (line["device"], line["peak_allocated_bytes"], line["peak_reserved_bytes"]) == ("NVIDIA A100", 10, 20)
    assert line["out_of_memory"]


def test_no_line(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that trained nothing, a file that has grown long, a folder that cannot be written, no record of ours."""
    trained(0, monkeypatch).write()
    assert not lines(checkout)
    file = (checkout / MANIFEST).with_name(FILE_NAME)
    file.write_bytes(b"\n" * (measuring.LARGEST + 1))
    trained(1, monkeypatch).write()
    assert file.stat().st_size == measuring.LARGEST + 1
    file.unlink()
    file.mkdir()
    trained(1, monkeypatch).write()
    (checkout / MANIFEST).unlink()
    accelerator = LittleAccelerator()
    assert begin(argparse.Namespace(), accelerator) is None
    assert "backward" not in vars(accelerator)


def test_what_tells_runs_apart() -> None:
    first = {"train_batch_size": 1, "resolution": "1024,1024", "cache_latents": True, "enable_ema": True}
    alike = {"train_batch_size": "1.0", "resolution": " 1024,1024", "cache_latents": "true", "enable_ema": True,
             "output_name": "x", "learning_rate": 1, "xformers": False, "v2": None, "network_args": [],
             "ema_device": "auto", "ema_dtype": "float32", "ema_sigma_rel": ""}  # fmt: skip
    assert digest("a.py", first) == digest("a.py", alike)
    changed = [{**first, name: "other"} for name in (*SETTINGS, *OF_THE_EMA)] + [{**first, "enable_ema": False}]
    found = {digest("a.py", first), digest("b.py", first), *(digest("a.py", one) for one in changed)}
    assert len(found) == len(changed) + 2
    assert digest("a.py", {"ema_dtype": "bfloat16"}) == digest("a.py", {})
    widths = [{**first, "ema_sigma_rel": given} for given in ("0.05 0.2", [0.05, 0.2], (0.05, 0.2))]
    assert len({digest("a.py", one) for one in widths}) == 1
