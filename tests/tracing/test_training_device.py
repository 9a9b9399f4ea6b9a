"""What a script finds of fp16 where no GPU is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
accelerate = pytest.importorskip("accelerate")

from kohya_ext.tracing import files_of_models  # noqa: E402
from kohya_ext.tracing.fake_world import DEVICE, FakeWorld, _replacements  # noqa: E402
from kohya_ext.tracing.ledger import ACTIVATIONS, COPIES, WEIGHTS, Ledger  # noqa: E402
from kohya_ext.tracing.training_device import on_one_device  # noqa: E402


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(accelerate.Accelerator, "__init__", accelerate.Accelerator.__init__)
    for owner, name in ((torch, "float16"), (torch, "half"), (torch.Tensor, "half")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setattr(files_of_models, "DTYPES", dict(files_of_models.DTYPES))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def test_fp16_has_a_scaler_that_can_be_changed() -> None:
    """As sd-scripts does for gradients in fp16; a step is one all the same."""
    on_one_device("cpu")
    accelerator = accelerate.Accelerator(mixed_precision="fp16")
    accelerator.scaler._unscale_grads_ = accelerator.scaler._unscale_grads_
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = accelerator.prepare(torch.optim.SGD([weight], lr=0.5))
    accelerator.backward(weight.sum())
    accelerator.clip_grad_norm_([weight], 100.0)
    optimizer.step()
    assert weight.tolist() == [0.5] * 3


def test_other_precisions_have_none() -> None:
    on_one_device("cpu")
    assert accelerate.Accelerator(mixed_precision="bf16").scaler is None


@pytest.mark.parametrize("make", [lambda weights: weights.to(torch.float16), lambda weights: weights.half()])
def test_weights_in_fp16_are_not_copied(make: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's autocast takes them as they are, and `--full_fp16` trains them."""
    for owner, name, value in _replacements():
        monkeypatch.setattr(owner, name, value)
    on_one_device("cpu")
    ledger = Ledger(DEVICE)
    with FakeWorld(ledger):
        accelerator = accelerate.Accelerator(mixed_precision="fp16")
        layer = make(torch.nn.Linear(512, 512, device=DEVICE))
        for weight in layer.parameters():
            ledger.file(weight, WEIGHTS)
        ledger.enter("forward", ACTIVATIONS)
        with accelerator.autocast():
            layer(torch.zeros(2, 512, device=DEVICE)).sum().backward()
    assert layer.weight.grad.dtype == layer.weight.dtype
    assert layer.weight.grad.element_size() == 2
    assert COPIES not in ledger.by_part


def test_a_file_in_fp16_is_of_the_dtype_that_the_script_names() -> None:
    """So it is not converted where the script would not convert it."""
    on_one_device("cpu")
    accelerate.Accelerator(mixed_precision="fp16")
    assert files_of_models.DTYPES["F16"] == torch.float16
