"""Kohya's functions are wrapped by name, wherever a release defines them, and only there."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

BUNDLE = Path(__file__).resolve().parents[2]

OPTIMIZER = """
    def get_optimizer(args, trainable_params):
        return args.optimizer_type, "", None
"""
REEXPORT = "from library.optimizer import get_optimizer\n"


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text), encoding="utf-8")


def python(folder: Path, code: str) -> str:
    """Run `code` as a script in `folder`, with kohya_ext importable."""
    program = f"import sys; sys.path[:0] = [{str(folder)!r}, {str(BUNDLE)!r}]\n{textwrap.dedent(code)}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


SHOW = """
    import library.train_util, library.optimizer
    print(library.train_util.get_optimizer is library.optimizer.get_optimizer)
    print(library.optimizer.get_optimizer.__kohya_ext__)
"""


def test_hook_reaches_the_definition_and_its_reexports(tmp_path: Path) -> None:
    start = "import kohya_ext.runtime\nkohya_ext.runtime.activate(__name__)\n"
    write(
        tmp_path,
        {"library/__init__.py": start, "library/optimizer.py": OPTIMIZER, "library/train_util.py": REEXPORT},
    )
    assert python(tmp_path, SHOW) == "True\noptimizers:get_optimizer"


def test_inline_reaches_the_definition_and_its_reexports(tmp_path: Path) -> None:
    end = "import kohya_ext.runtime\nkohya_ext.runtime.install(globals())\n"
    write(
        tmp_path,
        {
            "library/__init__.py": "",
            "library/optimizer.py": textwrap.dedent(OPTIMIZER) + end,
            "library/train_util.py": REEXPORT + end,
        },
    )
    assert python(tmp_path, SHOW) == "True\noptimizers:get_optimizer"


def test_both_at_once_wrap_once(tmp_path: Path) -> None:
    start = "import kohya_ext.runtime\nkohya_ext.runtime.activate(__name__)\n"
    end = "import kohya_ext.runtime\nkohya_ext.runtime.install(globals())\n"
    write(tmp_path, {"library/__init__.py": start, "library/optimizer.py": textwrap.dedent(OPTIMIZER) + end})
    assert (
        python(tmp_path, "import library.optimizer as o; print(hasattr(o.get_optimizer.__wrapped__, '__kohya_ext__'))")
        == "False"
    )


def test_only_the_newest_name_of_a_saver_is_wrapped(tmp_path: Path) -> None:
    """The older saver calls the common one: wrapping both would save the EMA twice."""
    start = "import kohya_ext.runtime\nkohya_ext.runtime.activate(__name__)\n"
    savers = """
        def save_sd_model_on_train_end_common(args): ...
        def save_sd_model_on_train_end(args): ...
        def sample_images_common(pipe_class, accelerator, args, epoch, steps): ...
        def sample_images(*args, **kwargs): ...
    """
    write(tmp_path, {"library/__init__.py": start, "library/train_util.py": savers})
    names = python(
        tmp_path,
        "import library.train_util as t; print([n for n, v in vars(t).items() if hasattr(v, '__kohya_ext__')])",
    )
    assert names == "['save_sd_model_on_train_end_common', 'sample_images_common']"


def test_a_sampler_in_the_running_script_itself_is_wrapped(tmp_path: Path) -> None:
    """HunyuanImage's training script defines its own, outside of the library."""
    code = """
        def sample_images(accelerator, args, epoch, steps, dit): ...
        from kohya_ext.runtime import sampling
        sampling.wrap_sampler_of_script()
        sampling.wrap_sampler_of_script()
        print(sample_images.__kohya_ext__, hasattr(sample_images.__wrapped__, "__kohya_ext__"))
    """
    assert python(tmp_path, code) == "sampling:sample_images False"


def test_thin_savers_of_a_family_are_left_alone(tmp_path: Path) -> None:
    """`sdxl_train_util` has functions of the older names, which call the common ones."""
    start = "import kohya_ext.runtime\nkohya_ext.runtime.activate(__name__)\n"
    saver = "def save_sd_model_on_train_end(args, src_path): ...\n"
    caller = """
        from library import train_util
        def save_sd_model_on_train_end(args, src_path):
            def saver(): ...
            train_util.save_sd_model_on_train_end_common(args, saver)
    """
    files = {"library/__init__.py": start, "library/sdxl_train_util.py": caller, "library/train_util.py": saver}
    write(tmp_path, files)
    code = """
        import library.sdxl_train_util as thin, library.train_util as own
        print(hasattr(thin.save_sd_model_on_train_end, "__kohya_ext__"))
        print(hasattr(own.save_sd_model_on_train_end, "__kohya_ext__"))
    """
    assert python(tmp_path, code) == "False\nTrue"


def test_thin_sample_images_of_a_family_is_left_alone(tmp_path: Path) -> None:
    start = "import kohya_ext.runtime\nkohya_ext.runtime.activate(__name__)\n"
    write(
        tmp_path,
        {
            "library/__init__.py": start,
            "library/sdxl_train_util.py": "def sample_images(*args, **kwargs): ...\n",
            "library/flux_train_utils.py": "def sample_images(accelerator, args, epoch, steps, flux): ...\n",
        },
    )
    code = """
        import library.sdxl_train_util as thin, library.flux_train_utils as own
        print(hasattr(thin.sample_images, "__kohya_ext__"), hasattr(own.sample_images, "__kohya_ext__"))
    """
    assert python(tmp_path, code) == "False True"


def test_a_failing_hook_leaves_kohya_as_it_was(tmp_path: Path) -> None:
    start = """
        import kohya_ext.runtime, kohya_ext.runtime.wrapping as w
        w.wrap_module = lambda namespace: 1 / 0
        kohya_ext.runtime.activate(__name__)
    """
    write(tmp_path, {"library/__init__.py": start, "library/optimizer.py": OPTIMIZER})
    printed = python(tmp_path, "import library.optimizer as o; print(o.get_optimizer.__name__)")
    assert printed.splitlines()[-1] == "get_optimizer"
    assert "could not hook into 'library.optimizer'" in printed


@pytest.mark.parametrize("module", ["kohya_ext", "kohya_ext.runtime"])
def test_imports_stay_light(module: str) -> None:
    """The GUI and every DataLoader worker import these: no torch, and nothing else that is heavy."""
    code = (
        f"import sys, {module}; print([m for m in ('torch', 'numpy', 'accelerate', 'diffusers') if m in sys.modules])"
    )
    assert python(BUNDLE, code) == "[]"


def test_activating_and_importing_loads_no_torch(tmp_path: Path) -> None:
    start = "import kohya_ext.runtime\nkohya_ext.runtime.activate(__name__)\n"
    write(tmp_path, {"library/__init__.py": start, "library/optimizer.py": OPTIMIZER})
    assert python(tmp_path, "import sys, library.optimizer; print('torch' in sys.modules)") == "False"
