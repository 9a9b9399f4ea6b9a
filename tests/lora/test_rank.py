"""Choosing ranks against brute force."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kohya_ext.lora.rank import Spectrum, by_energy, by_size


def spectrum(values: list[float], cost: int, rest: float = 0.0) -> Spectrum:
    ordered = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    return Spectrum(ordered, float(ordered.square().sum()) + rest, cost)


values = st.lists(st.floats(0.01, 10), min_size=1, max_size=4)


@settings(max_examples=100)
@given(st.lists(values, min_size=1, max_size=3), st.integers(0, 40))
def test_no_other_ranks_of_that_size_keep_more(modules: list[list[float]], budget: int) -> None:
    """Modules of one size, where greedy is the optimum."""
    spectra = [spectrum(module, 3) for module in modules]
    found = by_size(spectra, budget)
    fitting = [
        ranks
        for ranks in itertools.product(*(range(1, len(module) + 1) for module in modules))
        if sum(ranks) * 3 <= budget
    ]
    if not fitting:
        assert found is None
        return

    def kept(ranks: tuple[int, ...]) -> float:
        return sum(float(s.values[:rank].square().sum()) for s, rank in zip(spectra, ranks, strict=True))

    assert found is not None and sum(found) * 3 <= budget
    assert kept(tuple(found)) >= max(kept(ranks) for ranks in fitting) * (1 - 1e-12)


def test_cheap_modules_come_first_where_the_gain_is_equal() -> None:
    assert by_size([spectrum([2, 1, 1], 10), spectrum([2, 1, 1], 1)], 20) == [1, 3]


def test_energy() -> None:
    module = spectrum([3, 2, 1], 1)
    assert [by_energy(module, part) for part in (0.1, 9 / 14, 0.65, 13 / 14, 0.95, 1.0)] == [1, 1, 2, 2, 3, 3]
    assert by_energy(spectrum([3, 2, 1], 1, rest=100), 0.99) == 3
