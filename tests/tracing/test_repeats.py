"""Results that are kept against the same ones worked out each time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.utils.checkpoint import checkpoint  # noqa: E402

from kohya_ext.tracing.fake_world import DEVICE, FakeWorld, fake  # noqa: E402
from kohya_ext.tracing.ledger import Ledger  # noqa: E402

ROUNDS = 3  # the first keeps results, the others find them


class WorkedOut:
    """Nothing is kept."""

    def run(self, work_out: Callable[..., Any], function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return work_out(function, types, args, kwargs)


def described(tensor: Any) -> tuple[Any, ...]:
    storage = tensor.untyped_storage()
    return (
        tuple(tensor.shape), tensor.stride(), tensor.storage_offset(), tensor.dtype, str(tensor.device),
        storage.nbytes(), tensor.requires_grad, tensor.is_leaf, tensor.is_inference(), tensor._is_view(),
        tensor.constant is None, tensor.is_conj(), tensor.is_neg(),
    )  # fmt: skip


def shared(tensors: list[Any]) -> list[int]:
    """For each tensor the first one of the same storage."""
    storages = [tensor.untyped_storage()._cdata for tensor in tensors]
    return [storages.index(one) for one in storages]


def told(run: Callable[[], list[Any]], *, kept: bool) -> list[Any]:
    """What each round makes, how it shares storages, and the ledger's bytes."""
    ledger = Ledger(DEVICE)
    world = FakeWorld(ledger)
    if not kept:
        world._repeats = WorkedOut()  # type: ignore[assignment]
    found: list[Any] = []
    with world:
        for _ in range(ROUNDS):
            made = run()
            found.append(([described(one) if fake(one) else one for one in made], shared([x for x in made if fake(x)])))
            found.append((ledger.now, dict(ledger.by_part)))
            del made
    return [*found, ledger.as_json()]


def x(*shape: int, dtype: Any = None) -> Any:
    return torch.empty(shape, device=DEVICE, dtype=dtype)


def views() -> list[Any]:
    whole = x(4, 6, 8)
    first, second = whole.chunk(2, dim=1)
    turned = whole.transpose(0, 2)
    return [whole, first, second, turned, turned[1:], whole.view(24, 8), turned.contiguous(), whole.expand(3, 4, 6, 8),
            whole.as_strided((2, 2), (1, 2), 3), *whole.unbind(0)]  # fmt: skip


def in_place() -> list[Any]:
    whole = x(4, 6)
    part = whole[1:3]
    result = part.mul_(2)
    return [whole, part, result, result is part, whole.add_(whole), whole.copy_(x(4, 6, dtype=torch.bfloat16))]


def another_shape() -> list[Any]:
    """Operations that give their own argument another shape."""
    turned, longer, narrower = x(4, 6), x(3), x(1, 5)
    return [turned.t_(), turned, longer.resize_(9), longer, narrower.squeeze_(), narrower]


def scalars() -> list[Any]:
    """1, 1.0 and True are equal and make different things of a call."""
    numbers = x(3, dtype=torch.int64)
    return [made for one in (1, 1.0, True) for made in (torch.full((2,), one, device=DEVICE), numbers + one)]


def remembered() -> list[Any]:
    """A tensor whose number torch knows."""
    number = torch.tensor(3.0)
    return [number, number * 2, number.item(), (number * 2).item(), number.to(DEVICE), x(2) * number]


def both_devices() -> list[Any]:
    host = torch.empty(2, 3)
    return [host, host.to(DEVICE), (host + 1), x(2, 3) + 1, x(2, 3).to("cpu"), x(2, 3) * torch.empty(())]


def inference() -> list[Any]:
    with torch.inference_mode():
        inside = x(2, 3) * 2
        seen = inside[0]
    return [inside, seen, x(2, 3) * 2, inside[0]]


def halves() -> list[Any]:
    with torch.autocast("cpu", torch.bfloat16):
        made = torch.nn.functional.linear(x(2, 3), x(4, 3))
        return [made, torch.nn.functional.layer_norm(made, (4,)), made.float()]


