"""Our components and events in a page of the GUI, gradio 3 to 6: a version gets only the arguments that it knows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any


def made(component: Any, **words: Any) -> Any:
    """The component, with those of the arguments that this gradio knows."""
    known = _parameters(component.__init__)
    return component(**{name: value for name, value in words.items() if name in known})


def on(event: Any, js: str, inputs: list[Any], outputs: list[Any]) -> None:
    """An event that is dealt with in the browser: no round trip to the GUI, and no entry in its API."""
    known = _parameters(getattr(event, "__func__", event))
    script = next(name for name in ("js", "_js") if name in known)
    words = {script: js, "inputs": inputs, "outputs": outputs, "show_progress": "hidden", "queue": False}
    words.update({"api_visibility": "private"} if "api_visibility" in known else {"api_name": False})
    event(fn=None, **{name: value for name, value in words.items() if name in known})


@lru_cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    """The names of its parameters, looked up once: that takes longer than to make a component."""
    return frozenset(inspect.signature(function).parameters)


@contextmanager
def within(context: Any, place: Any) -> Iterator[None]:
    """Build in `place`, a container that may be closed already. What fails in there leaves nothing on the page."""
    block, before = context.block, _contents(context.root_block, place)
    context.block = place
    try:
        yield
    except BaseException:
        _restore(before)
        raise
    finally:
        context.block = block


def _contents(root: Any, place: Any) -> list[tuple[Any, Any]]:
    """The page's lists of components and events, each with a copy. gradio has them in different places."""
    holders = (root, getattr(root, "default_config", None))
    found = [getattr(holder, name, None) for holder in holders for name in ("blocks", "fns", "dependencies")]
    return [(one, one.copy()) for one in (place.children, *found) if isinstance(one, (list, dict))]


def _restore(contents: list[tuple[Any, Any]]) -> None:
    for one, copy in contents:
        one.clear()
        if isinstance(one, dict):
            one.update(copy)
        else:
            one.extend(copy)
