"""Source that asks for more than there is: whatever is in a checkout is read in bounded time and memory."""

from __future__ import annotations

import pytest

from kohya_ext.presets.migration import LoadError, Migration, read_migration
from kohya_ext.presets.schema import read_schema
from kohya_ext.pysource import sources
from kohya_ext.pysource.arguments import arguments_of
from kohya_ext.pysource.interpreter import Interpreter
from kohya_ext.pysource.sources import TextSources
from kohya_ext.pysource.values import BudgetExceeded, Unknown, known, weight
from tests.bounds import needs_fork, within

TAB = "kohya_gui/finetune_gui.py"
LOADER = "def open_configuration(ask_for_file, file_path, optimizer, epoch):\n    pass\n"
WIRING = """
def finetune_tab(headless=False, config={}):
    optimizer = gr.Dropdown(label="Optimizer", choices=["a", "b"], value="a")
    epoch = gr.Slider(1, 10, value=2, step=1)
    hidden = gr.Textbox()
    button_open_config = gr.Button("x")
    button_open_config.click(open_configuration, inputs=[], outputs=[hidden] + [optimizer, epoch] * 1)
"""


def evaluated(source: str, name: str = "x") -> object:
    """What the top-level name of a module is found to be."""

    def action() -> object:
        interpreter = Interpreter(TextSources({"m.py": source}))
        try:
            module = interpreter.module("m.py")
        except BudgetExceeded:
            return "given up"
        if module is None:
            return "not read"
        value = module.names.get(name, "absent")
        return ("unknown", value.reason) if isinstance(value, Unknown) else value if known(value) else "not plain"

    return within(action)


LARGE = {
    "power": "x = 9**9**9",
    "shift": "x = 1 << 10**9",
    "product": "x = 7\nfor i in [0]*1:\n    pass\n" + "x = x * x\n" * 40,
    "long literal": "x = 0x" + "f" * 100_000 + " * 0x" + "f" * 100_000,
    "long division": "x = 0x" + "f" * 100_000 + " // 0x" + "f" * 50_000,
    "repeated text": "x = 'a' * 10**10",
    "repeated list": "x = [0] * 10**10",
    "doubled text": "x = 'a'\n" + "x = x + x\n" * 60,
    "doubled list": "x = [0]\n" + "x = x + x\n" * 60,
    "doubled by starring": "x = [0]\n" + "x = [*x, *x]\n" * 60,
    "extended by itself": "x = [0]\n" + "x.extend(x)\n" * 60,
    "doubled f-string": "x = 'a'\n" + "x = f'{x}{x}'\n" * 60,
    "joined": "x = 'aaaaaaaaaa'\n" + "x = x.join([x, x, x, x])\n" * 30,
    "replaced": "x = 'aaaaaaaaaa'\n" + "x = x.replace('a', x)\n" * 30,
    "replaced nothing": "x = 'aaaaaaaaaa'\n" + "x = x.replace('', x)\n" * 30,
    "width": "x = f'{1:1000000000}'",
    "percent width": "x = '%1000000000d' % 1",
    "percent star": "x = '%*d' % [1000000000, 1]",
    "padded": "x = 'a'.ljust(10**10) + 'a'.zfill(10**10) + 'a'.center(10**10)",
    "range": "x = [i for i in range(10**12)]",
    "list of range": "x = list(range(10**12))",
    "text of many digits": "x = str(0x" + "f" * 10_000 + ")",
    "merged": "x = {}\n" + "x = {**x, **{'%d': 1}}\n" * 10,
    "nested ten times ten": "x = [0] + [1]\n" + "x = [x, x, x, x, x, x, x, x, x, x]\n" * 30,
    "nested in a text": "y = [0] + [1]\n" + "y = [y, y, y, y, y, y, y, y, y, y]\n" * 30 + "x = f'{y}' + str(y)",
    "nested and equal": "y = [0]\nz = [0]\n" + "y = [y, y, y]\nz = [z, z, z]\n" * 40 + "x = y == z",
    "nested in a dict": "y = {'a': 1}\n" + "y = {'a': y, 'b': y}\n" * 60 + "x = str(y)",
    "holds itself": "x = []\nx.append(x)\nx.append(x)\ny = f'{x}'",
    "rounds in rounds": "y = [0]\n"
    + "y = y + y\n" * 16
    + "for a in y:\n  for b in y:\n    for c in y:\n      pass\nx = 1",
    "rounds of a comprehension": "y = [0]\n" + "y = y + y\n" * 16 + "x = [[[0 for a in y] for b in y] for c in y]",
    "grows while it is gone through": "x = [1]\nfor a in x:\n    x.append(a)",
    "calls itself": "def f(gr):\n    f(gr)\n    f(gr)\n    f(gr)\nf(1)\nx = 1",
    "bases in a circle": "class A(B):\n    pass\nclass B(A):\n    pass\nclass A(B):\n    pass\nx = A().y",
    "deep sum": "x = " + "+".join(["1"] * 5000),
    "deep brackets": "x = " + "[" * 90 + "]" * 90,
    "deeper brackets": "x = " + "(" * 5000 + ")" * 5000,
    "deep attributes": "x = a" + ".b" * 5000,
    "deep minus": "x = " + "-" * 5000 + "1",
    "deep conditions": "x = " + "1 if 1 else " * 3000 + "2",
    "return outside": "return 1\nx = 1",
    "break outside": "break\nx = 1",
    "continue outside": "continue\nx = 1",
    "break in a function": "def f(gr):\n    break\nx = f(1)",
    "NUL": "x = 1\0",
    "lone surrogate": "x = '\\ud800'",
    "unhashable": "x = {[]: 1}\ny = {}[[]]\nz = {k: 1 for k in [[1]]}",
    "infinite": "x = int(1e999) + 1e308 * 10 // 0",
    "unpacked wrongly": "a, *b = [1, 2, 3]\n(c, d), e = 1\nx = 1",
}


