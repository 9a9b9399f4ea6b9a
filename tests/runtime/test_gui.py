"""AdaCoor is in the optimizer lists of the GUI, and nothing else of gradio changes."""

from __future__ import annotations

from pathlib import Path

from tests.runtime.test_wrapping import python, write

START = "import kohya_ext.runtime\nkohya_ext.runtime.activate(__name__)\n"
GRADIO = """
    class Dropdown:
        def __init__(self, label=None, choices=None, value=None):
            self.label, self.choices, self.value = label, choices, value
    class Slider: ...
"""
TAB = """
    import gradio as gr
    def build():
        optimizer = gr.Dropdown(label="Optimizer", choices=["AdamW", "AdamW8bit"], value="AdamW8bit")
        scheduler = gr.Dropdown(label="LR Scheduler", choices=["constant"])
        return optimizer, scheduler, gr.Slider
"""


def test_lists_of_both_gui_packages(tmp_path: Path) -> None:
    for package in ("library", "kohya_gui"):
        write(
            tmp_path,
            {f"{package}/__init__.py": START, f"{package}/class_basic_training.py": TAB, "gradio.py": GRADIO},
        )
        code = f"""
            import gradio
            from {package}.class_basic_training import build
            optimizer, scheduler, slider = build()
            print(optimizer.choices, optimizer.value, scheduler.choices)
            print(slider is gradio.Slider, type(optimizer) is gradio.Dropdown)
        """
        assert python(tmp_path, code) == "['AdaCoor', 'AdamW', 'AdamW8bit'] AdamW8bit ['constant']\nTrue True"


def test_modules_without_an_optimizer_list_keep_gradio_itself(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"kohya_gui/__init__.py": START, "kohya_gui/class_folders.py": "import gradio as gr\n", "gradio.py": GRADIO},
    )
    assert python(tmp_path, "import gradio, kohya_gui.class_folders as f; print(f.gr is gradio)") == "True"
