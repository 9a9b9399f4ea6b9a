"""Which parameters a saved file's tensors are made of: told by values alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from kohya_ext.core.errors import UsageError
from kohya_ext.ema.snapshot import write_samples
from kohya_ext.posthoc.layout import Layout, Piece, own_layout, recognized

Weights = dict[str, Tensor]


def weights() -> Weights:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "q": (60, 60),
        "k": (60, 60),
        "v": (60, 60),
        "square": (70, 70),
        "conv": (4, 3, 1, 1),
        "b": (9,),
        "c": (9,),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def layout(
    folder: Path, given: Weights, saved: Weights, is_all: Callable[[str, float], bool] = lambda *_: False
) -> Layout:
    write_samples(folder / "samples.safetensors", [(name, one, one) for name, one in given.items()], {})
    save_file({name: one.contiguous() for name, one in saved.items()}, str(folder / "like.safetensors"))
    shapes = {name: tuple(one.shape) for name, one in given.items()}
    return recognized(folder / "like.safetensors", folder / "samples.safetensors", shapes, is_all)


def converted(given: Weights) -> Weights:
    """As savers do: renamed, put together, transposed, without dimensions of 1, and more that is no parameter."""
    return {
        "in_proj": torch.cat([given["q"], given["k"], given["v"]]),
        "turned": given["square"].t(),
        "model.conv": given["conv"].view(4, 3),
        "model.b": given["b"],
        "model.c": given["c"],
        "vae": torch.ones(9),
        "frozen": torch.zeros(70, 70),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_what_savers_do_is_recognized(tmp_path: Path, dtype: torch.dtype) -> None:
    given = weights()
    found = layout(tmp_path, given, {name: one.to(dtype) for name, one in converted(given).items()})
    assert found.pieces == {
        "in_proj": (Piece("q", (60, 60)), Piece("k", (60, 60)), Piece("v", (60, 60))),
        "turned": (Piece("square", (70, 70), turned=True),),
        "model.conv": (Piece("conv", (4, 3, 1, 1)),),
        "model.b": (Piece("b", (9,)),),
        "model.c": (Piece("c", (9,)),),
    }
    assert found.like == tmp_path / "like.safetensors"


def test_weights_of_16_bits_in_a_float32_file(tmp_path: Path) -> None:
    given = {name: one.bfloat16() for name, one in weights().items()}
    found = layout(tmp_path, given, {name: one.float() for name, one in converted(given).items()})
    assert len(found.pieces) == 5


def test_constant_ones_are_each_used_once_and_others_may_be_there_twice(tmp_path: Path) -> None:
    given = {"norm1": torch.ones(5), "norm2": torch.ones(5), "embed": torch.randn(5, 4), "empty": torch.zeros(0)}
    saved = {
        "a": torch.ones(5),
        "b": torch.ones(5),
        "c": torch.ones(5),
        "d": given["embed"],
        "e": given["embed"].clone(),
    }
    found = layout(tmp_path, given, saved)
    assert found.pieces == {
        "a": (Piece("norm1", (5,)),),
        "b": (Piece("norm2", (5,)),),
        "d": (Piece("embed", (5, 4)),),
        "e": (Piece("embed", (5, 4)),),
    }


def test_biases_that_stayed_zero_are_not_looked_for(tmp_path: Path) -> None:
    """Several sizes of zeros, of which some are the model's and some are not: any could be any, and none matters."""
    still = {f"bias{size}.{number}": torch.zeros(size) for size in (4, 8, 12) for number in range(3)}
    given = {**still, "trained": torch.randn(6), "scale": torch.ones(1)}
    saved = {"vae": torch.zeros(4), "joined": torch.zeros(24), "last": torch.zeros(12), "t": given["trained"]}
    saved["s"] = torch.ones(1)
    found = layout(tmp_path, given, saved, lambda name, value: name.startswith("bias") and value == 0)
    assert found.pieces == {"t": (Piece("trained", (6,)),), "s": (Piece("scale", (1,)),)}


def test_what_is_all_of_a_tensor_goes_before_what_is_a_part(tmp_path: Path) -> None:
    given = {"small": torch.ones(4), "large": torch.ones(12)}
    found = layout(tmp_path, given, {"a": torch.ones(12), "b": torch.ones(4)})
    assert found.pieces == {"a": (Piece("large", (12,)),), "b": (Piece("small", (4,)),)}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda saved: saved.pop("model.b"),
        lambda saved: saved["model.b"].add_(1e-3),
        lambda saved: saved["in_proj"][130].mul_(2),
        lambda saved: saved["turned"].mul_(0.5),
    ],
    ids=["missing", "changed", "a part changed", "scaled"],
)
def test_a_file_that_is_computed_from_them_is_refused(tmp_path: Path, spoil: Callable[[Weights], object]) -> None:
    given = weights()
    saved = {name: one.clone() for name, one in converted(given).items()}
    spoil(saved)
    with pytest.raises(UsageError, match=r"of 7 weights .* Save the EMA more often"):
        layout(tmp_path, given, saved)


def test_samples_of_another_run_are_refused(tmp_path: Path) -> None:
    given = weights()
    layout(tmp_path, given, converted(given))
    with pytest.raises(UsageError, match="another run"):
        recognized(tmp_path / "like.safetensors", tmp_path / "samples.safetensors", {"x": (3,)}, lambda *_: True)


def test_files_that_are_mixed_themselves_need_no_samples(tmp_path: Path) -> None:
    found = own_layout(tmp_path / "a", {"w": ("F16", (3, 2)), "position_ids": ("I64", (4,))})
    assert found.pieces == {"w": (Piece("w", (3, 2)),)}
