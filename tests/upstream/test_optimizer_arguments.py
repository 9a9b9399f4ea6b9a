"""Our table of optimizers' arguments against the libraries of each era's environment."""

from __future__ import annotations

import json
import subprocess

import pytest

from kohya_ext.spec.kohyas_optimizers import ARGUMENTS, GIVEN, OF_TORCH
from tests.upstream import rig

pytestmark = pytest.mark.upstream

CLASSES = {
    "torch.optim": {"adamw": "AdamW", "sgdnesterov": "SGD"},
    "lion_pytorch": {"lion": "Lion"},
    "prodigyopt": {"prodigy": "Prodigy"},
    "dadaptation": {
        "dadaptadagrad": "DAdaptAdaGrad", "dadaptadam": "DAdaptAdam", "dadaptadan": "DAdaptAdan",
        "dadaptlion": "DAdaptLion", "dadaptsgd": "DAdaptSGD",
    },
    "dadaptation.experimental": {"dadaptation": "DAdaptAdamPreprint", "dadaptadanip": "DAdaptAdanIP"},
    "transformers.optimization": {"adafactor": "Adafactor"},
    "schedulefree": {
        "adamwschedulefree": "AdamWScheduleFree", "radamschedulefree": "RAdamScheduleFree",
        "sgdschedulefree": "SGDScheduleFree",
    },
}  # fmt: skip
ASK = """
import importlib, inspect, json, sys
found = {}
for module, classes in json.load(sys.stdin).items():
    try:
        library = importlib.import_module(module)
    except ImportError:
        continue
    for name, one in classes.items():
        found[name] = [word for word in inspect.signature(getattr(library, one).__init__).parameters][2:]
import torch
classes = [one for one in vars(torch.optim).values() if isinstance(one, type)]
found["torch"] = [one.__name__ for one in classes if issubclass(one, torch.optim.Optimizer)]
print("ANSWER" + json.dumps(found))
"""


@pytest.mark.parametrize("tree", list(rig.TREES))
def test_every_argument_is_in_the_table(tree: str) -> None:
    rig.require_rig(tree)
    python = rig.work() / "venv" / rig.TREES[tree] / "bin" / "python"
    done = subprocess.run(
        [str(python), "-c", ASK], input=json.dumps(CLASSES), capture_output=True, text=True, timeout=300
    )
    assert "ANSWER" in done.stdout, done.stderr[-2000:]
    found = json.loads(done.stdout.rpartition("ANSWER")[2])
    assert set(found.pop("torch")) - {"Optimizer"} <= OF_TORCH
    assert len(found) >= 4
    for name, arguments in found.items():
        assert set(arguments) <= ARGUMENTS[name] | GIVEN[name], name
