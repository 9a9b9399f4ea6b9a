"""Our flags come last, give way to a fork's own, and change the meaning of no other."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import pytest

from kohya_ext.runtime import flags, options
from kohya_ext.runtime.run import run


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(run, "yielded", {})
    yield


def parser_of(add: Callable[[argparse.ArgumentParser], None] = lambda parser: None) -> argparse.ArgumentParser:
    """A script's parser: Kohya's optimizer flags with ours, then what `add` adds."""

    def add_optimizer_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--optimizer_type", default="")
        parser.add_argument("--enable_bucket", action="store_true")

    parser = argparse.ArgumentParser()
    flags.add_optimizer_arguments(add_optimizer_arguments, parser)
    add(parser)
    return parser


def test_ours_are_there() -> None:
    args = parser_of().parse_args(["--enable_ema", "--ema_decay", "0.9"])
    assert (args.enable_ema, args.ema_decay, args.optimizer_type) == (True, 0.9, "")
    assert options.read(args) is not None


def test_they_are_in_the_help() -> None:
    parser = parser_of()
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    assert "--enable_ema" in parser.format_help()


def test_reading_twice_adds_them_once() -> None:
    """sd-scripts reads its command line again after a TOML."""
    parser = parser_of()
    first = parser.parse_args(["--enable_ema"])
    assert parser.parse_args(["--ema_decay", "0.5"], namespace=first).enable_ema is True
    flags.add_optimizer_arguments(lambda parser: None, parser)
    assert parser.parse_args([]).enable_ema is False


def fork(parser: argparse.ArgumentParser) -> None:
    """As the branch `ema_anima_main` of a public fork: flags of our names, added after Kohya's optimizer flags."""
    parser.add_argument("--use_ema", action="store_true")
    parser.add_argument("--ema_decay", type=float, default=0.999)
    parser.add_argument("--ema_device", type=str, default=None)
    parser.add_argument("--ema_sample", action="store_true")


def test_a_forks_own_flags_win(capsys: pytest.CaptureFixture[str]) -> None:
    args = parser_of(fork).parse_args(["--use_ema", "--ema_decay", "0.9", "--ema_sample"])
    assert (args.ema_decay, args.ema_sample, args.ema_device) == (0.9, True, None)
    assert parser_of(fork).parse_args([]).ema_decay == 0.999
    assert options.read(args) is None
    assert capsys.readouterr().out.count("--ema_decay of its own: EMA of kohya_ext is not available") == 1


def test_in_a_fork_ours_are_unknown_as_a_whole() -> None:
    """Half of an EMA read from somebody else's flags would be a wrong one."""
    with pytest.raises(SystemExit):
        parser_of(fork).parse_args(["--enable_ema"])
    args = parser_of(fork).parse_args(["--kohya_ext_log_every", "5"])
    assert options.log_every(args) == 5


def test_in_a_fork_a_toml_that_asks_for_ours_ends_the_run() -> None:
    args = parser_of(fork).parse_args([], namespace=argparse.Namespace(enable_ema=True))
    with pytest.raises(SystemExit):
        options.read(args)


def test_short_forms_of_kohyas_flags_stay_short_forms() -> None:
    """--enable is short for --enable_bucket in an unpatched Kohya, and stays so."""
    assert parser_of().parse_args(["--enable"]).enable_bucket is True
    assert parser_of().parse_args(["--enable_e"]).enable_ema is True
