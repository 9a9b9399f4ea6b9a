"""In the GUI: our optimizers in its lists, the section of the EMA, notes on presets, and presets after an upgrade.

The lists are literals inside functions, `gr.Dropdown(label="Optimizer", choices=[...])`. Three tabs have one in v26. We
leave the functions alone and give the module a `gr` that adds our entries as the Dropdown is made.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from kohya_ext.runtime.guard import MARK, wrapped
from kohya_ext.spec.hooks import ADVANCED_CLASS, OPTIMIZER_LABEL, OPTIMIZER_LANDMARK
from kohya_ext.spec.optimizers import NAMES


class GradioWithOurs:
    """Stands in for the module `gradio` within one module of the GUI; everything but `Dropdown` is gradio's own."""

    def __init__(self, gradio: ModuleType) -> None:
        self._gradio = gradio

    def __getattr__(self, name: str) -> Any:
        return getattr(self._gradio, name)

    def Dropdown(self, *args: Any, **kwargs: Any) -> Any:  # noqa: N802 - gradio's name
        """gradio's Dropdown; the optimizer list gets ours in front."""
        choices = kwargs.get("choices")
        if kwargs.get("label") == OPTIMIZER_LABEL and isinstance(choices, list) and OPTIMIZER_LANDMARK in choices:
            kwargs["choices"] = [*(name for name in NAMES if name not in choices), *choices]
        return self._gradio.Dropdown(*args, **kwargs)


def offer_ours(namespace: dict[str, Any]) -> None:
    """Add ours to what the module with these globals defines of the GUI; a second call changes nothing."""
    _offer_optimizers(namespace)
    advanced = namespace.get(ADVANCED_CLASS)
    if isinstance(advanced, type) and advanced.__module__ == namespace["__name__"]:
        _offer_fields(advanced)
        if namespace.get("__file__"):  # once a start, before a tab lists its presets
            from kohya_ext.runtime import upgrades

            upgrades.refit_presets(Path(namespace["__file__"]).resolve().parents[1])


def _offer_optimizers(namespace: dict[str, Any]) -> None:
    """Give the module our `gr` if its source holds an optimizer list."""
    gradio = namespace.get("gr")
    if not isinstance(gradio, ModuleType) or not namespace.get("__file__"):
        return
    source = Path(namespace["__file__"]).read_text(encoding="utf-8-sig", errors="replace")
    if OPTIMIZER_LANDMARK in source and OPTIMIZER_LABEL in source:
        namespace["gr"] = GradioWithOurs(gradio)


def _offer_fields(advanced: type) -> None:
    """Wrap the constructor that makes the field for additional flags, once for each thing of ours: one may fail."""
    from kohya_ext.runtime import ema_section, preset_notes  # here: only the GUI needs them

    constructor = vars(advanced).get("__init__")
    if constructor is not None and not hasattr(constructor, MARK):
        noting = wrapped(constructor, preset_notes.advanced_training)
        advanced.__init__ = wrapped(noting, ema_section.advanced_training)  # type: ignore[misc]
