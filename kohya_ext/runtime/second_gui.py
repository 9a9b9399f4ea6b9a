"""In kohya_ss's second GUI: our optimizers in its lists, and the EMA as fields of its tabs.

Each tab is built from one table, made as its module is loaded, and everything goes by that table: what is on the page,
what a file holds, what a training gets. So ours are rows of it. A field that was not touched has the value that is
never written, and a file or a training without our settings is as it is without us.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from kohya_ext.runtime.guard import MARK, wrapped
from kohya_ext.runtime.page import within
from kohya_ext.runtime.run import not_hooked
from kohya_ext.spec import second_gui
from kohya_ext.spec.flags import BY_KEY, DECAY, ENABLE_EMA, FLAGS, SECTION, Flag
from kohya_ext.spec.hooks import OPTIMIZER_LANDMARK
from kohya_ext.spec.optimizers import NAMES

GROUP = "kohya_ext"  # of the rows: a section of the tab


def offer_ours(namespace: dict[str, Any]) -> None:
    """Wrap what the module with these globals defines of the second GUI; a second call changes nothing."""
    table = namespace.get(second_gui.TABLE_CLASS)
    if isinstance(table, type) and table.__module__ == namespace["__name__"]:
        constructor = vars(table)["__init__"]
        if not hasattr(constructor, MARK):
            offering = wrapped(constructor, with_our_optimizers)  # each thing of ours by itself: one may fail
            table.__init__ = wrapped(offering, with_our_rows)  # type: ignore[misc]
    titles = namespace.get(second_gui.TITLES)
    if isinstance(titles, dict):
        titles.setdefault(GROUP, SECTION)
    builder = namespace.get(second_gui.BUILDER)
    if inspect.isfunction(builder) and builder.__module__ == namespace["__name__"] and not hasattr(builder, MARK):
        namespace[second_gui.BUILDER] = wrapped(builder, build_tab)


def with_our_rows(original: Callable[..., None], table: Any, specs: list[Any]) -> None:
    """The table's constructor: a whole tab's table gets our rows."""
    rows = list(specs)
    names = {spec.name for spec in rows}
    kind = next((spec.default for spec in rows if spec.name == second_gui.TRAINING_TYPE), None)
    if {second_gui.FAMILY, second_gui.OPTIMIZER} <= names and kind in second_gui.TRAINING_TYPES.values():
        module = sys.modules[type(rows[0]).__module__]
        rows += [_row(module, flag) for flag in FLAGS if flag.label and flag.key not in names]
    original(table, rows)


def with_our_optimizers(original: Callable[..., None], table: Any, specs: list[Any]) -> None:
    """The table's constructor: a list of optimizers offers ours, of a whole tab and of a field alone."""
    original(table, [_offering(spec) if spec.name == second_gui.OPTIMIZER else spec for spec in specs])


def _offering(spec: Any) -> Any:
    choices = spec.choices
    if not isinstance(choices, list) or OPTIMIZER_LANDMARK not in choices:
        return spec
    new = [name for name in NAMES if name not in choices]
    blank = choices[:1] if choices[0] == "" else []
    return replace(spec, choices=[*blank, *new, *choices[len(blank) :]]) if new else spec


def _row(module: Any, flag: Flag) -> Any:
    """One of our flags as a row. Its default says "not given", which the GUI writes nowhere."""
    widgets = getattr(module, second_gui.WIDGET_CLASS)
    words: dict[str, Any] = {"widget": widgets.CHECKBOX, "default": False}
    if flag.kind.choices:
        words = {"widget": widgets.DROPDOWN, "default": "", "choices": ["", *flag.kind.choices]}
    elif flag.kind.numbers is not None and not flag.kind.several:
        whole = flag.kind.numbers.whole
        words = {"widget": widgets.NUMBER, "default": None, "to_toml": _whole if whole else None}
    elif flag.kind.numbers is not None:
        words = {"widget": widgets.TEXTBOX, "default": ""}
    row: Callable[..., Any] = getattr(module, second_gui.ROW_CLASS)
    return row(name=flag.key, label=flag.label, info=flag.info, group=GROUP, **words)


def _whole(value: Any) -> Any:
    """A number as the browser sends it, whole where it is; what is not is refused by the training, with the reason."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def build_tab(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The function that builds a tab. With the EMA enabled its decay is on the command line as well.

    A TOML file alone would be read in silence by training code without our hook, which would train without an EMA.
    A tab that cannot be built with our rows is built without them.
    """
    context = importlib.import_module("gradio.context").Context
    table, derive = kwargs[second_gui.TABLE], kwargs[second_gui.DERIVED]
    if ENABLE_EMA.key not in set(table.names()):
        return original(*args, **kwargs)
    words = frozenset(kwargs.get(second_gui.ON_COMMAND_LINE) or ()) | {DECAY.key}
    ours = {second_gui.ON_COMMAND_LINE: words, second_gui.DERIVED: _with_decay(derive)}
    try:
        with within(context, context.block):
            return original(*args, **{**kwargs, **ours})
    except Exception as error:
        not_hooked(f"{second_gui.PACKAGE}: {SECTION}", error)
    return original(*args, **{**kwargs, second_gui.TABLE: _without_ours(table)})


def _without_ours(table: Any) -> Any:
    """The table as it is without our rows."""
    plain = object.__new__(type(table))
    constructor = inspect.unwrap(type(table).__init__)
    constructor(plain, [spec for spec in table if spec.name not in BY_KEY])
    return plain


def _with_decay(derive: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def derived(values: dict[str, Any], *args: Any) -> dict[str, Any]:
        out = derive(values, *args)
        if values.get(ENABLE_EMA.key) and not values.get(DECAY.key):
            out[DECAY.key] = DECAY.default
        return out

    return derived
