"""Where a shadow lives, with the weights or in host memory, and how weights get there at each update."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# `auto` keeps the shadow on the training device only where this share of its memory stays free.
FREE_SHARE = 0.2
# Bytes a weight of an optimizer's state that is not there before its first step: at most the four float32 of Prodigy.
MOST_STATE = 16


@dataclass(frozen=True)
class Placement:
    """device: None means next to each parameter. reason: one phrase for the log. final: False until a first step."""

    device: torch.device | None
    reason: str
    final: bool = True


def place(
    weights: Sequence[Tensor], dtype: torch.dtype, wanted: torch.device | str | None, *, stepped: bool = True
) -> Placement:
    """Decide where the shadow of `weights` goes.

    Args:
        weights: on any devices.
        dtype: of the shadow.
        wanted: `auto`, a device, or None for next to each parameter.
        stepped: False where the optimizer has still to make its state, which the memory in use does not show.

    Returns:
        Where. With `auto`, where that state decides, host memory until there is one: a shadow that is in the way of the
        state ends the run, one in host memory makes a step slow.
    """
    if wanted is None:
        return Placement(None, "next to the weights")
    if wanted != "auto":
        return Placement(torch.device(wanted), f"on {wanted}, as asked for")
    waits = False
    memory = {device: found for device in {weight.device for weight in weights} if (found := _memory(device))}
    if not memory:
        return Placement(None, "next to the weights, which are not on a GPU")
    for gpu, (free, total) in memory.items():
        elements = sum(weight.numel() for weight in weights if weight.device == gpu)
        left = free - elements * torch.empty((), dtype=dtype).element_size()
        if left < FREE_SHARE * total:
            return Placement(
                torch.device("cpu"),
                f"in host memory: on {gpu} it would leave {max(left / total, 0):.0%} of the memory free, "
                f"less than {FREE_SHARE:.0%}",
            )
        waits = waits or (not stepped and left - elements * MOST_STATE < FREE_SHARE * total)
    if waits:
        reason = "in host memory during the first step, which shows what the optimizer leaves free"
        return Placement(torch.device("cpu"), reason, final=False)
    return Placement(None, f"on the training device: at least {FREE_SHARE:.0%} of its memory stays free")


def _memory(device: torch.device) -> tuple[int, int] | None:
    """Bytes of a GPU's memory that are free, and all of them; None for any other device."""
    return torch.cuda.mem_get_info(device) if device.type == "cuda" else None


class Staging:
    """Brings weights to their shadow's device a slice at a time, copies overlapped with the arithmetic.

    Its buffers are reused, and hold two slices at most.
    """

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
