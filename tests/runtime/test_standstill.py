from __future__ import annotations

from statistics import NormalDist

import pytest

torch = pytest.importorskip("torch")
from kohya_ext.runtime.standstill import fixed_timesteps  # noqa: E402

NORMAL = NormalDist().inv_cdf(0.75)


@pytest.mark.parametrize(
    ("draw", "expected"),
    [
        (lambda: torch.randint(0, 1000, (1,), device="cpu"), 750),
        (lambda: torch.randint(200, 400, (3,)), 350),
        (lambda: torch.randint(1000, (1,)), 750),
        (lambda: torch.randint(low=100, high=200, size=(1,)), 175),
        (lambda: torch.rand((1,)), 0.75),
        (lambda: torch.rand(size=(1,), device="cpu"), 0.75),
        (lambda: torch.randn((1,)), NORMAL),
        (lambda: torch.randn(1, device="cpu"), NORMAL),
        (lambda: torch.normal(mean=0.5, std=2.0, size=(1,), device="cpu"), 0.5 + 2 * NORMAL),
        (lambda: torch.normal(0.5, 2.0, (1,)), 0.5 + 2 * NORMAL),
    ],
)
def test_draws_of_timesteps(draw: object, expected: float) -> None:
    """The calls of Kohya's families, by their forms."""
    assert callable(draw)
    free = draw()
    with fixed_timesteps(0.75) as draws:
        fixed = draw()
    assert fixed.dtype == free.dtype and fixed.shape == free.shape and len(draws) == 1
    assert torch.allclose(fixed.double(), torch.full(fixed.shape, expected, dtype=torch.float64), atol=1e-6)


def test_noise_and_strengths_stay_random() -> None:
    torch.manual_seed(0)
    expected = [
        torch.randn(1, 4, 8, 8),
        torch.rand(1),
        torch.randn_like(torch.empty(1, 4)),
        torch.rand(1, device="cpu"),
    ]
    torch.manual_seed(0)
    with fixed_timesteps(0.75) as draws:
        found = [
            torch.randn(1, 4, 8, 8),
            torch.rand(1),
            torch.randn_like(torch.empty(1, 4)),
            torch.rand(1, device="cpu"),
        ]
    assert not draws and all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_draw_takes_the_same_random_numbers() -> None:
    torch.manual_seed(0)
    torch.randint(0, 1000, (1,))
    expected = torch.rand(2, 2)
    torch.manual_seed(0)
    with fixed_timesteps(0.75):
        torch.randint(0, 1000, (1,))
        assert torch.equal(torch.rand(2, 2), expected)


def test_the_functions_come_back() -> None:
    before = (torch.rand, torch.randn, torch.randint, torch.normal)
    with pytest.raises(KeyError), fixed_timesteps(0.5):
        raise KeyError
    assert (torch.rand, torch.randn, torch.randint, torch.normal) == before
