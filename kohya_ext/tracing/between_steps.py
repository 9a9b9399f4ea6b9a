"""What a run does between steps: it saves, and makes sample images; each once, after the steps that are counted."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from kohya_ext.spec.hooks import HOOKS
from kohya_ext.tracing.ledger import ACTIVATIONS, Ledger

SAVING, SAMPLING = "saving", "sampling"
_PHASES = {"save_during": SAVING, "save_at_end": SAVING, "sample": SAMPLING}


def ask_for_it(args: Any) -> None:
    """Let the script save at the step that is ending now, and sample if it is to sample at all.

    Args:
        args: the script's own, changed in place.
    """
    args.save_every_n_steps = 1
    samples = getattr(args, "sample_every_n_steps", None) or getattr(args, "sample_every_n_epochs", None)
    if samples and getattr(args, "sample_prompts", None):
        args.sample_every_n_steps, args.sample_every_n_epochs = 1, None


def phases(ledger: Ledger) -> dict[str, Callable[[Any], Any]]:
    """Name of each function of upstream's that saves or samples -> what lets the ledger know while it runs."""

    def change(phase: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            before, known, alive = (ledger.phase, ledger.part), phase in ledger.peaks, ledger.now
            ledger.enter(phase, ACTIVATIONS)
            try:
                return original(*args, **kwargs)
            finally:
                ledger.enter(*before)
                if not known and ledger.peaks[phase].size <= alive:  # it was not time for it: nothing was made
                    del ledger.peaks[phase]

        return call

    named = [(name, _PHASES[hook.key]) for hook in HOOKS if hook.key in _PHASES for name in hook.functions]
    return {name: functools.partial(change, phase) for name, phase in named}
