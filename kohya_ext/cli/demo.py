"""`kohya-ext demo`: everything at once on a toy model, on a CPU, in a minute."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kohya_ext.cli.common import add_json
from kohya_ext.core import shell
from kohya_ext.core.about import NAME
from kohya_ext.core.bundle import PACKAGE_DIR
from kohya_ext.core.console import Output, Progress
from kohya_ext.core.errors import DONE, UsageError

if TYPE_CHECKING:
    from kohya_ext.demo.run import Demo


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser("demo", help="train a toy model with AdaCoor and EMA on this CPU")
    parser.add_argument("--out", metavar="FOLDER", help="output folder, new (default: ./kohya-ext-demo)")
    parser.add_argument("--steps", type=int, metavar="N", help="training steps (default 600, about a minute)")
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Build, patch, train, plot, and say what to do next."""
    from kohya_ext.demo import run as demonstration

    _require_packages()
    steps = demonstration.DEFAULT_STEPS if arguments.steps is None else arguments.steps
    if steps < demonstration.FEWEST_STEPS:
        raise UsageError(f"--steps {steps}: the demo needs at least {demonstration.FEWEST_STEPS}")
    out = Output("demo", arguments.json)
    demo = demonstration.Demo(demonstration.choose_folder(arguments.out), steps)
    began = time.monotonic()
    done = demonstration.prepare(demo)
    out.item("images", f"{done['images']} coloured shapes with captions, {demo.folder / 'images'}")
    out.item("checkout", f"a miniature of kohya_ss v26.0.0, {demo.checkout}")
    out.item("patched", f"by the real installer: {done['changed']} files, {done['hooks']} hooks in the release")
    out.item("training", f"its own sdxl_train.py, all output in {demo.log}")
    with Progress(shown=not arguments.json) as progress:
        progress.show(0, steps, "starting")
        demonstration.train(demo, _shown(progress, steps))
    points = demonstration.evaluate(demo)
    seconds = time.monotonic() - began
    _report(out, demo, points, seconds)
    return out.finish(DONE, **_document(demo, points, done, seconds))


def _require_packages() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("torch", "accelerate", "safetensors", "toml", "PIL", "tqdm") if not find_spec(name)]
    if missing:
        raise UsageError(
            f"the demo needs {', '.join(missing)}, which this Python ({sys.executable}) lacks; "
            "run it with Kohya's Python, or as ./install.sh --demo, which creates an environment"
        )


def _shown(progress: Progress, steps: int) -> Callable[[int, float], None]:
    """What the training run tells after each step: the loss as a running mean, and the time so far."""
    began = time.monotonic()
    mean: float | None = None

    def show(step: int, loss: float) -> None:
        nonlocal mean
        mean = loss if mean is None else 0.95 * mean + 0.05 * loss
        progress.show(step, steps, f"step {step} of {steps}  loss {mean:.3f}  {time.monotonic() - began:3.0f} s")

    return show


def _report(out: Output, demo: Demo, points: list[dict[str, float]], seconds: float) -> None:
    from kohya_ext.spec.flags import ENABLE_EMA, SECTION
    from kohya_ext.spec.optimizers import ADACOOR

    last = points[-1]
    better = "below" if last["ema_loss"] < last["raw_loss"] else "not below"
    out.item(
        "files", f"{demo.output}: toy.safetensors (raw), toy-ema.safetensors (EMA), {len(points)} intermediate saves"
    )
    out.item(
        "result", f"loss on held-out images: raw {last['raw_loss']:.4f}, EMA {last['ema_loss']:.4f} ({better} raw)"
    )
    out.item("image", f"{demo.image}: the loss, and samples of the raw weights next to the EMA's")
    out.item("time", f"{seconds:.0f} s")
    out.line()
    out.item("next steps", "the same in your own Kohya:")
    out.item("", install_command("/path/to/kohya_ss"))
    out.item("", f"then in the Finetune tab: {ADACOOR.setting},")
    out.item("", f"{ENABLE_EMA.label} under {SECTION} (or one of the presets)")
    out.item("uninstall", f"{uninstall_command(str(demo.checkout))}   (the miniature; byte-identical to before)")


def install_command(checkout: str) -> str:
    """The command that installs into `checkout`: our program where it is on PATH, else the script we came with."""
    return _command("install", checkout, options=[])


def uninstall_command(checkout: str) -> str:
    """The command that uninstalls from `checkout`."""
    return _command("uninstall", checkout, options=["--uninstall"])


def _command(verb: str, checkout: str, *, options: list[str]) -> str:
    script = PACKAGE_DIR.parent / "install.sh"
    if shutil.which(NAME) is None and script.is_file():
        if os.name == "nt":
            return shell.line(sys.executable, PACKAGE_DIR, verb, checkout)
        return shell.line(script, *options, checkout)
    return shell.line(NAME, verb, checkout)


def _document(demo: Demo, points: list[dict[str, float]], done: dict[str, int], seconds: float) -> dict[str, Any]:
    return {
        "folder": str(demo.folder),
        "checkout": str(demo.checkout),
        "image": str(demo.image),
        "models": sorted(str(path) for path in demo.output.glob("*.safetensors")),
        "steps": demo.steps,
        "ema_decay": demo.ema_decay,
        "training_command": demo.command(),
        "installed": done,
        "save_points": points,
        "seconds": round(seconds, 1),
    }
