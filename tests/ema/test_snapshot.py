"""Snapshots: what is read back, how much 16 bits lose, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from kohya_ext.ema import snapshot
from kohya_ext.ema.snapshot import Entry, StoredEma, places, write_reference, write_samples, write_snapshot
from kohya_ext.tensors.tensorfile import TensorFile

ALL = slice(None)
REFERENCE = "reference.safetensors"


def entries(dtype: torch.dtype = torch.float32, moved: float = 1e-4) -> list[Entry]:
    """Weights about 1, and an EMA that is `moved` away from them; one tensor has not moved, one is empty."""
    generator = torch.Generator().manual_seed(0)
    made: list[Entry] = []
    for name, shape in (("0.conv", (4, 3, 5, 5)), ("0.bias", (7,)), ("1.weight", (60, 50)), ("none", (0, 3))):
        weights = torch.randn(shape, generator=generator).to(dtype)
        made.append((name, weights, weights.float() + moved * torch.randn(shape, generator=generator)))
    still = torch.randn(5, generator=generator).to(dtype)
    return [*made, ("still", still, still.float())]


def written(folder: Path, given: list[Entry], dtype: str, later: list[Entry] | None = None) -> StoredEma:
    reference = None
    if dtype != "float32":
        write_reference(folder / REFERENCE, given)
        reference = TensorFile(folder / REFERENCE)
    write_snapshot(folder / "ema.safetensors", later or given, dtype, {"about": "it"}, reference)
    return StoredEma(folder / "ema.safetensors", folder / REFERENCE)


def error(stored: StoredEma, given: list[Entry]) -> float:
    """Of what is read, as a part of how far the EMA is from the weights."""
    off = sum(float((stored.part(name, ALL) - ema.reshape(-1).double()).square().sum()) for name, _, ema in given)
    moved = sum(float((ema.double() - weights.double()).square().sum()) for _, weights, ema in given)
    return float((off / moved) ** 0.5)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
def test_float32_is_the_ema_itself(tmp_path: Path, weights: torch.dtype) -> None:
    given = entries(weights)
    stored = written(tmp_path, given, "float32")
    assert stored.shapes == {name: tuple(ema.shape) for name, _, ema in given}
    assert error(stored, given) == 0
    assert not (tmp_path / REFERENCE).exists()


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("dtype", "digits"), [("float16", 11), ("bfloat16", 8)])
@pytest.mark.parametrize("moved", [1e-2, 1e-5])
def test_sixteen_bits_lose_a_part_of_the_difference(
    tmp_path: Path, weights: torch.dtype, dtype: str, digits: int, moved: float
) -> None:
    """float32 weights about 1 have digits of 6e-8 themselves, which a difference of 1e-5 shows."""
    given = entries(weights, moved)
    stored = written(tmp_path, given, dtype)
    assert 0.1 * 2.0**-digits < error(stored, given) < 2.0**-digits
    size = sum(ema.numel() for _, _, ema in given)
    assert (tmp_path / "ema.safetensors").stat().st_size < 2 * size + 2000


@pytest.mark.parametrize("size", [1e-30, 1e-9, 1e-4, 1e4, 1e30])
def test_differences_of_any_size_fit_float16(tmp_path: Path, size: float) -> None:
    ema = torch.randn(100, generator=torch.Generator().manual_seed(0)) * size
    given: list[Entry] = [("a", torch.zeros(100), ema)]
    assert error(written(tmp_path, given, "float16"), given) < 2.0**-11


def test_a_part_is_a_part_of_the_flat_tensor(tmp_path: Path) -> None:
    given = entries()
    for dtype in ("float32", "float16"):
        stored = written(tmp_path, given, dtype)
        for where in (slice(7, 90), slice(None, None, 13), slice(295, 300)):
            assert torch.equal(stored.part("0.conv", where), stored.part("0.conv", ALL)[where])


def test_tensors_larger_than_a_slice_and_channels_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "DEVICE_SLICE", 64)
    given: list[Entry] = []
    for name, weights, ema in entries():
        turned = weights.dim() == 4
        given.append((name, _last(weights) if turned else weights, _last(ema) if turned else ema))
    assert error(written(tmp_path, given, "float16"), given) < 2.0**-11


def _last(tensor: Tensor) -> Tensor:
    return tensor.to(memory_format=torch.channels_last)


def test_weights_that_are_not_finite_count_as_0(tmp_path: Path) -> None:
    """As in the EMA itself."""
    ema = torch.ones(3)
    stored = written(tmp_path, [("a", torch.tensor([1.0, torch.nan, torch.inf]), ema)], "float16")
    assert torch.equal(stored.part("a", ALL), ema.double())


def test_later_snapshots_are_told_from_the_same_weights(tmp_path: Path) -> None:
    first, later = entries(), entries(moved=1e-3)
    assert error(written(tmp_path, first, "float16", later), later) < 2.0**-11


def test_other_weights_are_refused(tmp_path: Path) -> None:
    given = entries()
    written(tmp_path, given, "float16")
    write_reference(tmp_path / REFERENCE, given)  # the same weights under another identity
    with pytest.raises(ValueError, match="other weights than those in"):
        StoredEma(tmp_path / "ema.safetensors", tmp_path / REFERENCE)
    (tmp_path / REFERENCE).unlink()
    with pytest.raises(ValueError, match="which is not there"):
        StoredEma(tmp_path / "ema.safetensors", tmp_path / REFERENCE)
    write_reference(tmp_path / REFERENCE, given[:2])
    with pytest.raises(ValueError, match="no reference weights of this model"):
        write_snapshot(tmp_path / "ema.safetensors", given, "float16", {}, TensorFile(tmp_path / REFERENCE))
    with pytest.raises(ValueError, match="not a snapshot"):
        StoredEma(tmp_path / REFERENCE, tmp_path / REFERENCE)


def test_samples_are_all_of_small_tensors_and_some_of_large_ones(tmp_path: Path) -> None:
    for count in (1, 7, 2048, 2049, 10**6):
        chosen = places(count).tolist()
        assert chosen == sorted(set(chosen)) and chosen[0] == 0 and chosen[-1] == count - 1
        assert len(chosen) == min(count, 2048 if count <= 2048 else 256)
    large = torch.arange(5000.0).view(50, 100).t()
    write_samples(tmp_path / "s.safetensors", [("a", large, large)], {"about": "it"})
    with safe_open(str(tmp_path / "s.safetensors"), "pt") as file:
        assert torch.equal(file.get_tensor("a"), large.reshape(-1)[places(5000)])
        assert file.metadata() == {"about": "it"}
