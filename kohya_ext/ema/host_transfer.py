"""Bringing weights to where their shadow lives, a slice at a time, copies overlapped with the arithmetic."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


class Staging:
    """Reused buffers between the training device and the shadow's. Never holds more than two slices."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[torch.device, torch.dtype, str], Tensor] = {}
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def bring(
        self, weights: Tensor, bounds: list[tuple[int, int]], shadow: Tensor, *, cast: bool = True
    ) -> Iterator[Tensor]:
        """Each slice of flat `weights` on the shadow's device, in the dtype its arithmetic uses.

        cast: False leaves the weights in their own dtype. A yielded slice is valid until the next one is asked for.
        """
        dtype = torch.float32 if shadow.dtype == torch.bfloat16 else shadow.dtype
        if weights.device == shadow.device:
            arrivals: Iterator[Tensor] = (weights[start : start + length] for start, length in bounds)
        elif weights.device.type == "cuda" and shadow.device.type == "cpu":
            arrivals = self._from_gpu(weights, bounds)
        else:
            arrivals = self._copied(weights, bounds, shadow.device)
        for arrival in arrivals:
            if arrival.dtype == dtype or not cast:
                yield arrival
            else:
                buffer = self._buffer("cast", dtype, arrival.device, arrival.numel())
                yield buffer.copy_(arrival)

    def _copied(self, weights: Tensor, bounds: list[tuple[int, int]], device: torch.device) -> Iterator[Tensor]:
        for start, length in bounds:
            buffer = self._buffer("copy", weights.dtype, device, length)
            yield buffer.copy_(weights[start : start + length])

    def _from_gpu(self, weights: Tensor, bounds: list[tuple[int, int]]) -> Iterator[Tensor]:
        """Pinned double buffering: while the CPU works on one slice, the next is on its way."""
        stream = self._streams.setdefault(weights.device, torch.cuda.Stream(weights.device))
        stream.wait_stream(torch.cuda.current_stream(weights.device))
        longest = max(length for _, length in bounds)
        pinned = [self._pinned(name, weights.dtype, longest) for name in ("even", "odd")]
        arrived = [torch.cuda.Event(), torch.cuda.Event()]

        def send(number: int) -> None:
            start, length = bounds[number]
            with torch.cuda.stream(stream):
                pinned[number % 2][:length].copy_(weights[start : start + length], non_blocking=True)
                arrived[number % 2].record(stream)

        send(0)
        for number, (_, length) in enumerate(bounds):
            if number + 1 < len(bounds):
                send(number + 1)
            arrived[number % 2].synchronize()
            yield pinned[number % 2][:length]

    def _buffer(self, use: str, dtype: torch.dtype, device: torch.device, length: int) -> Tensor:
        key = (device, dtype, use)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < length:
            buffer = self._buffers[key] = torch.empty(length, dtype=dtype, device=device)
        return buffer[:length]

    def _pinned(self, use: str, dtype: torch.dtype, length: int) -> Tensor:
        key = (torch.device("cpu"), dtype, use)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < length:
            buffer = self._buffers[key] = torch.empty(length, dtype=dtype, pin_memory=True)
        return buffer
