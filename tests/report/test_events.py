"""Event files by their format: made here by hand, and by TensorBoard where it is installed."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from kohya_ext.report.events import scalars


def field(number: int, kind: int, content: bytes) -> bytes:
    length = bytes([len(content)]) if kind == 2 else b""
    return bytes([number << 3 | kind]) + length + content


def event(step: bytes, tag: str, value: float) -> bytes:
    one = field(1, 2, tag.encode()) + field(2, 5, struct.pack("<f", value))
    return field(1, 1, struct.pack("<d", 1.0)) + field(2, 0, step) + field(5, 2, field(1, 2, one))


def record(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little") + b"crc " + data + b"crc "


def test_by_hand(tmp_path: Path) -> None:
    file = tmp_path / "run" / "events.out.tfevents.1.host"
    file.parent.mkdir()
    data = (
        record(event(b"\xac\x02", "loss", 0.5)) + record(event(b"\x07", "loss", 0.25)) + record(event(b"\x07", "lr", 2))
    )
    file.write_bytes(data + record(event(b"\x07", "loss", 0.125)) + b"\x09")
    assert scalars(tmp_path) == {"loss": [(7, 0.125), (300, 0.5)], "lr": [(7, 2.0)]}


@pytest.mark.parametrize(
    "data", [b"", b"\xff" * 40, record(b"\x0b\x00"), record(b"\x12\xff"), record(b"\x10" + b"\xff" * 30)]
)
def test_broken_files(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "events.out.tfevents.1").write_bytes(record(event(b"\x01", "a", 1)) + data)
    assert scalars(tmp_path) == {"a": [(1, 1.0)]}


def test_tensorboards_own(tmp_path: Path) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    writer = tensorboard.SummaryWriter(str(tmp_path))
    for step in range(300):
        writer.add_scalar("kohya_ext/validation/raw", 1 / (step + 1), step)
    writer.close()
    found = scalars(tmp_path)["kohya_ext/validation/raw"]
    assert [step for step, _ in found] == list(range(300))
    assert found[2][1] == pytest.approx(1 / 3, rel=1e-6)
