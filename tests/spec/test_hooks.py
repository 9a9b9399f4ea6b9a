from __future__ import annotations

import pytest

from kohya_ext.spec.hooks import HOOKS, SAMPLE, Definition, hooks_in


def defined(*names: str, refers: str = "", parameters: str = "accelerator args epoch") -> dict[str, Definition]:
    return {name: Definition(frozenset(parameters.split()), frozenset(refers.split())) for name in names}


def found(module: dict[str, Definition]) -> list[tuple[str, str]]:
    return [(hook.key, name) for hook, name in hooks_in(module)]


def test_the_newest_name_counts() -> None:
    assert found(defined("sample_images_common", "sample_images")) == [("sample", "sample_images_common")]


def test_an_older_name_counts_in_any_module() -> None:
    assert found(defined("save_sd_model_on_epoch_end", "print")) == [("save_during", "save_sd_model_on_epoch_end")]


@pytest.mark.parametrize("called", ["sample_images_common", "sample_images"])
def test_what_calls_the_hook_is_not_the_hook(called: str) -> None:
    assert found(defined("sample_images", refers=f"train_util {called}")) == []


def test_what_calls_an_older_name_is_the_hook() -> None:
    assert found(defined("sample_images_common", refers="sample_images")) == [("sample", "sample_images_common")]


def test_the_parameters_that_every_form_takes() -> None:
    assert found(defined("sample_images", parameters="args kwargs")) == []


def test_every_name_belongs_to_one_hook() -> None:
    names = [name for hook in HOOKS for name in hook.functions]
    assert len(names) == len(set(names))
    assert SAMPLE in HOOKS
