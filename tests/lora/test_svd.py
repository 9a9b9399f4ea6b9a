"""The low-rank approximations against the full SVD in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from kohya_ext.lora.svd import low_rank, low_rank_product, seed_of

ROUNDING = 2e-6  # float32, of the largest singular value


def matrix(rows: int, columns: int, *, decay: float = 0.7, floor: float = 0.02, seed: int = 0) -> Tensor:
    """Falling singular values over a noise floor."""
    generator = torch.Generator().manual_seed(seed)
    size = min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, size, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(columns, size, generator=generator))[0]
    values = torch.arange(1, size + 1) ** -decay
    return (left * values) @ right.T + floor * torch.randn(rows, columns, generator=generator) / rows**0.5


def optimal_error(values: Tensor, rank: int) -> float:
    return float(values[rank:].square().sum().sqrt())


@pytest.mark.parametrize("shape", [(300, 300), (500, 290), (290, 500), (40, 30), (30, 40), (700, 16)])
@pytest.mark.parametrize("rank", [1, 12, 64])
def test_exact_is_the_truncated_svd(shape: tuple[int, int], rank: int) -> None:
    a = matrix(*shape)
    values = torch.linalg.svdvals(a.double())
    found = low_rank(a, rank, "exact", "m")
    kept = min(rank, *shape)
    assert found.method == "exact" and found.up.shape == (shape[0], kept) and found.down.shape == (kept, shape[1])
    assert torch.allclose(found.values, values[:kept], rtol=1e-6, atol=ROUNDING * float(values[0]))
    error = float((a.double() - found.up.double() @ found.down.double()).norm())
    assert error <= optimal_error(values, kept) * (1 + 1e-6) + ROUNDING * float(values[0])
    assert found.residual**0.5 == pytest.approx(error, rel=1e-4, abs=2 * ROUNDING * float(values[0]))


@pytest.mark.parametrize(("decay", "floor"), [(0.7, 0.03), (1.0, 0.01), (1.5, 0.003), (1.0, 0.3), (3.0, 0.0003)])
def test_exact_finds_the_directions_too(decay: float, floor: float) -> None:
    """To rounding, also within a noise floor far below the first values, where a float32 Gram matrix mixes them."""
    a = matrix(420, 360, decay=decay, floor=floor)
    left, values, right = torch.linalg.svd(a.double(), full_matrices=False)
    for rank in (16, 128):
        found = low_rank(a, rank, "exact", "m")
        best = left[:, :rank] * values[:rank] @ right[:rank]
        assert float((found.up.double() @ found.down.double() - best).norm() / best.norm()) < 1e-5


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("floor", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("shape", [(420, 300), (300, 900)])
def test_randomized_is_within_half_a_percent_of_the_optimum(shape: tuple[int, int], floor: float, decay: float) -> None:
    a = matrix(*shape, decay=decay, floor=floor)
    values = torch.linalg.svdvals(a.double())
    found = low_rank(a, 24, "randomized", "m")
    error = float((a.double() - found.up.double() @ found.down.double()).norm())
    assert error <= 1.005 * optimal_error(values, 24)
    assert found.residual**0.5 == pytest.approx(error, rel=1e-4)


def test_factors_are_balanced() -> None:
    """Both carry the square root of the singular values, so neither under- nor overflows in float16."""
    for method in ("exact", "randomized"):
        found = low_rank(matrix(400, 320), 20, method, "m")
        roots = found.values.sqrt().float()
        assert torch.allclose(found.up.norm(dim=0), roots, rtol=1e-4)
        assert torch.allclose(found.down.norm(dim=1), roots, rtol=1e-4)


@pytest.mark.parametrize("method", ["exact", "randomized", "auto"])
def test_fewer_directions_than_rank(method: str) -> None:
    """A change of rank 3 asked for at rank 16 comes out whole, without directions made of noise."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(300, 3, generator=generator) @ torch.randn(3, 280, generator=generator)
    found = low_rank(a, 16, method, "m")
    assert torch.allclose(found.up @ found.down, a, atol=1e-3)
    assert float(found.values[3:].max()) < 1e-3
    assert found.residual**0.5 < 1e-4 * found.energy**0.5
    assert found.up.isfinite().all() and found.down.isfinite().all()


@pytest.mark.parametrize("method", ["exact", "randomized", "auto"])
def test_a_zero_matrix(method: str) -> None:
    found = low_rank(torch.zeros(300, 290), 8, method, "m")
    assert not found.values.any() and not found.up.any() and not found.down.any() and found.residual == 0


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6])
def test_the_size_of_the_weights_does_not_matter(scale: float) -> None:
    a = matrix(300, 400)
    for method in ("exact", "randomized"):
        plain, scaled = low_rank(a, 8, method, "m"), low_rank(a * scale, 8, method, "m")
        assert torch.allclose(scaled.values / scale, plain.values, rtol=1e-4)


def test_steep_spectra_are_exact_too() -> None:
    """Where float32 loses the small values in the Gram matrix, float64 is used."""
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(400, 300, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(300, 300, generator=generator, dtype=torch.float64))[0]
    values = 10.0 ** -torch.linspace(0, 6, 300, dtype=torch.float64)
    found = low_rank(((left * values) @ right.T).float(), 200, "exact", "m")
    assert torch.allclose(found.values, values[:200], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused(bad: float) -> None:
    a = matrix(40, 30)
    a[3, 3] = bad
    with pytest.raises(ValueError, match="finite"):
        low_rank(a, 4, "auto", "m")


def test_the_module_name_is_the_seed() -> None:
    a = matrix(400, 300)
    first, again = (low_rank(a, 8, "randomized", "lora_unet_a") for _ in range(2))
    other = low_rank(a, 8, "randomized", "lora_unet_b")
    assert torch.equal(first.up, again.up) and torch.equal(first.down, again.down)
    assert not torch.equal(first.up, other.up)
    assert seed_of("a") != seed_of("b")


@settings(max_examples=60)
@example(1, 1, 29, 1, 120)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 30), st.integers(1, 12), st.integers(0, 999))
def test_small_core_is_the_svd_of_the_product(rows: int, columns: int, inner: int, rank: int, seed: int) -> None:
    """Any factors: wide, narrow, with equal and zero columns."""
    generator = torch.Generator().manual_seed(seed)
    up, down = torch.randn(rows, inner, generator=generator), torch.randn(inner, columns, generator=generator)
    if seed % 3 == 0:
        up[:, inner // 2 :] = up[:, :1]
    if seed % 5 == 0:
        down[: inner // 2] = 0
    product = up.double() @ down.double()
    values = torch.linalg.svdvals(product)
    found = low_rank_product(up, down, rank)
    kept = min(rank, rows, columns, inner)
    top = float(values[0])
    assert found.up.shape == (rows, kept) and found.down.shape == (kept, columns)
    assert torch.allclose(found.values, values[: len(found.values)], rtol=1e-6, atol=1e-7 * top)
    error = float((product - found.up.double() @ found.down.double()).norm())
    rounded = 1e-7 * float(up.norm() * down.norm())  # of float32 factors whose product may cancel
    assert error <= optimal_error(values, kept) * (1 + 1e-5) + 1e-5 * top + rounded


def test_small_core_holds_the_singular_values_to_a_hundred_thousandth() -> None:
    up, down = matrix(900, 64, decay=1.0), matrix(64, 700, decay=1.0, seed=1)
    values = torch.linalg.svdvals(up.double() @ down.double())
    found = low_rank_product(up, down, 16)
    assert float(((found.values[:16] - values[:16]) / values[:16]).abs().max()) < 1e-8
