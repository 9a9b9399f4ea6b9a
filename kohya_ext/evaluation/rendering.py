"""What draws the images of a grid. The one that needs torch and diffusers is `diffusers_renderer`."""

from __future__ import annotations

from typing import Any, Protocol

from kohya_ext.evaluation.models import Column
from kohya_ext.evaluation.promptfile import Prompt


class Renderer(Protocol):
    """Draws with one model at a time."""

    def load(self, column: Column) -> None:
        """Make `column` the current model. Raises UsageError when it cannot be used."""

    def draw(self, prompt: Prompt) -> Any:
        """The image (PIL, RGB, prompt.width x prompt.height) that the current model makes of `prompt`."""
