"""Learning rates: which one moves AdaCoor as far as a rate that is known to work with another optimizer.

AdaCoor is Adagrad at lr * sqrt(eps). With gradients of one size its t-th step is lr * sqrt(eps / t), and T steps add up
to 2 * lr * sqrt(eps * T); Adam's and Lion's steps are of size rate, and T of them come to rate * T. Equal distances
give lr = rate * sqrt(T / eps) / 2. In the study of docs/explanation/adacoor.md both then reach the same loss.
"""

from __future__ import annotations

import math

from kohya_ext.spec.optimizers import ADACOOR

# Optimizers whose steps are of the size of their rate, whatever the gradients' scale.
STEPS_OF_RATE = (
    "AdamW",
    "AdamW8bit",
    "PagedAdamW",
    "PagedAdamW8bit",
    "PagedAdamW32bit",
    "Lion",
    "Lion8bit",
    "PagedLion8bit",
)
GUIDES_EPS = float(ADACOOR.arguments["eps"])
MOST_STEPS = 10**9  # more is a slip, not a training


def matching(rate: float, steps: int, eps: float = GUIDES_EPS) -> float:
    """AdaCoor's learning rate that moves weights as far in `steps` as an Adam-like optimizer at `rate`."""
    return rate * math.sqrt(steps / eps) / 2


def equivalent(rate: float, steps: int, eps: float = GUIDES_EPS) -> float:
    """The rate at which an Adam-like optimizer moves weights as far in `steps` as AdaCoor at `rate`."""
    return 2 * rate * math.sqrt(eps / steps)