@needs_fork
@pytest.mark.parametrize("name", LARGE)
def test_no_value_outgrows_its_bounds(name: str) -> None:
    value = evaluated(LARGE[name])
    assert weight(value) < 200_000 or isinstance(value, (str, tuple))


def test_what_is_small_is_still_evaluated() -> None:
    for source, value in {
        "x = 6 * 7": 42, "x = ['a'] + ['b']": ["a", "b"], "x = 'a-b'.replace('-', '')": "ab", "x = f'{1}{2!s}'": "12",
        "x = '%5d|' % 3": "    3|", "x = ','.join(['a', 'b'])": "a,b", "x = [1] == [1]": True, "x = 7 // 2 % 2": 1,
        "x = 'ab'.startswith(('a', 'c'))": True, "x = {**{'a': 1}, **{'b': 2}}": {"a": 1, "b": 2},
    }.items():  # fmt: skip
        module = Interpreter(TextSources({"m.py": source})).module("m.py")
        assert module is not None and module.names["x"] == value, source


def test_what_is_written_otherwise_than_by_str_is_unknown() -> None:
    module = Interpreter(TextSources({"m.py": "x = f'{1!r}'"})).module("m.py")
    assert module is not None and isinstance(module.names["x"], Unknown)


def test_modules_that_import_everything_from_each_other() -> None:
    texts = {"library/a.py": "from library.b import *\nz = y", "library/b.py": "from library.a import *\ny = missing"}
    module = Interpreter(TextSources(texts)).module("library/a.py")
    assert module is not None and "z" in module.names


@needs_fork
@pytest.mark.parametrize("name", LARGE)
def test_a_form_with_such_source_still_has_its_keys(name: str) -> None:
    def action() -> tuple[list[str], int]:
        body = "\n".join(f"    {line}" for line in LARGE[name].splitlines() if "outside" not in name)
        source = f"import gradio as gr\n{LOADER}def finetune_tab(headless=False, config={{}}):\n{body or '    pass'}\n"
        schema = read_schema(TextSources({TAB: source}), "finetune")
        return ([], 0) if schema is None else (list(schema.fields), len(repr(schema.as_json())))

    keys, size = within(action)
    assert keys in (["optimizer", "epoch"], []) and size < 100_000


@needs_fork
def test_a_module_larger_than_any_release_has_is_not_parsed() -> None:
    source = LOADER + "a\n" * 600_000
    assert sources.tokens_in(source) > sources.MOST_TOKENS
    schema = within(lambda: (read_schema(TextSources({TAB: source}), "finetune") or 1) and "read")
    assert schema == "read"
    with pytest.raises(SyntaxError, match="more than"):
        sources.parse(b"a\n" * 600_000)


@needs_fork
@pytest.mark.parametrize("name", ["imports", "open brackets", "functions", "deep", "defaults", "one long function"])
def test_arguments_of_a_hostile_script(name: str) -> None:
    hostile = {
        "imports": "from library import a\n" * 80_000,
        "open brackets": "from a import (\n" * 100_000 + ")",
        "functions": "".join(f"def f{n}(p):\n    f{n + 1}(p)\n" for n in range(30_000)),
        "deep": "def setup_parser():\n    p.add_argument('--a', default=" + "-" * 5000 + "1)\n",
        "defaults": "def setup_parser():\n    p.add_argument('--a', default={[]: 1}, choices=10**10, dest=3)\n",
        "one long function": "def setup_parser():\n" + "    f(p)\n" * 300_000,
    }[name]
    source = f"{hostile}\ndef setup_parser():\n    p = 1\n    f0(p)\n    p.add_argument('--b')\n"
    assert within(lambda: len(arguments_of(TextSources({"train.py": source}), "train.py"))) <= 2


def test_a_migration_that_cannot_be_read_changes_nothing() -> None:
    nested = "def update_my_data(my_data):\n    for key in [{}, 1]:\n        int(value)\n    x = " + "-" * 3000 + "1\n"
    assert read_migration(TextSources({"kohya_gui/common_gui.py": nested})) == Migration()
    deep = "def update_my_data(my_data):\n    x = " + "+".join(["a"] * 900) + "\n"
    assert read_migration(TextSources({"kohya_gui/common_gui.py": deep})) == Migration()


@pytest.mark.parametrize("text", ["²", "9" * 5000])
def test_digits_that_are_no_number(text: str) -> None:
    with pytest.raises(LoadError):
        Migration(digits=frozenset({"a"})).apply({"a": text})
