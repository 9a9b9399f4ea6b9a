from __future__ import annotations

import random

import pytest

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
from kohya_ext.runtime import randomness  # noqa: E402


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(()))


def test_nothing_is_disturbed() -> None:
    randomness.seed_all(3)
    expected = [drawn() for _ in range(2)]
    randomness.seed_all(3)
    assert drawn() == expected[0]
    with randomness.undisturbed(8):
        other = drawn()
    assert drawn() == expected[1]
    with pytest.raises(KeyError), randomness.undisturbed(8):
        assert drawn() == other
        raise KeyError
    randomness.seed_all(8)
    assert drawn() == other


def test_it_is_torchs_own_seeding_on_a_cpu() -> None:
    torch.manual_seed(4)
    expected = torch.randn(3)
    randomness.seed_all(4)
    assert torch.equal(torch.randn(3), expected)
