"""How far a preflight lets the script run."""

from __future__ import annotations

MODELS, SCHEDULER, LOOP, STEPS = "models", "scheduler", "loop", "steps"
ORDER = (MODELS, SCHEDULER, LOOP, STEPS)


class Reached(BaseException):
    """The script has come as far as it was asked to; no `except Exception` of upstream's takes it."""

    def __init__(self, milestone: str, reason: str = "") -> None:
        super().__init__(milestone)
        self.milestone = milestone
        self.reason = reason
