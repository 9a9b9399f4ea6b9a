"""Tensors of every layout, each a view into a buffer whose other bits are known: hypothesis strategies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

Shape = tuple[int, ...]

# Up to and beyond the sizes of slices and vectors that the tests set; zero-size and 0-dimensional as well.
SHAPES: st.SearchStrategy[Shape] = st.one_of(
    st.lists(st.integers(1, 6), max_size=4).map(tuple),
    st.sampled_from([(0,), (3, 0), (1, 1, 1), (40,), (300,), (16, 20), (5, 3, 4, 4), (2, 300), (4096 + 70,)]),
)


@dataclass(frozen=True)
class Layout:
    """Where the elements of a tensor are in its buffer."""

    shape: Shape
    stride: Shape
    offset: int
    length: int

    def view(self, buffer: Tensor) -> Tensor:
        return buffer.as_strided(self.shape, self.stride, self.offset)


class Guarded:
    """A buffer of random bits and views into it, which alone may change."""

    def __init__(self, dtype: torch.dtype, length: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.buffer = torch.randn(length, generator=generator, dtype=torch.float64).to(dtype)
        self._before = self.buffer.clone()

    def changed_outside(self, *views: Tensor) -> int:
        """How many bytes that belong to none of the views are not what they were."""
        expected = self._before.clone()
        for view in views:
            expected.as_strided(view.shape, view.stride(), view.storage_offset()).copy_(view)
        return int((expected.view(torch.uint8) != self.buffer.view(torch.uint8)).sum())


@st.composite
def layouts(draw: st.DrawFn, shape: Shape, repeating: bool = False) -> Layout:
    """Contiguous, permuted (channels-last, transposed), with gaps, at an offset; each also in combination.

    repeating: also several elements in one place (expanded and overlapping views), which is for reading only.
    """
    order = draw(st.permutations(range(len(shape)))) if draw(st.booleans()) else list(reversed(range(len(shape))))
    gaps = draw(st.lists(st.integers(1, 3), min_size=len(shape), max_size=len(shape))) if draw(st.booleans()) else None
    stride = [0] * len(shape)
    expected = 1
    for place, dim in enumerate(order):
        stride[dim] = expected * (gaps[place] if gaps else 1)
        expected = stride[dim] * max(1, shape[dim])
    if repeating and shape and draw(st.booleans()):
        for dim in draw(st.sets(st.sampled_from(range(len(shape))), min_size=1)):
            stride[dim] = draw(st.integers(0, 1))
    offset, rest = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    extent = sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) + 1 if 0 not in shape else 0
    return Layout(shape, tuple(stride), offset, offset + extent + rest)


def memory_order(*tensors: Tensor) -> list[int]:
    """The order of dimensions in which a step counts elements: of memory where all share one dense layout."""
    first = tensors[0]
    logical = list(range(first.dim()))
    if all(tensor.is_contiguous() for tensor in tensors) or any(t.stride() != first.stride() for t in tensors):
        return logical
    order = sorted(logical, key=lambda dim: (first.stride(dim), first.shape[dim]), reverse=True)
    return order if first.permute(order).is_contiguous() else logical
