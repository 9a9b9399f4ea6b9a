"""A function with the loops of sd-scripts' trainings: its variables read and set, its loops entered in the middle."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from kohya_ext.runtime.training_script import TrainingScript, can_be_entered

Meets = Callable[[TrainingScript], Any]


def here() -> TrainingScript:
    script = TrainingScript.around(sys._getframe(1))
    assert script is not None
    return script


def train(prepare: Meets, at_batch: Meets, epochs: int = 3) -> list[tuple[int, int, int, str]]:
    train_dataloader = ["a", "b", "c"]
    seen = []
    steps_from_state: int | None = 7

    def look() -> int | None:  # makes cells of what it refers to, as newer LoRA scripts have
        return steps_from_state

    prepare(here())
    assert look() is None or look() == 7
    global_step = 0
    bar = range(epochs)  # another call of the same function
    for epoch in range(epochs):
        for step, batch in enumerate(train_dataloader):
            at_batch(here())
            global_step += 1
            seen.append((epoch, step, global_step, batch))
    assert list(bar) == list(range(epochs))
    assert [number for number, _ in enumerate("xy")] == [0, 1]
    return seen


def nothing(script: TrainingScript) -> None:
    """For runs that are looked at nowhere."""


def test_the_function_is_found_from_whatever_it_calls() -> None:
    found: list[FrameType] = []

    def deeper(script: TrainingScript) -> None:
        found.append(script.frame)

    train(deeper, nothing)
    assert found[0].f_code is train.__code__
    assert TrainingScript.around(None) is None
    assert can_be_entered(train.__code__)
    assert not can_be_entered(nothing.__code__)


def test_variables_are_set_in_the_running_function() -> None:
    begun: list[bool] = []

    def at_batch(script: TrainingScript) -> None:
        if not begun:
            begun.append(True)
            script.put(global_step=40)

    assert [step for _, _, step, _ in train(nothing, at_batch)] == list(range(41, 50))


def test_variables_that_are_cells_are_set_too() -> None:
    seen: list[Any] = []

    def prepare(script: TrainingScript) -> None:
        seen.append(script.values("steps_from_state", "global_step"))
        script.put(steps_from_state=None)
        seen.append(script.values("steps_from_state"))

    train(prepare, nothing)
    assert seen == [{"steps_from_state": 7}, {"steps_from_state": None}]  # global_step has no value yet


def test_what_has_been_read_is_not_kept_alive() -> None:
    def at_batch(script: TrainingScript) -> None:
        script.values("batch")
        if sys.version_info < (3, 13):
            kept = script.frame.f_locals  # read anew, then emptied again
            assert "batch" in kept
            kept.clear()

    assert len(train(nothing, at_batch)) == 9


def test_the_loops_begin_in_the_middle() -> None:
    ends: list[Callable[[], None]] = []
    found: list[Any] = []

    def prepare(script: TrainingScript) -> None:
        ends.append(
            script.enter_loops(
                lambda epochs: epochs.start + 1, lambda things: 2 if len(things) == 3 else 0, found.append
            )
        )

    def at_batch(script: TrainingScript) -> None:
        if ends:
            ends.pop()()

    try:
        seen = train(prepare, at_batch)
    finally:
        for end in ends:
            end()
    assert [(epoch, step) for epoch, step, _, _ in seen] == [(1, 2), (1, 3), (1, 4), (2, 0), (2, 1), (2, 2)]
    assert found == [["a", "b", "c"]]
    assert "range" not in globals() and "enumerate" not in globals()


def test_a_function_with_another_loop_cannot_be_entered() -> None:
    def another(global_step: int, train_dataloader: list[int]) -> int:
        epoch = 0
        while epoch < 3:
            for _, batch in enumerate(train_dataloader):
                global_step += batch
            epoch += len(range(1))
        return global_step

    assert another(0, [1]) == 3
    assert not can_be_entered(another.__code__)


def test_other_functions_of_the_module_keep_their_range() -> None:
    script = TrainingScript(sys._getframe())
    end = script.enter_loops(lambda epochs: 1, lambda things: 5, lambda things: None)
    try:
        assert _elsewhere() == ([0, 1], [(0, "x")])
    finally:
        end()


def _elsewhere() -> tuple[list[int], list[tuple[int, str]]]:
    found = [number for number in range(2)]  # noqa: C416 - the loop is what is tested
    return found, list(enumerate("x"))
