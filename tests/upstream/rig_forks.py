"""Starts many training runs quickly: a process that has imported the libraries is forked for each of them.

`rig_forks.py serve SOCKET` imports what the scripts take from elsewhere, and waits. `rig_forks.py ask SOCKET WHATS
SCRIPT FLAGS...`, the launcher of a run, has it fork a process that runs the script as `rig_launch.py WHATS` would, in
the surroundings, the folder and with the output of the one that asks, which then ends as that process did. Nothing of
the checkout is imported before the fork. The generators that differ from process to process are seeded anew.
"""

from __future__ import annotations

import array
import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

LIBRARIES = (
    "torch", "torch.utils.tensorboard", "accelerate", "accelerate.data_loader", "safetensors.torch", "cv2", "einops",
    "imagesize", "PIL.Image", "toml", "tqdm", "rich.logging", "huggingface_hub", "transformers", "diffusers",
)  # fmt: skip
# what these two load when it is asked for
NAMES = {
    "transformers": ("CLIPTextModel", "CLIPTokenizer", "CLIPTextModelWithProjection", "T5EncoderModel", "CLIPConfig"),
    "diffusers": ("AutoencoderKL", "DDPMScheduler", "StableDiffusionPipeline", "StableDiffusionXLPipeline",
                  "UNet2DConditionModel", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"),
}  # fmt: skip
STARTED = b"ready"


def serve(path: str) -> None:
    """Fork for whoever asks, one run at a time, until standard input ends."""
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            module = importlib.import_module(name)
            for one in NAMES.get(name, ()):
                with contextlib.suppress(ImportError, AttributeError, RuntimeError):
                    getattr(module, one)
    gc.freeze()  # a script's own collections pass over what is there by now
    assert threading.active_count() == 1, "a process with threads must not be forked"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        os.write(1, STARTED)
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            asker, _ = listener.accept()
            with asker:
                _answer(asker, listener)


def _answer(asker: socket.socket, listener: socket.socket) -> None:
    text, outputs = _received(asker)
    child = os.fork()
    if child == 0:
        listener.close()
        asker.close()
        _become(json.loads(text), outputs)
    for descriptor in outputs:
        os.close(descriptor)
    asker.sendall(str(os.waitpid(child, 0)[1]).encode())


def _received(asker: socket.socket) -> tuple[str, list[int]]:
    size = array.array("i", (0, 0)).itemsize * 2
    data, ancillary, _, _ = asker.recvmsg(1 << 16, socket.CMSG_LEN(size))
    outputs = array.array("i")
    outputs.frombytes(ancillary[0][2][:size])
    pieces = [data]
    while more := asker.recv(1 << 16):
        pieces.append(more)
    return b"".join(pieces).decode(), list(outputs)


def _become(wanted: dict[str, Any], outputs: list[int]) -> NoReturn:
    """Run the script in this process, and end it as Python ends."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, descriptor in enumerate(outputs, 1):
        os.dup2(descriptor, number)
    os.environ.clear()
    os.environ.update(wanted["environment"])
    os.chdir(wanted["folder"])
    random.seed()
    import numpy as np

    np.random.seed()
    code = _ended_with(wanted["words"])
    with contextlib.suppress(Exception):
        threading._shutdown()  # type: ignore[attr-defined]
        import atexit

        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _ended_with(words: Sequence[str]) -> int:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.upstream import rig_launch

    whats, script, *flags = words
    sys.path[0] = ""
    sys.argv = [script, *flags]
    try:
        rig_launch.change(whats)
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def ask(path: str, words: Sequence[str]) -> NoReturn:
    """Have `words` run, and end as that run did."""
    wanted = {"words": words, "environment": dict(os.environ), "folder": str(Path.cwd())}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        outputs = array.array("i", (1, 2))
        text = json.dumps(wanted).encode()
        sent = connection.sendmsg([text], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, outputs)])
        connection.sendall(text[sent:])
        connection.shutdown(socket.SHUT_WR)
        status = int(connection.recv(100) or b"256")
    if os.WIFSIGNALED(status):
        os.kill(os.getpid(), os.WTERMSIG(status))
        signal.pause()
    raise SystemExit(os.WEXITSTATUS(status))


@contextlib.contextmanager
def forking(words: Sequence[str], path: Path) -> Iterator[str]:
    """The launcher of runs that a server starts while this lasts. words: they start Python in the rig's folders."""
    server = subprocess.Popen(
        [*words, __file__, "serve", str(path)],
        env={**os.environ, "RIG_EXTRA_PATH": str(Path(__file__).parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    assert server.stdin is not None and server.stdout is not None
    try:
        started = server.stdout.read(len(STARTED))
        assert started == STARTED, "the libraries cannot be imported"
        yield f"{__file__} ask {path}"
    finally:
        server.stdin.close()
        server.stdout.close()
        server.wait()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
        raise SystemExit
    ask(sys.argv[2], sys.argv[3:])
