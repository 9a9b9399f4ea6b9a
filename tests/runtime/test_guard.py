"""A fault of ours leaves a run with Kohya's own functions; what Kohya raises passes through."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

import pytest

from kohya_ext.runtime import guard, optimizers
from kohya_ext.runtime.run import run

PLAIN = argparse.Namespace(optimizer_type="AdamW", enable_ema=False)
ASKS = [
    argparse.Namespace(optimizer_type="adacoor"),
    argparse.Namespace(optimizer_type="AdamW", enable_ema=True),
    argparse.Namespace(optimizer_type=None, kohya_ext_log_every=5),
]


class Kohya:
    """A function of upstream's, which counts its calls."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.error = error
        self.__name__ = "save_model"

    def __call__(self, *args: Any) -> str:
        self.calls.append(args)
        if self.error is not None:
            raise self.error
        return "saved"


def broken_before(original: Any, *args: Any) -> Any:
    raise AttributeError("not in this version")


def broken_after(original: Any, *args: Any) -> Any:
    original(*args)
    raise ImportError("the package is gone")


def passing(original: Any, *args: Any) -> Any:
    return original(*args)


@pytest.mark.parametrize("wrapper", [broken_before, broken_after, passing])
def test_a_plain_run_gets_kohyas_result_from_one_call(wrapper: Any, capsys: pytest.CaptureFixture[str]) -> None:
    kohya = Kohya()
    assert guard.guarded(wrapper, kohya, (PLAIN, 7), {}) == "saved"
    assert kohya.calls == [(PLAIN, 7)]
    told = capsys.readouterr().out
    assert ("please report it" in told) == (wrapper is not passing)
    assert told.count("\n") <= 1


@pytest.mark.parametrize("args", ASKS)
@pytest.mark.parametrize("wrapper", [broken_before, broken_after])
def test_a_run_that_asked_for_us_stops(args: argparse.Namespace, wrapper: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        guard.guarded(wrapper, Kohya(), (args,), {})
    assert stopped.value.code == 2


@pytest.mark.parametrize("args", [PLAIN, *ASKS])
@pytest.mark.parametrize("wrapper", [broken_before, broken_after])
def test_at_a_save_nothing_of_ours_stops_a_run(
    args: argparse.Namespace, wrapper: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kohya = Kohya()
    assert guard.guarded(wrapper, kohya, (args,), {}, may_stop=False) == "saved"
    assert len(kohya.calls) == 1
    assert "WARNING: internal error" in capsys.readouterr().err


@pytest.mark.parametrize("args", [PLAIN, *ASKS])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), SystemExit(3)])
def test_what_kohya_raises_passes_through(args: argparse.Namespace, error: BaseException) -> None:
    kohya = Kohya(error)
    with pytest.raises(type(error)) as raised:
        guard.guarded(passing, kohya, (args,), {})
    assert raised.value is error
    assert len(kohya.calls) == 1


def test_a_fault_after_an_error_that_was_handled_is_ours() -> None:
    """At a save: the raw file is written, the EMA's fails and is reported, and then something of ours breaks."""
    kohya = Kohya()

    def saving_both(original: Any, *args: Any) -> Any:
        original(*args)
        kohya.error = OSError(28, "No space left on device")
        with contextlib.suppress(OSError):
            original(*args)
        raise AttributeError("a bug")

    assert guard.guarded(saving_both, kohya, (ASKS[1],), {}, may_stop=False) == "saved"
    assert len(kohya.calls) == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sdxl_train.py", "--optimizer_type", "AdamW", "--enable_bucket"], False),
        (["sdxl_train.py", "--optimizer_type", "AdaCoor"], True),
        (["sdxl_train.py", "--optimizer_type=kohya_ext.optim.AdaCoor"], True),
        (["sdxl_train.py", "--enable_ema"], True),
        (["sdxl_train.py", "--kohya_ext_log_every=10"], True),
        (["sdxl_train.py", "--ema_decay", "0.9"], False),  # a fork's own
        (["sdxl_train.py", "--optimizer_type", "AdamW", "--output_name", "AdaCoor"], False),
        (["sdxl_train.py", "--optimizer_type", "AdaCoor", "--optimizer_type=AdamW"], False),  # the last one counts
    ],
)
def test_the_command_line_tells_where_there_are_no_arguments_yet(
    monkeypatch: pytest.MonkeyPatch, words: list[str], expected: bool
) -> None:
    monkeypatch.setattr("sys.argv", words)
    assert guard.asks_for_us() is expected


def test_signatures_look_through(monkeypatch: pytest.MonkeyPatch) -> None:
    import inspect

    def function(args: Any, epoch: int = 1) -> None: ...

    assert inspect.signature(guard.Original(function)) == inspect.signature(function)


def test_a_run_with_our_flags_needs_all_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    guard.stop_at_faults()
    monkeypatch.setattr(run, "faults", ["library.optimizer: OSError: gone"])
    with pytest.raises(SystemExit):
        guard.stop_at_faults()


def test_a_flag_of_the_forks_own_asks_for_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork that has an --enable_ema of its own trains on whatever is broken in us."""
    monkeypatch.setattr("sys.argv", ["train.py", "--enable_ema"])
    args = argparse.Namespace(optimizer_type="AdamW", enable_ema=True, kohya_ext_log_every=None)
    assert guard.asks_for_us() and guard.asks_for_us(args)
    monkeypatch.setattr(run, "yielded", {"EMA": "--enable_ema"})
    assert not guard.asks_for_us() and not guard.asks_for_us(args)
    monkeypatch.setattr(run, "faults", ["no hook"])
    assert optimizers.get_optimizer(lambda args: ("AdamW", "", None), args)[0] == "AdamW"
    args.kohya_ext_log_every = 10
    assert guard.asks_for_us(args)
