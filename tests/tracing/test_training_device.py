"""What a script finds of fp16 where no GPU is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")
accelerate = pytest.importorskip("accelerate")

from kohya_ext.tracing.training_device import on_one_device  # noqa: E402


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(accelerate.Accelerator, "__init__", accelerate.Accelerator.__init__)
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
