from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kohya_ext.validation.measurements import held_out, measurements

NAMES = ["set/a.png", "set/b.png", "set/c.png"]


@given(st.lists(st.text(), unique=True, max_size=5), st.integers(1, 9), st.integers(0, 10**9))
def test_one_in_each_part_of_the_range(names: list[str], parts: int, seed: int) -> None:
    found = measurements(names, parts, seed)
    assert [(one.number, one.part) for one in found] == [(n, p) for n in range(len(names)) for p in range(parts)]
    for one in found:
        assert one.part / parts < one.quantile < (one.part + 1) / parts
        assert 0 <= one.seed < 2**31


def test_noise_is_the_images_own() -> None:
    alone = measurements(["/elsewhere/set/b.png"], 4, 0)
    among = [one for one in measurements(NAMES, 4, 0) if one.number == 1]
    assert [(one.seed, one.quantile) for one in alone] == [(one.seed, one.quantile) for one in among]
    assert {one.seed for one in measurements(NAMES, 4, 1)}.isdisjoint(one.seed for one in measurements(NAMES, 4, 0))
    assert measurements(["set\\b.png"], 4, 0) == alone


@pytest.mark.parametrize(
    ("count", "share", "expected"), [(10, 0.2, 2), (10, 0.01, 1), (3, 0.99, 2), (1, 0.5, 0), (0, 0.5, 0)]
)
def test_a_share_of_the_images(count: int, share: float, expected: int) -> None:
    names = [f"set/{number}.png" for number in range(count)]
    chosen = held_out(names, share, 0)
    assert len(chosen) == expected and chosen <= set(names)
    assert held_out(reversed(names), share, 0) == chosen, "the order is no matter"


def test_the_seed_chooses() -> None:
    names = [f"set/{number}.png" for number in range(40)]
    assert held_out(names, 0.2, 0) != held_out(names, 0.2, 1)
