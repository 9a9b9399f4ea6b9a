"""Blocks of a model that Kohya moves between GPU and host while it trains (`--blocks_to_swap`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def finish_moves(models: Iterable[Any]) -> None:
    """Wait until no block of these models is moving (`--blocks_to_swap`).

    Kohya moves blocks between GPU and host in threads of its own, also after the backward pass. A move re-points a
    weight's data and fills the memory it leaves with another block's weights, so whoever reads or writes weights
    between two steps first waits here. Kohya's own waits for the same moves find them done.
    """
    for model in models:
        for offloader in list(getattr(model, "__dict__", {}).values()):
            moving, wait = getattr(offloader, "futures", None), getattr(offloader, "_wait_blocks_move", None)
            if isinstance(moving, dict) and callable(wait):
                for block in list(moving):
                    wait(block)
