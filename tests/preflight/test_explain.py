"""Which setting an error is about that names none."""

from __future__ import annotations

from typing import Any

import pytest

from kohya_ext.preflight.explain import _last_line, _named

GIVEN: dict[str, Any] = {"train_data_dir": "images", "in_json": "meta.json", "vae": "vae.safetensors"}
MISSING = "[Errno 2] No such file or directory: '{}'"


@pytest.mark.parametrize(
    ("given", "missing", "argument"),
    [
        (GIVEN, "/a/images/cat.png", "in_json"),
        ({"train_data_dir": "images"}, "/a/images/cat.JPEG", "train_data_dir"),
        (GIVEN, "/a/somewhere/vae.safetensors", None),
    ],
)
def test_an_image_that_is_not_there(given: dict[str, Any], missing: str, argument: str | None) -> None:
    """Metadata names images; nothing else does."""
    error = {"type": "FileNotFoundError", "code": "Image.open(path)"}
    names = _named(error, MISSING.format(missing), given, list(GIVEN))
    assert names[:1] == ([argument] if argument else [])


@pytest.mark.parametrize("message", ["no image", "No data found. Please verify arguments", "no images found"])
def test_a_folder_without_images(message: str) -> None:
    """As releases say it."""
    names = _named({"type": "AssertionError"}, message, {"train_data_dir": "images"}, list(GIVEN))
    assert names[0] == "train_data_dir"


def test_the_last_line_that_a_script_says_is_no_warning_of_pythons() -> None:
    said = (
        "No data found. Please verify arguments\n"
        "/env/numpy/core/fromnumeric.py:3464: RuntimeWarning: Mean of empty slice.\n"
        "  return _methods._mean(a, axis=axis, dtype=dtype,\n"
        "/env/numpy/core/_methods.py:192: RuntimeWarning: invalid value encountered in scalar divide\n"
        "  ret = ret.dtype.type(ret / rcount)\n"
    )
    assert _last_line(said) == "No data found. Please verify arguments"
    assert _last_line("a.py:1: UserWarning: all there is") == ""
