"""A gradio of a few lines: components in a tree, events in a list; arguments that it does not know are refused."""

from __future__ import annotations

import types
from typing import Any


class Context:
    root_block: Any = None
    block: Any = None


class Block:
    """A component. Unknown arguments are a TypeError, as in gradio 3."""

    made = 0

    def __init__(self, label: Any = None, value: Any = None, info: Any = None, interactive: Any = None) -> None:
        Block.made += 1
        self._id = Block.made
        self.label, self.value, self.info = label, value, info
        self.children: list[Any] = []
        self.parent = Context.block
        if self.parent is not None:
            self.parent.children.append(self)
            Context.root_block.blocks[self._id] = self

    def __enter__(self) -> Any:
        self.parent = Context.block
        Context.block = self
        return self

    def __exit__(self, *_: object) -> None:
        Context.block = self.parent

    def listen(self, name: str, fn: Any, inputs: Any, outputs: Any, js: Any, words: dict[str, Any]) -> None:
        Context.root_block.fns[len(Context.root_block.fns)] = (self, name, fn, inputs, outputs, js, words)


class OldEvents(Block):
    """Events as in gradio 3."""

    def change(self, fn: Any, inputs: Any = None, outputs: Any = None, api_name: Any = None, _js: Any = None) -> None:
        self.listen("change", fn, inputs, outputs, _js, {"api_name": api_name})

    input = blur = submit = load = change


class NewEvents(Block):
    """Events as in gradio 6."""

    def change(
        self, fn: Any = None, inputs: Any = None, outputs: Any = None, js: Any = None, api_visibility: Any = None
    ) -> None:
        self.listen("change", fn, inputs, outputs, js, {"api_visibility": api_visibility})

    input = blur = submit = load = change


def module(events: type[Block]) -> tuple[types.ModuleType, types.ModuleType]:
    """The modules `gradio` and `gradio.context`."""
    gradio, context = types.ModuleType("gradio"), types.ModuleType("gradio.context")
    context.Context = Context  # type: ignore[attr-defined]

    class Dropdown(events):  # type: ignore[misc,valid-type]
        def __init__(
            self, choices: Any = None, label: Any = None, value: Any = None, info: Any = None, interactive: Any = None
        ) -> None:
            super().__init__(label, value, info, interactive)
            self.choices = choices

    class Accordion(events):  # type: ignore[misc,valid-type]
        def __init__(self, label: Any = None, open: bool = True) -> None:
            super().__init__(label)

    class Blocks(events):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            Context.block = None
            super().__init__()
            self.blocks: dict[int, Any] = {}
            self.fns: dict[int, Any] = {}
            Context.root_block = self

    for name in ("Row", "Tab", "HTML", "Textbox", "Number", "Checkbox"):
        setattr(gradio, name, type(name, (events,), {}))
    for one in (Dropdown, Accordion, Blocks):
        setattr(gradio, one.__name__, one)
    return gradio, context
