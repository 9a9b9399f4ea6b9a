"""Other values in the place of parameters for a while, which then are what they were, bit for bit."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType

import torch
from torch import Tensor

from kohya_ext.ema.insistence import insist


class Overlay:
    """A context in which each parameter has another value.

    Args:
        values: (parameter, its value) pairs; each is asked for when the one before it is in place.
        apart: the parameters become these very tensors, whatever their shapes, dtypes and devices: for saving. Else
            the values are copied into their memory, where a model computes, and the raw ones wait in host memory.
    """

    def __init__(self, values: Iterable[tuple[Tensor, Tensor]], *, apart: bool) -> None:
        self._values, self._apart = values, apart
        self._before: list[tuple[Tensor, Tensor]] = []

    @property
    def in_place(self) -> bool:
        """Whether any parameter has another value; after the context only where it could not be brought back."""
        return bool(self._before)

    def __enter__(self) -> Overlay:
        try:
            with torch.no_grad():
                for parameter, value in self._values:
                    own = parameter.data
                    self._before.append((parameter, own if self._apart else own.to("cpu", copy=True)))
                    if self._apart:
                        parameter.data = value
                    else:
                        own.copy_(value)
        except BaseException:
            insist(self._bring_back)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        insist(self._bring_back)

    def _bring_back(self) -> None:
        # the last first: of parameters with memory in common, the first has kept the raw weights
        while self._before:
            parameter, own = self._before[-1]
            if self._apart:
                parameter.data = own
            else:
                parameter.data.copy_(own)
            self._before.pop()