def complex_numbers() -> list[Any]:
    wave = torch.fft.rfft(x(8))
    return [wave, wave.conj(), wave.conj().imag, wave.real, wave * wave.conj()]


def lists() -> list[Any]:
    weights, gradients = [x(3), x(2, 2)], [x(3), x(2, 2)]
    torch._foreach_mul_(weights, 0.9)
    torch._foreach_addcdiv_(weights, gradients, torch._foreach_sqrt(gradients), -1.0)
    return [*weights, *torch._foreach_add(weights, gradients), torch.cat(gradients[:1]), torch.stack([x(2), x(2)])]


def attention() -> list[Any]:
    queries, keys = x(1, 2, 5, 8), x(1, 2, 7, 8).requires_grad_()
    made = torch.nn.functional.scaled_dot_product_attention(queries, keys, keys)
    made.sum().backward()
    return [made, keys.grad]


def training() -> list[Any]:
    """Convolution, normalisation, checkpointing, backward pass and two steps of an optimizer."""
    on = {"device": DEVICE}
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, **on), torch.nn.GroupNorm(2, 8, **on), torch.nn.SiLU())
    head = torch.nn.Linear(8, 4, **on)
    weights = [*net.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(weights, foreach=True)
    for _ in range(2):
        seen = checkpoint(net, x(2, 3, 8, 8).requires_grad_(), use_reentrant=False)
        torch.nn.functional.mse_loss(head(seen.mean((2, 3))), x(2, 4)).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return [*weights, *(value for state in optimizer.state.values() for value in state.values())]


def parts_of_a_whole() -> list[Any]:
    """Operations whose results share a storage, or are part of a larger one."""
    own = torch.ops.kohya_ext_tests
    return [*own.parts(x(3)), own.part(x(3)), *own.twice(x(3))]


@pytest.fixture(scope="module", autouse=True)
def _operations() -> Iterator[None]:
    with torch.library._scoped_library("kohya_ext_tests", "DEF") as library:
        library.define("parts(Tensor x) -> (Tensor, Tensor)")
        library.define("twice(Tensor x) -> (Tensor, Tensor)")
        library.impl("twice", lambda x: (whole := torch.empty(8, device="meta"), whole.view(2, 4)), "Meta")
        library.define("part(Tensor x) -> Tensor")
        library.impl("parts", lambda x: torch.empty(8, device="meta").split(4), "Meta")
        library.impl("part", lambda x: torch.empty(8, device="meta")[:4], "Meta")
        yield


RUNS = (
    parts_of_a_whole,
    views,
    in_place,
    another_shape,
    scalars,
    remembered,
    both_devices,
    inference,
    halves,
    complex_numbers,
    lists,
    attention,
    training,
)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.__name__)
def test_what_is_kept_is_what_is_worked_out(run: Callable[[], list[Any]]) -> None:
    assert told(run, kept=True) == told(run, kept=False)


def test_what_repeats_is_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    worked_out: list[str] = []
    work_out = FakeWorld._work_out

    def counted(self: Any, function: Any, *rest: Any) -> Any:
        worked_out.append(function.name())
        return work_out(self, function, *rest)

    monkeypatch.setattr(FakeWorld, "_work_out", counted)
    with FakeWorld(None):
        one, other = x(3, 4), x(4, 5)
        for _ in range(ROUNDS):
            one @ other
        assert worked_out.count("aten::mm") == 1
        one @ x(4, 6)
        assert worked_out.count("aten::mm") == 2


def test_tensors_of_two_devices_are_refused_each_time() -> None:
    with FakeWorld(None):
        for _ in range(ROUNDS):
            with pytest.raises(RuntimeError, match="device"):
                x(2, 3) + torch.empty(2, 3)


def test_a_failing_call_is_not_kept() -> None:
    with FakeWorld(None):
        for _ in range(ROUNDS):
            with pytest.raises(RuntimeError):
                x(2, 3) @ x(2, 3)
